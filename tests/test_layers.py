import math
import re
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from telescopic import cost
from telescopic.layers import Residual, pooled_head, step_down, strided_stem

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def kinds(module: nn.Module) -> list[type[nn.Module]]:
    return [type(child) for child in module.children()]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


# step_down ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted", "ratio"),
    [
        ((3, 32, 32), (64, 16, 16), (2, 2)),  # the paper's two
        ((3, 32, 32), (256, 4, 4), (8, 8)),
        ((3, 12, 20), (5, 4, 10), (3, 2)),
        ((3, 12, 20), (5, 12, 1), (1, 20)),
        ((1, 8, 8), (4, 8, 8), (1, 1)),
        ((2, 30), (7, 6), (5,)),
        ((2, 4, 6, 8), (3, 2, 2, 2), (2, 3, 4)),
    ],
)
def test_a_step_down_convolution_has_its_kernel_as_its_stride(
    given: tuple[int, ...], wanted: tuple[int, ...], ratio: tuple[int, ...]
) -> None:
    made = step_down(given, wanted)
    dimensions = len(ratio)
    assert kinds(made) == [CONVS[dimensions], NORMS[dimensions], nn.ReLU]
    assert made[0].kernel_size == made[0].stride == ratio
    assert made(torch.randn(2, *given)).shape == (2, *wanted)
    # Every number of the input meets every output channel once.
    assert cost(made, given).macs == math.prod(given) * wanted[0]


def test_a_step_down_convolution_is_a_linear_map_of_each_patch() -> None:
    made = step_down((2, 4, 9), (5, 2, 3)).double().eval()
    conv, norm, _ = made
    with torch.no_grad():
        conv.weight.copy_(torch.arange(conv.weight.numel()).reshape(conv.weight.shape) / 100 - 0.3)
        conv.bias.copy_(torch.arange(5) / 10)
        norm.running_mean.copy_(torch.tensor([0.5, -1, 0, 2, 1]))
        norm.running_var.fill_(4 - norm.eps)
    x = random(3, 2, 4, 9)
    features = made(x)
    for row in range(2):
        for column in range(3):
            patch = x[:, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3].flatten(1)
            linear = patch @ conv.weight.flatten(1).T + conv.bias
            by_hand = ((linear - norm.running_mean) / 2).clamp(min=0)
            torch.testing.assert_close(features[:, :, row, column], by_hand, rtol=0, atol=1e-12)


