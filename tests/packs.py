"""A small pack, made at once: three members, of which the larger are more accurate."""

from dataclasses import replace
from pathlib import Path

import torch

import telescopic as tl
from telescopic.subnet import Subnet

MEMBERS = {Subnet(entry=0, exit=e, width=w): accuracy for e, w, accuracy in ((-1, 1, 0.5), (0, 1, 0.75), (1, 2, 0.9))}


def small_pack(to: Path, shape: tuple[int, int, int]) -> Path:
    """For images of a shape, of three classes."""
    torch.manual_seed(0)
    net = tl.networks.causal_resnet(2, (2, 4), blocks=1, classes=3, in_channels=shape[0]).eval()
    found = tl.measure(net, input_shape=shape)
    catalogue = replace(found, members=tuple(replace(m, accuracy=MEMBERS.get(m.subnet, 0.1)) for m in found))
    return tl.pack(
        net,
        to,
        members=list(MEMBERS),
        catalogue=catalogue,
        preprocess=tl.Preprocess((0.5,), (0.25,)),
        classes=("ant", "bee", "cat"),
    )
