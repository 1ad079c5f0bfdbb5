"""Parts that networks are made of, beside torch's own."""

from telescopic.layers.adapters import step_down as step_down
from telescopic.layers.adapters import strided_stem as strided_stem
from telescopic.layers.heads import pooled_head as pooled_head
from telescopic.layers.residual import Residual as Residual
