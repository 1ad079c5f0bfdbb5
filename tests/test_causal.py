"""Channel-causal layers, shared heads and what makes them narrow, by value."""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from telescopic import Nested, Subnet
from telescopic.layers import CausalBatchNorm1d, CausalBatchNorm2d, CausalConv2d, CausalLinear, Residual, SharedHead
from telescopic.layers.causal import causal_mask, prefix, width_of
from telescopic.layers.narrowing import narrow, narrow_outputs
from telescopic.testing import check_nested

from chance import examples

EXACT = {"rtol": 0.0, "atol": 1e-12}


def ends(channels: int, groups: int) -> list[int]:
    """Where groups end, by the definition."""
    return [int(channels * width / groups + 1e-9) for width in range(1, groups + 1)]


def group_of(channel: int, channels: int, groups: int) -> int:
    return next(i for i, end in enumerate(ends(channels, groups)) if channel < end)


def changed_behind(x: Tensor, channels: int) -> Tensor:
    """The same first channels, and others behind them."""
    return torch.cat([x[:, :channels], torch.randn_like(x[:, channels:])], 1)


# Groups -------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.data())
def test_groups_are_prefixes_of_channels(channels: int, data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, channels))
    sizes = [prefix(channels, groups, width) for width in range(1, groups + 1)]
    assert sizes == ends(channels, groups) and sizes[-1] == channels
    assert [width_of(size, channels, groups) for size in sizes] == list(range(1, groups + 1))
    for given_ in set(range(-1, channels + 3)) - set(sizes):
        nearest = min(sizes, key=lambda size: abs(size - given_))
        message = f"^{given_} channels are not the first groups of {channels} channels in {groups} groups; nearest are "
        with pytest.raises(ValueError, match=f"{message}{nearest}$"):
            width_of(given_, channels, groups)


@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_a_channel_reads_its_own_group_and_those_before(outputs: int, inputs: int, data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, min(outputs, inputs)))
    wanted = [[group_of(o, outputs, groups) >= group_of(i, inputs, groups) for i in range(inputs)]
              for o in range(outputs)]  # fmt: skip
    assert causal_mask(outputs, inputs, groups).tolist() == wanted


# Convolutions and linear layers -------------------------------------------------------------------------------------

CONVS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "3 × 3": ((6, 9, 3), {"padding": 1, "width_groups": 3}),
    "one group": ((4, 5, 3), {"width_groups": 1}),
    "a channel each": ((4, 4, 1), {"width_groups": 4}),
    "uneven groups": ((7, 5, (3, 1)), {"padding": (1, 0), "width_groups": 4}),
    "fewer channels, stride, no bias": ((8, 4, 2), {"stride": 2, "bias": False, "width_groups": 4}),
    "dilation": ((5, 8, 3), {"dilation": (2, 1), "padding": "same", "width_groups": 5}),
    "depthwise": ((7, 7, 3), {"padding": 1, "stride": (1, 2), "depthwise": True, "width_groups": 3}),
    "depthwise, no bias": ((4, 4, 2), {"bias": False, "depthwise": True, "width_groups": 2}),
}


def conv_of(name: str) -> CausalConv2d:
    torch.manual_seed(0)
    sizes, options = CONVS[name]
    return CausalConv2d(*sizes, **options).double()


def by_hand(layer: CausalConv2d, x: Tensor) -> Tensor:
    """One convolution for each output channel, of the input channels that it may read."""
    groups, channels = layer.width_groups, []
    how = (layer.stride, layer.padding, layer.dilation)
    for o in range(layer.out_channels):
        reads = slice(o, o + 1)
        kernel = layer.weight[o : o + 1]
        if not layer.depthwise:
            reads = slice(ends(layer.in_channels, groups)[group_of(o, layer.out_channels, groups)])
            kernel = kernel[:, reads]
        bias = None if layer.bias is None else layer.bias[o : o + 1]
        channels.append(functional.conv2d(x[:, reads], kernel, bias, *how))
    return torch.cat(channels, 1)