@pytest.mark.parametrize("given", [(6,), (2, 3), (3, 1, 2), (1, 1, 2, 3)])
def test_plain_features_read_the_whole_input(given: tuple[int, ...]) -> None:
    made = step_down(given, (4,)).double().eval()
    assert kinds(made) == kinds(strided_stem(given, (4,))) == [nn.Flatten, nn.Linear, nn.BatchNorm1d, nn.ReLU]
    x, (_, linear, norm, _) = random(5, *given), made
    by_hand = (x.flatten(1) @ linear.weight.T + linear.bias) / (1 + norm.eps) ** 0.5
    torch.testing.assert_close(made(x), by_hand.clamp(min=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [step_down, strided_stem])
def test_norm_and_activation_can_be_chosen(make: partial[nn.Sequential]) -> None:
    shapes = (3, 8, 8), (6, 4, 4)
    assert kinds(make(*shapes)) == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert kinds(make(*shapes, norm=False)) == [nn.Conv2d, nn.ReLU]
    assert kinds(make(*shapes, activation=None)) == [nn.Conv2d, nn.BatchNorm2d]
    assert kinds(make(*shapes, norm=False, activation=None)) == [nn.Conv2d]
    other = make(*shapes, norm=partial(nn.GroupNorm, 2), activation=partial(nn.LeakyReLU, 0.25))
    assert kinds(other) == [nn.Conv2d, nn.GroupNorm, nn.LeakyReLU]
    assert (other[1].num_groups, other[1].num_channels, other[2].negative_slope) == (2, 6, 0.25)
    assert kinds(make((6,), (3,), norm=nn.LayerNorm, activation=nn.Tanh))[2:] == [nn.LayerNorm, nn.Tanh]


@pytest.mark.parametrize("make", [step_down, strided_stem])
@pytest.mark.parametrize(
    ("given", "wanted", "reason"),
    [
        ((3, 32, 32), (8, 5, 16), "32 × 32 is no whole multiple of 5 × 16"),
        ((3, 32, 30), (8, 16, 16), "32 × 30 is no whole multiple of 16 × 16"),
        ((3, 16, 16), (8, 32, 32), "16 × 16 is no whole multiple of 32 × 32"),
        ((3, 10), (8, 4), "10 is no whole multiple of 4"),
        ((3, 32, 32), (8, 16), "both need channels and the same one to three sizes"),
        ((64,), (8, 4, 4), "both need channels and the same one to three sizes"),
        ((1, 2, 2, 2, 2), (1, 1, 1, 1, 1), "both need channels and the same one to three sizes"),
        ((3, 32, 32), (), "both need channels and the same one to three sizes"),
        ((), (8,), "both need channels and the same one to three sizes"),
    ],
)
def test_what_cannot_be_reached_is_refused(
    make: partial[nn.Sequential], given: tuple[int, ...], wanted: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as refusal:
        make(given, wanted)
    assert str(given) in str(refusal.value)
    assert str(wanted) in str(refusal.value)
    assert "give an adapter of your own for this entry" in str(refusal.value)


# strided_stem -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    ratio=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    sizes=st.tuples(*[st.integers(1, 3)] * 3),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 20)),
)
def test_a_strided_stem_reaches_every_whole_multiple(
    ratio: list[int], sizes: tuple[int, ...], channels: tuple[int, int]
) -> None:
    wanted = (channels[1], *sizes[: len(ratio)])
    shape = (channels[0], *(r * size for r, size in zip(ratio, wanted[1:], strict=True)))
    with torch.device("meta"):
        made = strided_stem(shape, wanted)
        assert made(torch.empty(2, *shape)).shape == (2, *wanted)
    convs = [layer for layer in made if isinstance(layer, CONVS[len(ratio)])]
    assert kinds(made) == [CONVS[len(ratio)], NORMS[len(ratio)], nn.ReLU] * len(convs)
    strides = [conv.stride for conv in convs]
    assert [math.prod(column) for column in zip(*strides, strict=True)] == ratio
    assert strides == sorted(strides, reverse=True)
    assert all(k >= 3 and k >= s and k % 2 for c in convs for k, s in zip(c.kernel_size, c.stride, strict=True))
    made_of = [conv.out_channels for conv in convs]
    assert made_of == [max(1, channels[1] >> after) for after in range(len(convs))][::-1]
    # No stride can be divided further, and none is spread over more convolutions than the largest ratio needs.
    assert all(s == 1 or all(s % d for d in range(2, s)) for stride in strides for s in stride)
    assert len(convs) == max(1, *(sum(s > 1 for s in column) for column in zip(*strides, strict=True)))


def test_the_strided_stem_of_its_docstring() -> None:
    shapes = (3, 32, 32), (256, 4, 4)
    stem = strided_stem(*shapes)
    convs = [layer for layer in stem if isinstance(layer, nn.Conv2d)]
    assert [(conv.in_channels, conv.out_channels) for conv in convs] == [(3, 64), (64, 128), (128, 256)]
    assert {(conv.kernel_size, conv.stride, conv.padding) for conv in convs} == {((3, 3), (2, 2), (1, 1))}
    by_hand = 9 * (16 * 16 * 3 * 64 + 8 * 8 * 64 * 128 + 4 * 4 * 128 * 256)
    assert cost(stem, shapes[0]).macs == by_hand == 9_879_552
    assert cost(step_down(*shapes), shapes[0]).macs == 786_432
    for shown, macs in (("9.9 M", by_hand), ("0.8 M", 786_432)):
        assert shown in (strided_stem.__doc__ or "") and shown == f"{macs / 1e6:.1f} M"


def test_a_strided_stem_overlaps_its_patches() -> None:
    stem = strided_stem((1, 8, 8), (1, 4, 4), norm=False, activation=None).double()
    x = random(1, 1, 8, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(stem(x)[0, 0, 1, 1], x)
    seen = gradient[0, 0].nonzero().tolist()
    assert seen == [[row, column] for row in (1, 2, 3) for column in (1, 2, 3)]
    torch.testing.assert_close(gradient[0, 0, 1:4, 1:4], stem[0].weight[0, 0], rtol=0, atol=0)


# pooled_head --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (4, 6), (4, 3, 5), (4, 2, 3, 2)])
def test_a_pooled_head_reads_the_mean_of_each_channel(shape: tuple[int, ...]) -> None:
    head = pooled_head(shape, 7).double()
    x, linear = random(3, *shape), head[-1]
    by_hand = x.reshape(3, 4, -1).mean(2) @ linear.weight.T + linear.bias
    torch.testing.assert_close(head(x), by_hand, rtol=0, atol=1e-12)
    assert len(head) == (1 if len(shape) == 1 else 3)
    assert cost(head, shape).macs == 4 * 7


@pytest.mark.parametrize("shape", [(), (2, 3, 4, 5, 6)])
def test_features_without_a_pooled_head(shape: tuple[int, ...]) -> None:
    message = rf"^features of shape {re.escape(str(shape))} have no pooled head: give a head of your own for this exit$"
    with pytest.raises(ValueError, match=message):
        pooled_head(shape, 10)


# Residual -----------------------------------------------------------------------------------------------------------


def test_a_residual_block_adds_its_input_to_its_output() -> None:
    x = random(5, 3)
    body = nn.Linear(3, 3).double()
    assert torch.equal(Residual(body)(x), (body(x) + x).clamp(min=0))
    assert torch.equal(Residual(body, activation=nn.Identity())(x), body(x) + x)
    wider, shortcut = nn.Linear(3, 4).double(), nn.Linear(3, 4, bias=False).double()
    assert torch.equal(Residual(wider, shortcut, nn.Tanh())(x), (wider(x) + shortcut(x)).tanh())
    names = {name for name, _ in Residual(wider, shortcut).named_parameters()}
    assert names == {"body.weight", "body.bias", "shortcut.weight"}
