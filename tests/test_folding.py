import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from telescopic import Nested, Subnet, cost, extract, nest
from telescopic.cost import on_meta
from telescopic.folding import fold_bn
from telescopic.networks import resnet
from telescopic.papers import cnsn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Calls(nn.Module):
    """A convolution and a BatchNorm, and a forward pass that gets them and the input."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.function = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv, self.norm, x)


class Depthwise(nn.Module):
    """A block as in MobileNet."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(given, given, 3, padding=1, groups=given, bias=False)
        self.depth_norm = nn.BatchNorm2d(given)
        self.point = nn.Conv2d(given, made, 1, bias=False)
        self.point_norm = nn.BatchNorm2d(made)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.depth_norm(self.depth(x)))
        batch, channels, height, width = x.shape
        return functional.relu6(self.point_norm(self.point(x.reshape(batch, channels, height, width))))


class Gate(nn.Module):
    """A block whose forward pass branches on values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if x.sum() > 0 else x


class Listed(nn.Module):
    """A block that goes through a list of its own: replacing an attribute does not change what it does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        self.order = [self.conv, self.norm]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.order:
            x = layer(x)
        return x


class Standardised(nn.Conv2d):
    """Its own forward pass makes another weight of it: scaling the weight would change nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.std(), self.bias)


def lived(module: nn.Module) -> nn.Module:
    """As after a training: statistics and parameters of BatchNorms are no longer those of the beginning."""
    for part in module.modules():
        if isinstance(part, NORMS):
            for tensor in (part.running_mean, part.bias):
                if tensor is not None:
                    nn.init.normal_(tensor)
            for tensor in (part.running_var, part.weight):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.2, 2.0)
    return module


def norms(module: nn.Module) -> int:
    return sum(isinstance(part, NORMS) for part in module.modules())


def folded(module: nn.Module, *shape: int, left: int) -> nn.Module:
    """Fold it in double precision; the answers agree and `left` BatchNorms are left."""
    module = lived(module).double().eval()
    result, x = fold_bn(module), torch.randn(3, *shape, dtype=torch.float64)
    assert norms(result) == left
    torch.testing.assert_close(result(x), module(x), rtol=1e-12, atol=1e-12)
    return result


# Members of families ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistics", ["shared", "per-entry"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_vgg(statistics: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    net = lived(cnsn.network(scale=0.125, statistics=statistics)).to(dtype).train()
    before, x = copy.deepcopy(net.state_dict()), torch.randn(4, 3, 32, 32, dtype=dtype)
    for member in net.grid:
        taken, plain = extract(net, member, fold_bn=True), extract(net, member)
        expected = plain(x)
        assert (taken(x) - expected).abs().max() <= tolerance * expected.abs().max()
        assert {type(layer) for layer in taken} == {type(layer) for layer in plain} - {nn.BatchNorm2d}
        assert type(taken) is nn.Sequential and not any(part.training for part in taken.modules())
        convs = [layer for layer in plain if isinstance(layer, nn.Conv2d)]
        price, full = (cost(module, (3, 32, 32)) for module in (taken, plain))
        assert price == cost(extract(on_meta(net), member, fold_bn=True), (3, 32, 32))
        assert price.macs == full.macs
        assert price.params == full.params - 2 * sum(conv.out_channels for conv in convs)
        buffers = 2 * dtype.itemsize * sum(conv.out_channels for conv in convs) + 8 * len(convs)
        assert price.bytes == full.bytes - (full.params - price.params) * dtype.itemsize - buffers
        assert all(parameter.dtype == dtype and parameter.requires_grad for parameter in taken.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(module.training for module in net.modules())


def test_resnet_with_entries_and_exits() -> None:
    torch.manual_seed(0)
    net = lived(nest(resnet(8, width=4), input_shape=(3, 16, 16), entries=[2], exits=[1, 3])).double().eval()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    assert len(net.grid) == 6
    for member in net.grid:
        taken, plain = extract(net, member, fold_bn=True), extract(net, member)
        torch.testing.assert_close(taken(x), net(x, member), rtol=1e-12, atol=1e-12)
        assert norms(taken) == 0 < norms(plain)
        price, full = (cost(module, (3, 16, 16)) for module in (taken, plain))
        assert price.macs == full.macs and price.params < full.params and price.bytes < full.bytes
    block = extract(net, fold_bn=True)[2]
    assert type(block) is type(net.stages[1])
    assert [type(layer) for layer in block.body] == [nn.Conv2d, nn.Identity, nn.ReLU, nn.Conv2d, nn.Identity]
    assert list(net.stages[1].body[0].state_dict()) == ["weight"]  # no bias came into the family


def test_a_family_of_ones_own_blocks() -> None:
    torch.manual_seed(0)
    blocks = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Depthwise(4, 6), nn.Flatten(), nn.Linear(6 * 4 * 4, 2)]
    net = lived(Nested(blocks)).double().eval()
    taken, x = extract(net, fold_bn=True), torch.randn(3, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(taken(x), net(x), rtol=1e-12, atol=1e-12)
    # The convolution and the BatchNorm are two stages; between them is nothing.
    assert [type(layer) for layer in taken] == [nn.Conv2d, Depthwise, nn.Flatten, nn.Linear]
    assert type(taken[1].depth_norm) is type(taken[1].point_norm) is nn.Identity
    assert taken[1].depth.bias is not None and taken[1].depth.groups == 4


def test_an_untraceable_block_is_named() -> None:
    blocks = [nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Sequential(nn.Sequential(nn.Identity(), nn.ReLU()), Gate())]
    net = Nested(blocks)
    with pytest.raises(ValueError, match=r"in part 3 \(Gate\), .*Extract without fold_bn, or .* without branches on v"):
        extract(net, fold_bn=True)
    assert extract(net)(torch.ones(1, 2, 3, 3)).shape == (1, 2, 3, 3)
    with pytest.raises(
        ValueError, match=r"cannot be folded in this module \(Gate\), whose forward pass does not run on symbols: "
    ):
        fold_bn(Gate())
    with pytest.raises(ValueError, match=r"no member entry=4"):
        extract(net, Subnet(entry=4), fold_bn=True)


def test_a_block_that_needs_its_norm_is_refused() -> None:
    reads = Calls(lambda conv, norm, x: norm(conv(x)) + norm.eps)
    with pytest.raises(ValueError, match=r"in part 1 \(Calls\), .*symbols without them: 'Identity' .*'eps'"):
        fold_bn(nn.Sequential(nn.ReLU(), reads))
    with pytest.raises(ValueError, match=r"in part 0 \(Listed\), .*symbols without them: module is not installed"):
        fold_bn(nn.Sequential(Listed()))


def test_parts_without_convolutions_may_do_what_they_like() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -x if x.sum() > 0 else x

    class Shift(nn.Module):
        def forward(self) -> float:
            return 2.0

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.shift = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), Shift()

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) + self.shift()  # a call without an input

    folded(Shifted(), 2, 4, 4, left=0)
    folded(nn.Sequential(Branch(), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), Branch()), 2, 4, 4, left=0)
    folded(nn.Sequential(Gate().conv, nn.ReLU(), Branch()), 2, 4, 4, left=0)


# Which ones ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("groups", "made"), [(1, 6), (2, 6), (4, 4), (4, 8)])  # (4, 4): one output in each group
@pytest.mark.parametrize("bias", [False, True])
def test_all_convolutions(dimensions: int, transposed: bool, groups: int, made: int, bias: bool) -> None:
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dimensions}d")
    conv = kind(4, made, 3, stride=2, padding=1, groups=groups, bias=bias)
    result = folded(nn.Sequential(conv, NORMS[dimensions - 1](made)), 4, *[5] * dimensions, left=0)
    assert type(result[0]) is kind and result[0].weight.shape == conv.weight.shape
    assert result[0].weight.is_contiguous() and result[0].bias.shape == (made,)


def test_other_paddings_and_norms_without_parameters() -> None:
    conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")
    folded(nn.Sequential(conv, nn.BatchNorm2d(3, affine=False, momentum=None, eps=0.1)), 2, 4, 4, left=0)
    result = folded(nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3, affine=False)), 2, 4, 4, left=0)
    assert result[0].bias.requires_grad


@pytest.mark.parametrize(("weight", "bias"), [(True, False), (False, True), (False, None), (True, None)])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_what_is_frozen_stays_frozen(kind: type[nn.Conv2d], weight: bool, bias: bool | None) -> None:
    conv = kind(2, 3, 1, bias=bias is not None)
    conv.weight.requires_grad_(weight)
    if bias is not None:
        conv.bias.requires_grad_(bias)
    taken = fold_bn(nn.Sequential(conv, nn.BatchNorm2d(3)))[0]
    assert (taken.weight.requires_grad, taken.bias.requires_grad) == (weight, weight if bias is None else bias)
    assert taken.weight.is_leaf and taken.bias.is_leaf


def test_the_type_of_a_half_precision_convolution_stays() -> None:
    module = lived(nn.Sequential(nn.Conv2d(2, 3, 1, bias=False).bfloat16(), nn.BatchNorm2d(3))).eval()
    taken, x = fold_bn(module), torch.randn(2, 2, 4, 4).bfloat16()
    assert {parameter.dtype for parameter in taken.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(taken(x), module(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "function",
    [
        lambda conv, norm, x: norm(y := conv(x)) + y,  # two read the convolution's output
        lambda conv, norm, x: norm(conv(conv(x))),
        lambda conv, norm, x: norm(conv(x)) + conv(2 * x),
        lambda conv, norm, x: norm(norm(conv(x))),
        lambda conv, norm, x: norm(conv(x).relu()),
        lambda conv, norm, x: conv(norm(x)),
        lambda conv, norm, x: norm(conv(x)) + functional.conv2d(x, conv.weight),
        lambda conv, norm, x: norm(conv(x)) * norm.running_var[:, None, None],
    ],
)
def test_what_something_else_reads_or_calls_stays(function: Callable[..., Tensor]) -> None:
    folded(Calls(function), 2, 4, 4, left=1)


def test_what_cannot_be_folded_stays() -> None:
    conv, norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
    folded(nn.Sequential(conv, nn.BatchNorm2d(2, track_running_stats=False)), 2, 4, 4, left=1)
    folded(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), 2, left=1)
    folded(nn.Sequential(Standardised(2, 2, 1), copy.deepcopy(norm)), 2, 4, 4, left=1)
    folded(nn.Sequential(parametrizations.weight_norm(copy.deepcopy(conv)), copy.deepcopy(norm)), 2, 4, 4, left=1)
    hooked = copy.deepcopy(conv)
    hooked.register_forward_hook(lambda *given: given[-1].abs())
    folded(nn.Sequential(hooked, copy.deepcopy(norm)), 2, 4, 4, left=1)
    folded(nn.Sequential(norm, conv, nn.BatchNorm2d(2)), 2, 4, 4, left=1)  # the first one


def test_shared_weights_stay_shared() -> None:
    layers = [nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)]
    twice = folded(nn.Sequential(*layers[:2], nn.ReLU(), layers[0], layers[3]), 2, 4, 4, left=2)
    assert twice[0] is twice[3]
    layers[2].weight = layers[0].weight
    tied = folded(nn.Sequential(*layers), 2, 4, 4, left=2)
    assert tied[0].weight is tied[2].weight


def test_a_norm_with_two_names_goes_in_both_places() -> None:
    module = Calls(lambda conv, norm, x: norm(conv(x)))
    module.again = module.norm
    result = folded(module, 2, 4, 4, left=0)
    assert type(result.norm) is type(result.again) is nn.Identity


def test_a_chain_of_pairs() -> None:
    sizes = (3, 5, 4, 2)
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b))]
    result = folded(nn.Sequential(*layers), 3, 6, 6, left=0)
    assert [type(layer) for layer in result] == [nn.Conv2d, nn.Identity] * 3
    assert type(fold_bn(nn.BatchNorm2d(3))) is nn.BatchNorm2d