@pytest.mark.parametrize("name", CONVS)
def test_a_convolution_by_hand_and_each_width_of_it(name: str) -> None:
    layer, groups = conv_of(name), CONVS[name][1]["width_groups"]
    x = torch.randn(2, layer.in_channels, 6, 5, dtype=torch.float64)
    full = layer(x)
    torch.testing.assert_close(full, by_hand(layer, x), **EXACT)
    torch.testing.assert_close(layer(x[0]), full[0], **EXACT)  # without a batch
    inputs, outputs = ends(layer.in_channels, groups), ends(layer.out_channels, groups)
    for width in range(1, groups + 1):
        given_, made = x[:, : inputs[width - 1]], outputs[width - 1]
        torch.testing.assert_close(layer(given_), full[:, :made], **EXACT)
        torch.testing.assert_close(layer(changed_behind(x, given_.shape[1]))[:, :made], full[:, :made], **EXACT)
        taken = layer.narrow(width)
        assert type(taken) is nn.Conv2d and (taken.in_channels, taken.out_channels) == (given_.shape[1], made)
        assert torch.equal(taken(given_), layer(given_))
        assert taken.weight.data_ptr() != layer.weight.data_ptr()


@pytest.mark.parametrize(("sizes", "groups", "bias"), [((6, 9), 3, True), ((7, 5), 4, False), ((3, 3), 3, True)])
def test_a_linear_layer_by_hand_and_each_width_of_it(sizes: tuple[int, int], groups: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = CausalLinear(*sizes, bias, width_groups=groups).double()
    x = torch.randn(2, 4, sizes[0], dtype=torch.float64)
    full = layer(x)
    for o in range(sizes[1]):
        reads = ends(sizes[0], groups)[group_of(o, sizes[1], groups)]
        want = x[..., :reads] @ layer.weight[o, :reads] + (layer.bias[o] if bias else 0)
        torch.testing.assert_close(full[..., o], want, **EXACT)
    for width, (given_, made) in enumerate(zip(ends(sizes[0], groups), ends(sizes[1], groups), strict=True), 1):
        torch.testing.assert_close(layer(x[..., :given_]), full[..., :made], **EXACT)
        taken = layer.narrow(width)
        assert type(taken) is nn.Linear and (taken.bias is not None) is bias
        assert torch.equal(taken(x[..., :given_]), layer(x[..., :given_]))


def outside(layer: nn.Module) -> Tensor:
    """Which weights may not be read."""
    mask = ~causal_mask(layer.weight.shape[0], layer.weight.shape[1], layer.width_groups)
    return mask.view(*mask.shape, *[1] * (layer.weight.ndim - 2)).expand_as(layer.weight)


MASKED: list[Callable[[], nn.Module]] = [
    lambda: CausalConv2d(5, 7, 3, width_groups=3),
    lambda: CausalLinear(6, 4, width_groups=4),
]


@pytest.mark.parametrize("make", MASKED)
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, fused=True),
        lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1, amsgrad=True),
        lambda p: torch.optim.AdamW(p, 0.1),
    ],
)
def test_weights_that_may_not_be_read_are_zero_and_stay_so(
    make: Callable[[], nn.Module], optimizer: Callable[[Any], torch.optim.Optimizer]
) -> None:
    torch.manual_seed(0)
    layer = make()
    masked = outside(layer)
    assert 0 < int(masked.sum()) < masked.numel()
    assert not layer.weight[masked].any() and layer.weight[~masked].all()
    before, steps = layer.weight.detach().clone(), optimizer(layer.parameters())
    shape = (2, 5, 4, 4) if isinstance(layer, nn.Conv2d) else (2, 6)
    for _ in range(4):
        steps.zero_grad()
        layer(torch.randn(shape)).square().sum().backward()
        assert not layer.weight.grad[masked].any() and layer.weight.grad[~masked].any()
        steps.step()
    assert torch.equal(layer.weight[masked], torch.zeros(int(masked.sum())))
    assert (layer.weight != before)[~masked].float().mean() > 0.9
    for width in range(1, layer.width_groups + 1):
        taken = layer.narrow(width).weight
        assert torch.equal(taken, layer.weight[: taken.shape[0], : taken.shape[1]])


