"""Parts that networks are made of, beside torch's own."""

from telescopic.layers.adapters import step_down as step_down
from telescopic.layers.adapters import strided_stem as strided_stem
from telescopic.layers.causal import CausalBatchNorm1d as CausalBatchNorm1d
from telescopic.layers.causal import CausalBatchNorm2d as CausalBatchNorm2d
from telescopic.layers.causal import CausalConv2d as CausalConv2d
from telescopic.layers.causal import CausalLinear as CausalLinear
from telescopic.layers.filter import Filter as Filter
from telescopic.layers.filter import TokenFilter as TokenFilter
from telescopic.layers.heads import GlobalAvgPool2d as GlobalAvgPool2d
from telescopic.layers.heads import GradientScale as GradientScale
from telescopic.layers.heads import SharedHead as SharedHead
from telescopic.layers.heads import pooled_head as pooled_head
from telescopic.layers.heads import token_head as token_head
from telescopic.layers.residual import Residual as Residual
