"""Networks that learn their own width and get faster while they are trained (ShrinkNets)."""

from telescopic.layers.cuts import Cut as Cut
from telescopic.shrink.adding import add_filters as add_filters
from telescopic.shrink.compact import compact_ as compact_
from telescopic.shrink.compact import price_ as price_
from telescopic.shrink.family import Every as Every
from telescopic.shrink.family import add_filters_to_family as add_filters_to_family
from telescopic.shrink.family import fold_family as fold_family
from telescopic.shrink.folding import fold as fold
from telescopic.shrink.log import Log as Log
from telescopic.shrink.optimizers import register_optimizer as register_optimizer
from telescopic.shrink.ordering import order_ as order_
from telescopic.shrink.penalty import drop_ as drop_
from telescopic.shrink.penalty import parameter_groups as parameter_groups
from telescopic.shrink.penalty import size as size
from telescopic.shrink.penalty import soft_threshold_ as soft_threshold_
from telescopic.shrink.rules import each_channel as each_channel
from telescopic.shrink.rules import register_rule as register_rule