@pytest.mark.parametrize("make", MASKED)
def test_masks_survive_copies_types_and_states(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    layer = make()
    masked = outside(layer)
    assert set(layer.state_dict()) == {"weight", "bias"}
    fresh = make()
    fresh.load_state_dict(layer.state_dict())
    for one in (layer.to(torch.bfloat16), copy.deepcopy(layer), fresh.double()):
        x = torch.randn((2, 5, 4, 4) if isinstance(layer, nn.Conv2d) else (2, 6), dtype=one.weight.dtype)
        assert not one.weight[masked].any() and one(x).dtype == one.weight.dtype
        given_, made = (ends(n, one.width_groups)[0] for n in (x.shape[1], one.weight.shape[0]))
        assert torch.equal(one(changed_behind(x, given_))[:, :made], one(x)[:, :made])
        one.zero_grad()
        one(x).float().square().sum().backward()
        assert not one.weight.grad[masked].any()


@pytest.mark.parametrize("make", MASKED)
@pytest.mark.parametrize("there", [1.0, float("inf"), float("nan")])
def test_the_state_of_a_dense_layer_does_not_break_causality(make: Callable[[], nn.Module], there: float) -> None:
    torch.manual_seed(0)
    layer = make().double()
    masked, dense = outside(layer), torch.randn_like(layer.weight)
    dense[masked] *= there
    layer.load_state_dict({"weight": dense, "bias": torch.zeros_like(layer.bias)})
    x = torch.randn((2, 5, 4, 4) if isinstance(layer, nn.Conv2d) else (2, 6), dtype=torch.float64)
    layer(x).square().sum().backward()
    assert not layer.weight.grad[masked].any() and layer.weight.grad[~masked].all()
    full = layer(x)
    assert full.isfinite().all()
    for width in range(1, layer.width_groups + 1):
        taken = layer.narrow(width)
        given_, made = taken.weight.shape[1], taken.weight.shape[0]
        torch.testing.assert_close(taken(x[:, :given_]), full[:, :made], **EXACT)
        assert not taken.weight[masked[:made, :given_]].any()


# BatchNorm ----------------------------------------------------------------------------------------------------------

NORMS: list[Any] = [(CausalBatchNorm1d, nn.BatchNorm1d, ()), (CausalBatchNorm1d, nn.BatchNorm1d, (3,)),
                    (CausalBatchNorm2d, nn.BatchNorm2d, (3, 2))]  # fmt: skip


@pytest.mark.parametrize(("causal", "stock", "sizes"), NORMS)
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"momentum": 0.0}, {"affine": False, "eps": 0.1}, {"track_running_stats": False}],
)
def test_a_norm_of_each_width_is_torchs_own(
    causal: Any, stock: Any, sizes: tuple[int, ...], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    groups, channels = 3, 7
    for width, kept in enumerate(ends(channels, groups), 1):
        norm, own = causal(channels, **options, width_groups=groups), stock(kept, **options)
        for name, tensor in own.named_parameters():
            nn.init.normal_(getattr(norm, name))
            tensor.data.copy_(getattr(norm, name)[:kept])
        for training in (True, True, False, True):
            norm.train(training), own.train(training)
            x = torch.randn(5, kept, *sizes) * 3 + 1
            assert torch.equal(norm(x), own(x))
            taken = norm.narrow(width)
            assert type(taken) is stock and taken.training is training and repr(taken) == repr(own)
            ours, theirs = taken.state_dict(), own.state_dict()
            assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
        if norm.running_mean is not None:  # of the channels behind, nothing was seen
            assert torch.equal(norm.running_mean[kept:], torch.zeros(channels - kept))


def test_channels_are_normalised_by_themselves_in_training_mode() -> None:
    torch.manual_seed(0)
    layers = [CausalBatchNorm2d(9, width_groups=3) for _ in range(2)]
    x = torch.randn(4, 9, 5, 5)
    full, other = layers[0](x), layers[1](changed_behind(x, 6))
    assert torch.equal(full[:, :6], other[:, :6]) and not torch.equal(full[:, 6:], other[:, 6:])
    assert torch.equal(layers[0].running_var[:6], layers[1].running_var[:6])
    narrow_alone = CausalBatchNorm2d(9, width_groups=3)
    assert torch.equal(narrow_alone(x[:, :6].contiguous()), full[:, :6])
    assert torch.equal(narrow_alone.running_mean[:6], layers[0].running_mean[:6])


def test_features_of_a_whole_network_are_bit_identical_whatever_the_rest_does() -> None:
    """Integers small enough that every order of summation gives the same float."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        CausalConv2d(4, 8, 3, padding=1, bias=False, width_groups=4), nn.ReLU(),
        CausalConv2d(8, 12, 3, 2, 1, width_groups=4), CausalBatchNorm2d(12, width_groups=4),
    ).train()  # fmt: skip
    for module in (layers[0], layers[2]):
        module.weight.data = (module.weight.data * 10).round()
        module.bias = None if module.bias is None else nn.Parameter(module.bias.data.round())
    x = torch.randint(-3, 4, (8, 4, 8, 8)).float()
    full = copy.deepcopy(layers)(x)
    for width in range(1, 4):
        assert torch.equal(copy.deepcopy(layers)(x[:, :width]), full[:, : 3 * width])
        assert torch.equal(copy.deepcopy(layers)(changed_behind(x, width))[:, : 3 * width], full[:, : 3 * width])


# Shared heads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize(("features", "groups"), [(6, 3), (7, 3), (5, 5), (4, 1)])
def test_a_shared_head_is_the_formula_for_every_width(features: int, groups: int, average: bool) -> None:
    torch.manual_seed(0)
    head = SharedHead(features, 2, width_groups=groups, average=average).double()
    x = torch.randn(4, features, dtype=torch.float64)
    every, total, begin = head.every_width(x), torch.zeros(4, 2, dtype=torch.float64), 0
    assert every.shape == (groups, 4, 2)
    for width, end in enumerate(ends(features, groups), 1):
        total = total + x[:, begin:end] @ head.weight[:, begin:end].T
        want = (total / width if average else total) + head.bias
        taken = head.narrow(width)
        assert type(taken) is nn.Linear
        for logits in (every[width - 1], head(x[:, :end]), taken(x[:, :end])):
            torch.testing.assert_close(logits, want, **EXACT)
        torch.testing.assert_close(head.every_width(x[:, :end]), every[:width], **EXACT)
        begin = end
    assert head.every_width(x[:0]).shape == (groups, 0, 2)


def conditioned_head(
    features: int, groups: int, average: bool, separate: bool = False
) -> tuple[SharedHead, SharedHead]:
    """A head with scales and shifts, and perhaps weights, of each width; and one of the same weights without."""
    torch.manual_seed(0)
    plain = SharedHead(features, 2, width_groups=groups, average=average).double()
    how = {"average": average, "separate": separate}
    head = SharedHead(features, 2, width_groups=groups, conditioned=True, **how).double()
    head.load_state_dict(plain.state_dict(), strict=False)
    return head, plain


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("features", "groups"), [(6, 3), (7, 3), (5, 5), (4, 1)])
def test_a_conditioned_head_is_the_formula_for_every_width(
    features: int, groups: int, separate: bool, average: bool
) -> None:
    head, plain = conditioned_head(features, groups, average, separate)
    assert head.scale is not None and head.shift is not None and plain.scale is None and plain.shift is None
    assert (head.scale.shape, head.shift.shape) == ((groups, features), (groups, 2))
    x = torch.randn(4, features, dtype=torch.float64)
    torch.testing.assert_close(head.every_width(x), plain.every_width(x), **EXACT)
    for end in ends(features, groups):
        assert torch.equal(head(x[:, :end]), plain(x[:, :end])), "a new one is as if it were not conditioned"
    nn.init.normal_(head.scale)
    nn.init.normal_(head.shift)
    own = torch.zeros(groups, 2, features) if head.own is None else nn.init.normal_(head.own)
    every = head.every_width(x)
    assert every.shape == (groups, 4, 2)
    for width, end in enumerate(ends(features, groups), 1):
        want = torch.zeros(4, 2, dtype=torch.float64)
        for example in range(4):
            for k in range(2):
                read = sum(
                    (head.weight[k, c] * (1 + head.scale[width - 1, c]) + own[width - 1, k, c]) * x[example, c]
                    for c in range(end)
                )
                want[example, k] = head.bias[k] + head.shift[width - 1, k] + read / (width if average else 1)
        taken = head.narrow(width)
        assert type(taken) is nn.Linear and taken.weight.shape == (2, end)
        for logits in (every[width - 1], head(x[:, :end]), taken(x[:, :end])):
            torch.testing.assert_close(logits, want, **EXACT)
        torch.testing.assert_close(head.every_width(x[:, :end]), every[:width], **EXACT)
    assert head.every_width(x[:0]).shape == (groups, 0, 2)


def test_a_width_teaches_its_own_scale_and_shift_only() -> None:
    head, _ = conditioned_head(7, 3, False)
    x = torch.randn(4, 7, dtype=torch.float64)
    for width, end in enumerate(ends(7, 3), 1):
        for logits in (head.every_width(x)[width - 1], head(x[:, :end])):
            weights = torch.randn_like(logits)
            of_scale, of_shift, of_weight = torch.autograd.grad(
                (logits * weights).sum(), [head.scale, head.shift, head.weight]
            )
            want = torch.zeros_like(of_scale)
            want[width - 1, :end] = (weights @ head.weight[:, :end] * x[:, :end]).sum(0)
            torch.testing.assert_close(of_scale, want, **EXACT)
            assert (of_scale != 0).sum() == end and (of_weight[:, end:] == 0).all()
            assert [bool(row.any()) for row in of_shift] == [w == width for w in range(1, 4)]


def test_a_later_weight_that_is_no_number_leaves_narrow_members_alone() -> None:
    head, _ = conditioned_head(6, 3, False)
    x = torch.randn(2, 6, dtype=torch.float64)
    before = head.every_width(x)
    with torch.no_grad():
        head.weight[:, -1] = torch.inf
    assert torch.equal(head.every_width(x)[:2], before[:2])


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CausalConv2d(8, 8, 1, width_groups=4)(torch.ones(1, 3, 2, 2)), "3 channels .* 4 groups; .* are 2$"),
        (lambda: CausalConv2d(8, 8, 1, width_groups=4)(torch.ones(1, 9, 2, 2)), "^9 channels .* nearest are 8$"),
        (lambda: CausalLinear(7, 8, width_groups=3)(torch.ones(1, 3)), "3 channels .* of 7 .* nearest are [24]$"),
        (lambda: CausalBatchNorm2d(8, width_groups=2)(torch.ones(2, 5, 2, 2)), "^5 channels .* nearest are 4$"),
        (lambda: CausalBatchNorm2d(8, width_groups=2)(torch.ones(2, 8)), r"expected 4D input \(got 2D input\)"),
        (lambda: SharedHead(6, 2, width_groups=3)(torch.ones(1, 5)), "^5 channels .* nearest are [46]$"),
        (lambda: SharedHead(6, 2, width_groups=3).every_width(torch.ones(1, 7)), "^7 channels .* nearest are 6$"),
        (lambda: CausalConv2d(8, 4, 1, width_groups=5), "^4 channels make 1 to 4 groups, not 5$"),
        (lambda: CausalLinear(3, 8, width_groups=0), "^3 channels make 1 to 3 groups, not 0$"),
        (lambda: CausalBatchNorm1d(3, width_groups=True), "^3 channels make 1 to 3 groups, not True$"),
        (lambda: CausalBatchNorm2d(3, width_groups=2.0), "not 2.0$"),
        (lambda: SharedHead(3, 2, width_groups="2"), "not '2'$"),
        (lambda: CausalConv2d(4, 8, 1, width_groups=2, depthwise=True), "as many channels as it takes, not 8 of 4$"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# Narrowing ----------------------------------------------------------------------------------------------------------


def test_narrowing_goes_through_blocks_and_keeps_what_stands_twice() -> None:
    torch.manual_seed(0)
    shared, relu = CausalLinear(4, 4, width_groups=2), nn.ReLU()
    block = Residual(nn.Sequential(shared, relu, shared), activation=relu).eval()
    taken = narrow(block, 1)
    assert type(taken) is Residual and type(taken.body[0]) is nn.Linear
    assert taken.body[0] is taken.body[2] and taken.body[1] is taken.activation
    x = torch.randn(3, 2)
    torch.testing.assert_close(taken(x), block(x))
    assert not any(module.training for module in taken.modules())
    assert block.body[0] is shared and shared.weight.shape == (4, 4)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 1), nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.PReLU()])
def test_layers_that_cannot_be_made_narrower_are_refused(layer: nn.Module) -> None:
    name = type(layer).__name__
    for part in (layer, nn.Sequential(nn.ReLU(), Residual(layer))):
        with pytest.raises(ValueError, match=f"^a {name} cannot be made narrower: use the Causal layers .* narrow"):
            narrow(part, 1)


ADAPTERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (lambda: nn.Conv2d(3, 7, 3, 2, 1, padding_mode="circular"), (3, 6, 6)),
    "conv, norm": (lambda: nn.Sequential(nn.Conv2d(3, 7, 1, bias=False), nn.BatchNorm2d(7), nn.ReLU()), (3, 4, 4)),
    "causal norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 7, 1), nn.Sequential(CausalBatchNorm2d(7, width_groups=3))), (3, 4, 4)
    ),
    "two convs": (
        lambda: nn.Sequential(nn.Conv2d(3, 5, 2, 2), nn.ReLU(), nn.Conv2d(5, 7, 1), nn.MaxPool2d(2)), (3, 4, 4)
    ),
    "causal behind": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), CausalConv2d(6, 7, 3, width_groups=3)), (3, 4, 4)
    ),
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(8, 7, bias=False), nn.BatchNorm1d(7)), (2, 4)),
    "norm without statistics": (
        lambda: nn.Sequential(nn.Linear(8, 7), nn.BatchNorm1d(7, track_running_stats=False, affine=False)), (8,)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_give_the_first_groups_from_the_whole_input(name: str) -> None:
    torch.manual_seed(0)
    make, shape = ADAPTERS[name]
    adapter, x = make().double(), torch.randn(4, *shape, dtype=torch.float64)
    adapter.train()(x)
    adapter.eval()
    adapter.requires_grad_(False)
    for width, kept in enumerate(ends(7, 3), 1):
        taken = narrow_outputs(adapter, width, 3)
        torch.testing.assert_close(taken(x), adapter(x)[:, :kept], **EXACT)
        assert not any(parameter.requires_grad for parameter in taken.parameters())
        assert all(type(leaf).__module__.startswith("torch.nn") for leaf in taken.modules())


class Scaled(nn.Conv2d):
    """A convolution by inheritance only."""


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (nn.Identity(), "adapter of a network with several widths ends in a convolution or a linear layer.*Identity"),
        (Scaled(3, 4, 1), "ends in a convolution or a linear layer"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), "^a GroupNorm cannot be made narrower"),
        (nn.Conv2d(4, 4, 1, groups=2), "^a Conv2d cannot be made narrower"),
    ],
)
def test_adapters_that_cannot_be_made_narrower_are_refused(adapter: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        narrow_outputs(adapter, 1, 2)


# Shortcuts ----------------------------------------------------------------------------------------------------------


class AppendZeros(nn.Module):
    """ResNet's shortcut (He et al. 2016, option A): every second pixel, zeros behind all channels."""

    def __init__(self, channels: int, *, fitted: bool) -> None:
        super().__init__()
        self.channels, self.fitted = channels, fitted

    def forward(self, x: Tensor) -> Tensor:
        more = x.shape[1] if self.fitted else self.channels  # doubles what it gets, or adds as many as at full width
        return functional.pad(x[..., ::2, ::2], (0, 0, 0, 0, 0, more))


def interleaved(given_: int, made: int) -> nn.Sequential:
    """The same with zeros behind the channels of each group; channels are those of a group."""
    pad = nn.ZeroPad3d((0, 0, 0, 0, 0, made - given_))
    return nn.Sequential(nn.AvgPool2d(1, 2), nn.Unflatten(1, (-1, given_)), pad, nn.Flatten(1, 2))


def residual(shortcut: nn.Module) -> Nested:
    torch.manual_seed(0)
    body = nn.Sequential(CausalConv2d(4, 8, 3, 2, 1, width_groups=2), CausalBatchNorm2d(8, width_groups=2))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), SharedHead(8, 3, width_groups=2))
    stages = [Residual(body, shortcut), CausalConv2d(8, 8, 1, width_groups=2)]
    return Nested(stages, {0: nn.Conv2d(2, 4, 1)}, {1: head}, groups=2)


