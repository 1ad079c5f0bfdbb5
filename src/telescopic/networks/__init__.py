"""Builder functions that return a `Nested`, or a plain module of blocks for `telescopic.nest`."""

from telescopic.networks.causal_resnet import causal_resnet as causal_resnet
from telescopic.networks.lenet import lenet as lenet
from telescopic.networks.mlp import mlp as mlp
from telescopic.networks.resnet import resnet as resnet
from telescopic.networks.vgg import vgg as vgg
