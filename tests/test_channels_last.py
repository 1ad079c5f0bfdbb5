"""Features lie channels last in training only where that is safe for every processor, and was measured to be faster."""

import copy

import pytest
import torch
from torch import nn

from telescopic.data import Dataset, Split
from telescopic.layers import Filter
from telescopic.nested import Nested
from telescopic.slim import slim
from telescopic.train import Recipe, fit
from telescopic.train.layout import layout_for

WIDE = (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 128, 1, stride=2))


@pytest.mark.parametrize(
    ("layers", "device", "precision", "last"),
    [
        (WIDE, "cpu", "fp32", True),
        ((*WIDE, nn.Conv2d(128, 136, 1)), "cpu", "fp32", False),
        ((*WIDE, nn.Conv2d(128, 136, 1)), "cpu", "bf16", True),
        (WIDE, "cuda", "fp32", False),
        (WIDE, "cuda", "bf16", True),
        (WIDE, "mps", "bf16", False),
        # What crashes on processors with AVX2: fewer than 8 input channels, if only between layers.
        ((nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 1, stride=2)), "cpu", "fp32", False),
        ((nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 1, stride=2)), "cpu", "bf16", False),
        ((nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 1, stride=2)), "cuda", "bf16", True),
        ((nn.Conv2d(3, 8, 1, stride=2), nn.Conv2d(8, 8, 3)), "cpu", "fp32", False),  # also if it reads an image
        ((*WIDE, nn.Conv2d(128, 1, 1)), "cpu", "fp32", False),
        ((*WIDE, nn.Conv2d(2, 8, 7)), "cpu", "fp32", False),
        ((*WIDE, nn.ConvTranspose2d(128, 3, 2)), "cpu", "fp32", False),
        # What can become as narrow while it is trained.
        ((*WIDE, Filter(128)), "cpu", "fp32", False),
        # What has another such layout, or none.
        ((*WIDE, nn.Conv3d(8, 8, 3)), "cuda", "bf16", False),
        ((nn.Linear(8, 8),), "cuda", "bf16", False),
    ],
)
def test_where_it_is_taken(layers: tuple[nn.Module, ...], device: str, precision: str, last: bool) -> None:
    layout = torch.channels_last if last else torch.contiguous_format
    assert layout_for(nn.Sequential(*layers), torch.device(device), precision) is layout


@pytest.mark.parametrize(("narrowest", "last"), [(4, False), (8, True), (12, False), ({"stages.0.0": 12}, False)])
def test_what_the_narrowest_member_runs_counts(narrowest: int | dict[str, int], last: bool) -> None:
    """The widest has channels in eights, and a narrower one would end the process."""
    layers = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(576, 2)
    given = narrowest if isinstance(narrowest, dict) else {"stages.0.0": narrowest, "stages.0.2": narrowest}
    family = slim(nn.Sequential(*layers), torch.randn(2, 3, 13, 13), (given, 1), multiple_of=1)
    assert family.narrowing.channels[("stages.0.0",)][0] in (narrowest, 12)
    layout = torch.channels_last if last else torch.contiguous_format
    assert layout_for(family, torch.device("cpu"), "fp32") is layout


class Told(nn.Module):
    """A layer of one's own that is told its width, and runs fewer of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.width = nn.Conv2d(8, 16, 1), 2

    def in_width(self, width: int) -> nn.Module:
        made = copy.copy(self)
        made.width = width
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.conv2d(x, self.conv.weight[: 4 * self.width])
        return nn.functional.pad(y, (0, 0, 0, 0, 0, 16 - y.shape[1]))


class Saying(Told):
    """The same, and says that it runs eights of them."""

    def used(self, width: int) -> dict[str, torch.Tensor]:
        return {"conv.weight": (torch.arange(16) < 8 * width).view(-1, 1, 1, 1)}


@pytest.mark.parametrize(("layer", "last"), [(Told, False), (Saying, True)])
def test_what_does_not_say_what_it_uses_may_use_anything(layer: type[nn.Module], last: bool) -> None:
    net = Nested([layer()], {0: nn.Conv2d(3, 8, 3)}, {0: nn.Sequential(nn.Flatten(), nn.Linear(64, 2))}, groups=2)
    layout = torch.channels_last if last else torch.contiguous_format
    assert layout_for(net, torch.device("cpu"), "fp32") is layout


@pytest.mark.parametrize(("channels", "last"), [(4, False), (8, True)])
@pytest.mark.parametrize("given", [torch.contiguous_format, torch.channels_last])
def test_training_chooses_whatever_the_network_was_in(channels: int, last: bool, given: torch.memory_format) -> None:
    """Trained as it was given, the narrow one would end the process on a processor with AVX2."""
    block = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 8, 1, stride=2, bias=False))
    net = Nested([block], {0: nn.Identity()}, {0: nn.Sequential(nn.Flatten(), nn.Linear(128, 2))})
    net.to(memory_format=given)  # type: ignore[call-overload]
    seen = []

    def look(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        if module.training:
            seen.append(args[0].is_contiguous(memory_format=torch.channels_last))

    block[1].register_forward_pre_hook(look)
    images = torch.randint(256, (32, 3, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(0))
    split = Split(images, torch.arange(32) % 2)
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=0.01)
    fit(net, Dataset("noise", split, split, split, ("a", "b"), ""), recipe, cpu=True, progress=False)
    assert seen == [last] * 8 and all(p.is_contiguous() for p in net.parameters())