def test_zeros_behind_each_group_keep_the_laws() -> None:
    net = residual(interleaved(2, 4))
    x = torch.randn(3, 4, 6, 6)
    padded, zeros = net.stages[0].shortcut(x), torch.zeros(3, 2, 3, 3)
    assert torch.equal(padded, torch.cat([x[:, :2, ::2, ::2], zeros, x[:, 2:, ::2, ::2], zeros], 1))
    assert torch.equal(net.stages[0].shortcut(x[:, :2]), padded[:, :4])
    check_nested(net, (2, 6, 6), rebuild=True)


def test_zeros_behind_all_channels_break_them() -> None:
    # Padded to the channels of the width, they put channel 2, of group 1, where the full network has group 0.
    with pytest.raises(
        AssertionError, match=r"^Sized: .* stages\.0, of the first 1 of 2 channel groups and of all: they d"
    ):
        check_nested(residual(AppendZeros(4, fitted=True)), (2, 6, 6), rebuild=False)
    says = r"^Sized: .* stages\.0, of the first 1 of 2 channel groups: .* size of tensor"
    with pytest.raises(AssertionError, match=says):
        check_nested(residual(AppendZeros(4, fitted=False)), (2, 6, 6), rebuild=False)


# Nested -------------------------------------------------------------------------------------------------------------


