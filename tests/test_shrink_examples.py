"""The example that functions of `shrink` are given: what is none is refused in one sentence."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_shrink import IMAGES, LeNet, kill
from test_shrink_channels import Forward
from torch import Tensor, nn

from telescopic import shrink
from telescopic.layers import Filter

CALLS: list[Callable[[nn.Module, Any], Any]] = [
    shrink.fold,
    lambda net, x: shrink.compact_(net, example=x),
    lambda net, x: shrink.order_(net, example=x),
    shrink.price_,
]


def refused(match: str, model: nn.Module, example: Any, good: Any) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        shrink.add_filters(model, example)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    net = shrink.add_filters(model, good)
    kill(net)
    for call in CALLS:
        with pytest.raises(ValueError, match=match):
            call(net, example)
    assert shrink.compact_(net, example=good)


def test_what_is_no_batch_of_tensors() -> None:
    x = torch.randn(IMAGES)
    refused("the network does not run on two inputs of the example", LeNet(), {"x": x}, x)
    refused(r"not a ndarray: give torch\.from_numpy", LeNet(), x.numpy(), x)
    refused(r"not a float64", LeNet(), [np.float64(1)], x)
    refused(r"not a int", LeNet(), 4, x)
    refused(r"a batch .* of one input or more, not a tensor \[0, 1, 14, 14\]", LeNet(), x[:0], x)
    refused(r"not a tensor \[\]", LeNet(), torch.tensor(1.0), x)
    refused(r"on the meta device", LeNet(), x.to("meta"), x)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_an_input_without_a_batch(channels: int) -> None:
    net = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    x = torch.randn(3, channels, 6, 6)
    shape = rf"\[{channels}, 6, 6\]"
    refused(rf"the example {shape} is one input without a batch, .*: give example\[None\]", net, x[0], x)


def test_a_network_for_a_batch_of_one() -> None:
    net = Forward(lambda self, x: self.b(self.a(x).relu().flatten()), a=nn.Conv2d(1, 4, 3), b=nn.Linear(64, 2))
    x = torch.randn(1, 1, 6, 6)
    assert net(x).shape == (2,)
    with pytest.raises(ValueError, match=r"runs on the one input \[1, 1, 6, 6\], but not on two .* b \(Linear\) says"):
        shrink.add_filters(net, x)


def test_an_example_that_does_not_fit() -> None:
    x = torch.randn(IMAGES)
    refused(
        r"does not run on two inputs of the example \[4, 3, 14, 14\]: conv1 \(Conv2d\) says: Given groups=1",
        LeNet(), torch.randn(4, 3, 14, 14), x,
    )  # fmt: skip
    refused(
        r"example \[4, 1, 14, 14\] and \[4, 1\]: the network .* says: .* 3 were given", LeNet(), (x, x[:, :, 0, 0]), x
    )


def test_a_network_without_parameters_and_one_that_cannot_be_trained() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match="this ReLU has no parameters, and so no channels"):
        shrink.add_filters(nn.ReLU(), x)
    with torch.inference_mode():
        net = nn.Sequential(nn.Linear(3, 4), Filter(4), nn.ReLU(), nn.Linear(4, 2))
        kill(net)
    with pytest.raises(ValueError, match=r"0\.weight was made in torch\.inference_mode, and cannot be trained"):
        shrink.compact_(net, example=x)


def test_what_fails_only_in_training() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("no data for training\n" + "a page of it\n" * 60)
        return self.b(self.a(x).relu())

    net = Forward(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"the network \(Forward\) says: no data for training$"):
        shrink.add_filters(net, torch.randn(2, 3))