@examples(few=5, many=100)
@given(st.data())
def test_random_networks_keep_the_laws(data: st.DataObject) -> None:
    groups, size = data.draw(st.integers(1, 3)), st.integers(3, 6)
    channels, kernel, yes = data.draw(st.lists(size, min_size=2, max_size=4)), st.sampled_from([1, 3]), st.booleans()
    stages = [
        nn.Sequential(
            CausalConv2d(a, b, data.draw(kernel), padding="same", bias=data.draw(yes), width_groups=groups),
            CausalBatchNorm2d(b, width_groups=groups, affine=data.draw(yes)),
            nn.ReLU(),
        )
        for a, b in pairwise(channels)
    ]  # fmt: skip
    entries = data.draw(st.sets(st.integers(0, len(stages)), min_size=1)) | {0}
    exits = data.draw(st.sets(st.integers(-1, len(stages) - 1))) | {len(stages) - 1}
    average, conditioned = data.draw(yes), data.draw(yes)
    net = Nested(
        stages,
        {i: nn.Conv2d(2, channels[i], 1) for i in entries},
        {i: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          SharedHead(channels[i + 1], 2, width_groups=groups, average=average,
                                     conditioned=conditioned)) for i in exits},
        statistics=data.draw(st.sampled_from(["shared", "per-entry"])),
        groups=groups,
    )  # fmt: skip
    check_nested(net, (2, 3, 3), members=6)


def test_training_on_all_members_leaves_masked_weights_at_zero() -> None:
    torch.manual_seed(0)
    net = residual(interleaved(2, 4))
    steps = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    x = torch.randn(8, 2, 6, 6)
    for _ in range(3):
        steps.zero_grad()
        net.all(x).square().mean().backward()
        steps.step()
    for layer in (net.stages[0].body[0], net.stages[1]):
        assert not layer.weight[outside(layer)].any()
    assert net(x, Subnet(width=1)).shape == (8, 3)
