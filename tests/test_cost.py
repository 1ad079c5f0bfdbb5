import copy
import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from telescopic import extract
from telescopic.cost import Cost, cost, cost_on_meta, counting, latencies, latency, machine, on_meta, timing
from telescopic.cost.macs import Counter
from telescopic.papers import cnsn

from chance import examples


class Residual(nn.Module):
    """8 channels between two convolutions over 2 channels, and perhaps the input added."""

    def __init__(self, skip: bool, inplace: bool = False) -> None:
        super().__init__()
        self.skip = skip
        self.body = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.ReLU(inplace), nn.Conv2d(8, 2, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skip else self.body(x)


class Calls(nn.Module):
    """A module that is its function."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


# Counting -----------------------------------------------------------------------------------------------------------


class Shuffled(nn.Module):
    """Views, copies, operations in place and of several outputs, of the same shapes in other orders of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 4), nn.GroupNorm(2, 4)])

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, linear, group = self.layers
        x = norm(conv(x))
        x = linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) + x
        x = group(x.contiguous(memory_format=torch.channels_last)).relu_()
        values, places = x.max(1, keepdim=True)
        one, other = x.reshape(1, 2, -1).unbind(1)
        return (one * other).cumsum(-1).sum() + values.mean() + (places * 2).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_remembered_of_shapes_changes_no_cost(dtype: torch.dtype) -> None:
    net, sizes = Shuffled().to(dtype), ((4, 3, 5), (4, 5, 3), (4, 3, 5))
    fresh = []
    for size in sizes:
        counting._FORMS.clear()
        fresh.append(cost(net, size, elementwise=True))
    counting._FORMS.clear()
    cost(net.to(torch.float16), (4, 3, 5))  # of the same shapes
    assert [cost(net.to(dtype), size, elementwise=True) for size in sizes * 2] == fresh * 2
    assert any(counting._FORMS.values()) and not all(counting._FORMS.values())


def test_mlp_by_hand() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    # 4 bytes a number; most is alive in the first layer: 6 inputs and 4 outputs.
    assert cost(net, (2, 3)) == Cost(
        macs=6 * 4 + 4 * 3, params=28 + 15, bytes=4 * 43, peak_activation=4 * 10, largest_feature_map=4 * 6
    )


@pytest.mark.parametrize(
    ("skip", "inplace", "peak"),
    [
        (False, False, 512 + 512),  # before and after the ReLU
        (True, False, 128 + 512 + 512),  # and the input, which waits for the sum
        (True, True, 128 + 512 + 128),  # at the second convolution: input, hidden, output
        (False, True, 512 + 128),
    ],
)
def test_residual_block_by_hand(skip: bool, inplace: bool, peak: int) -> None:
    assert cost(Residual(skip, inplace), (2, 4, 4)) == Cost(
        macs=2 * (16 * 9 * 2 * 8), params=144 + 146, bytes=4 * 290, peak_activation=peak, largest_feature_map=512
    )


def test_views_count_once() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Unflatten(1, (2, 9)), nn.Flatten(), nn.Linear(18, 1))
    assert cost(net, (1, 3, 3)).peak_activation == 4 * (9 + 18)
    assert cost(nn.Flatten(), (2, 3)) == Cost(0, 0, 0, 24, 24)
    assert cost(nn.Identity(), (5,)) == Cost(0, 0, 0, 20, 20)


def test_a_part_that_is_read_later_keeps_the_whole_alive() -> None:
    def forward(x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        wide = torch.cat([left, left, left, left], 1)  # 16 of x, 32 of this
        return wide.sum(1, keepdim=True) + right  # 16 + 32 + 4, then 16 + 4 + 8

    assert cost(Calls(forward), (4,)).peak_activation == 52


def test_results_that_nothing_reads_are_no_feature_maps() -> None:
    pool = nn.MaxPool2d(2)  # makes int64 indices too
    assert cost(pool, (1, 4, 4)) == Cost(0, 0, 0, 64 + 16, 64)
    assert cost(nn.BatchNorm2d(4), (4, 1, 1)).peak_activation == 16 + 16  # means and deviations of the batch


def test_several_outputs_are_all_alive_at_the_end() -> None:
    assert cost(Calls(lambda x: {"a": x + 1, "b": [x + 2, x + 3]}), (2,)).peak_activation == 4 * 8


@examples(few=10, many=300)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.sampled_from([torch.float64, torch.bfloat16]))
def test_a_chain_of_layers_of_any_type(sizes: list[int], dtype: torch.dtype) -> None:
    pairs = list(itertools.pairwise(sizes))
    price = cost(nn.Sequential(*(nn.Linear(a, b, dtype=dtype) for a, b in pairs)), (sizes[0],))
    assert price.macs == sum(a * b for a, b in pairs)
    assert price.bytes == price.params * dtype.itemsize
    assert price.peak_activation == max(a + b for a, b in pairs) * dtype.itemsize
    assert price.largest_feature_map == max(sizes) * dtype.itemsize


def test_shared_parameters_count_once_and_buffers_have_bytes() -> None:
    layer = nn.Linear(3, 3)
    price = cost(nn.Sequential(layer, layer, nn.BatchNorm1d(3)), (3,))
    assert (price.macs, price.params) == (18, 12 + 6)
    assert price.bytes == 4 * 18 + 4 * 6 + 8  # running mean and variance, and an int64 counter


def test_training_mode_is_priced_in_eval_mode_and_left_alone() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    before = copy.deepcopy(net.state_dict())
    assert cost(net, (3,)).peak_activation == 4 * 8  # batch 1 would fail in training mode
    assert all(part.training for part in net.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_nothing_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("copied")

    monkeypatch.setattr(nn.Parameter, "__deepcopy__", refuse)
    monkeypatch.setattr(Tensor, "__deepcopy__", refuse)
    net = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 5), Calls(lambda x: x[0]))
    net.register_parameter("tied", net[0].weight)
    net.plain = torch.ones(3)  # neither parameter nor buffer
    assert all(tensor.is_meta for tensor in (*on_meta(net).parameters(), on_meta(net).plain))
    assert cost(net, (2, 3)).macs == 2 * (12 + 4 * (4 * 5 + 5 * 5))  # two steps; recurrent layers are counted
    huge = nn.Linear(10**6, 10**6, device="meta")  # 4 TB
    assert cost(huge, (10**6,)).macs == 10**12


class Own(nn.Module):
    """A function of the input and of parameters of these sizes."""

    def __init__(self, function: Callable[..., object], *sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(size)) for size in sizes])

    def forward(self, x: Tensor) -> object:
        return self.function(x, *self.weights)


class Of(nn.Module):
    """A function of a layer and the input."""

    def __init__(self, layer: nn.Module, function: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x: Tensor) -> object:
        return self.function(self.layer, x)


def to_itself(layer: nn.Module, x: Tensor) -> object:
    return layer(x, x)


ATTENTION = 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8  # of 5 tokens with 8 features: four projections, two products
ENCODER = ATTENTION + 2 * 5 * 8 * 16
COUNTED: list[tuple[str, nn.Module, tuple[int, ...], int]] = [
    ("bilinear", Of(nn.Bilinear(4, 4, 3), to_itself), (4,), 3 * (4 * 4 + 4)),
    ("bilinear, tokens", Of(nn.Bilinear(4, 4, 3), to_itself), (7, 4), 7 * 3 * (4 * 4 + 4)),
    ("lstm", nn.LSTM(4, 5, batch_first=True), (3, 4), 3 * 4 * (4 * 5 + 5 * 5)),
    ("lstm, 2 layers, both ways", nn.LSTM(4, 5, 2, bidirectional=True, batch_first=True), (3, 4),
     3 * 2 * 4 * (4 * 5 + 5 * 5 + 10 * 5 + 5 * 5)),
    ("gru", nn.GRU(4, 5, batch_first=True), (3, 4), 3 * 3 * (4 * 5 + 5 * 5)),
    ("rnn", nn.RNN(4, 5, batch_first=True), (3, 4), 3 * (4 * 5 + 5 * 5)),
    ("lstm cell", nn.LSTMCell(4, 5), (4,), 4 * (4 * 5 + 5 * 5)),
    ("gru cell", nn.GRUCell(4, 5), (4,), 3 * (4 * 5 + 5 * 5)),
    ("rnn cell", nn.RNNCell(4, 5), (4,), 4 * 5 + 5 * 5),
    ("attention", Calls(lambda x: functional.scaled_dot_product_attention(x, x, x)), (2, 5, 16), 2 * 2 * 5 * 5 * 16),
    ("attention, causal", Calls(lambda x: functional.scaled_dot_product_attention(x, x, x, is_causal=True)),
     (2, 5, 16), 2 * 2 * 5 * 5 * 16),
    ("attention, other values", Calls(lambda x: functional.scaled_dot_product_attention(x, x, x[..., :4])),
     (2, 5, 16), 2 * 5 * 5 * (16 + 4)),
    ("multi-head", Of(nn.MultiheadAttention(8, 2, batch_first=True), lambda m, x: m(x, x, x)[0]), (5, 8), ATTENTION),
    ("multi-head, no weights", Of(nn.MultiheadAttention(8, 2, batch_first=True),
                                  lambda m, x: m(x, x, x, need_weights=False)[0]), (5, 8), ATTENTION),
    ("encoder", nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8), ENCODER),
    ("encoder, norm first", nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True), (5, 8), ENCODER),
    ("decoder", Of(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), to_itself), (5, 8), ENCODER + ATTENTION),
    ("einsum", Own(lambda x, w: torch.einsum("bij,kj->bik", x, w), (7, 4)), (3, 4), 3 * 4 * 7),
    ("matmul, broadcast", Own(lambda x, w: x @ w, (2, 3, 4, 5)), (3, 6, 4), 2 * 3 * 6 * 4 * 5),
    ("matmul by a vector", Own(lambda x, w: x @ w, (4,)), (3, 4), 3 * 4),
    ("dot", Own(lambda x, w: torch.dot(x[0], w), (4,)), (4,), 4),
    ("addmv", Own(lambda x, w, b: torch.addmv(b, x, w), (4,), (1,)), (4,), 4),
    ("addr", Own(lambda x, w, b: torch.addr(b, x[0], w), (3,), (4, 3)), (4,), 4 * 3),
    ("baddbmm", Own(lambda x, w, b: torch.baddbmm(b, x, w), (1, 4, 6), (1, 3, 6)), (3, 4), 3 * 4 * 6),
    ("addbmm", Own(lambda x, w, b: torch.addbmm(b, x, w), (1, 4, 6), (3, 6)), (3, 4), 3 * 4 * 6),
    ("cdist", Own(torch.cdist, (1, 7, 4)), (3, 4), 3 * 7 * 4),
    ("cdist, by a product", Own(torch.cdist, (1, 70, 4)), (30, 4), 30 * 70 * 4),
    ("pdist", Calls(lambda x: torch.pdist(x[0])), (3, 4), 3 * 4),
    ("transposed", nn.ConvTranspose2d(2, 3, 2, stride=2), (2, 3, 3), 9 * 2 * 3 * 4),
    ("transposed, groups", nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 3, 3), 9 * 4 * 3 * 9),
    ("grouped", nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5), 9 * 6 * 2 * 9),
    ("3-d", nn.Conv3d(2, 3, 3), (2, 5, 5, 5), 27 * 2 * 3 * 27),
    ("embedding", Of(nn.Embedding(5, 3), lambda e, x: e((x > 0).long())), (4,), 0),
    ("norms and moves", nn.Sequential(nn.GroupNorm(2, 4), nn.PReLU(4), nn.BatchNorm1d(4), nn.MaxPool1d(2)), (4, 6), 0),
    ("cat, gather, scatter", Calls(lambda x: torch.cat([x.gather(1, x.argsort(1)), x.scatter_add(1, x.argsort(1), x)])),
     (4,), 0),
]  # fmt: skip


@pytest.mark.parametrize(("module", "shape", "macs"), [pytest.param(*row, id=name) for name, *row in COUNTED])
def test_one_counter_by_hand(module: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    # By shape alone, and while torch's CPU runs its own fused operations; nothing warns.
    assert cost(module, shape).macs == macs
    for context in (torch.no_grad, torch.inference_mode):
        with context(), Counter() as counter:
            module.eval()(torch.rand(1, *shape))
        assert counter.macs == macs


def test_fused_operations_by_hand() -> None:
    layer, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(1, 5, 8)
    attention = layer.self_attn
    projections = (attention.in_proj_weight, attention.in_proj_bias, attention.out_proj.weight, attention.out_proj.bias)
    norms = (layer.norm1.weight, layer.norm1.bias, layer.norm2.weight, layer.norm2.bias)
    ends = (layer.linear1.weight, layer.linear1.bias, layer.linear2.weight, layer.linear2.bias)
    with torch.no_grad(), Counter() as counter:
        torch._transformer_encoder_layer_fwd(x, 8, 2, *projections, False, False, 1e-5, *norms, *ends)
    assert counter.macs == ENCODER
    with torch.no_grad(), Counter() as counter:
        torch._native_multi_head_attention(x, x, x, 8, 2, *projections)
    assert counter.macs == ATTENTION


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.linalg.inv, "aten::linalg_inv_ex"),
        (lambda x: torch.fft.rfft(x).abs(), "aten::_fft_r2c"),
        (lambda x: torch.linalg.solve(x, x), "aten::_linalg_solve_ex"),
        (lambda x: torch.ops.telescopic_test.twice(x), "telescopic_test::twice"),
    ],
)
def test_what_cannot_be_counted_is_named(function: Callable[[Tensor], object], name: str) -> None:
    with torch.library._scoped_library("telescopic_test", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x @ x, "CompositeExplicitAutograd")
        with pytest.warns(UserWarning, match=rf"^the multiply-adds of {name} are not known, and not counted$"):
            cost(Calls(function), (4, 4))


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_any_surroundings_give_the_price_that_torch_counts(context: Callable[[], object]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 7)).eval()
    with FlopCounterMode(display=False) as flops:
        net(torch.zeros(1, 3, 8, 8))
    with context():  # type: ignore[attr-defined]
        price = cost(net, (3, 8, 8))
    assert price == Cost(flops.get_total_flops() // 2, 112 + 8 + 259, 4 * (379 + 8) + 8, 4 * (192 + 36), 4 * 192)


def test_tensors_made_in_forward_lie_on_meta_too() -> None:
    assert cost(Calls(lambda x: x + torch.zeros(3)), (3,)).peak_activation == 36


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (
            nn.Linear(3, 4),
            (5,),
            r"this Linear failed on an input of shape \(1, 5\), batch first: .*Is input_shape right",
        ),
        (nn.Conv2d(3, 4, 3), (4, 8, 8), r"this Conv2d failed on an input of shape \(1, 4, 8, 8\)"),
        (nn.Conv2d(3, 4, 3), (3, 2, 2), r"failed on an input of shape"),
        (Calls(lambda x: x.unbind()[1]), (2,), r"failed on an input of shape \(1, 2\)"),
        (nn.Linear(3, 4), (0,), r"input_shape \(0,\) must be whole numbers above 0"),
        (nn.Linear(3, 4), (3.0,), "must be whole numbers above 0"),
        (nn.Linear(3, 4), 3, "that of one example without the batch, for example"),
        (nn.LazyLinear(4), (3,), "lazy layers without a shape: call it on an input once"),
        (Calls(lambda x: x if x.sum() > 0 else -x), (3,), "its forward pass reads values.*branches on values out"),
        (Calls(lambda x: x[x > 0]), (3,), "its forward pass reads values"),
        (Calls(functools.partial(torch.add, torch.ones(3))), (3,), "make constants buffers"),
    ],
)
def test_what_cannot_be_priced(module: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cost(module, shape)


# Element by element -------------------------------------------------------------------------------------------------


def elements(module: nn.Module, shape: tuple[int, ...]) -> int:
    """What `elementwise` adds to the multiply-adds; it changes nothing else."""
    plain, full = cost(module, shape), cost(module, shape, elementwise=True)
    assert replace(full, macs=plain.macs) == plain
    assert cost_on_meta(on_meta(module), shape, elementwise=True) == full
    return full.macs - plain.macs


def test_both_conventions_give_the_paper_of_cnsn() -> None:
    net = cnsn.network()
    costs = [[cost(extract(net, m), (3, 32, 32), elementwise=e).macs for m in net.grid] for e in (False, True)]
    assert [m.entry for m in net.grid] == [7, 2, 0]
    assert [f"{macs / 1e6:.1f}" for macs in costs[0]] == ["123.5", "273.9", "313.2"]
    assert [f"{macs / 1e9:.3f}" for macs in costs[1]] == ["0.124", "0.275", "0.314"]
    printed = {row.entry: row.gmacs for row in cnsn.ROWS}
    assert [round(macs / 1e9, 3) for macs in costs[1]] == [printed[m.entry] for m in net.grid]
    # The usual convention gives none of the printed figures.
    assert [f"{macs / 1e9:.3f}" for macs in costs[0]] == ["0.123", "0.274", "0.313"]


def test_a_small_network_element_by_element() -> None:
    conv = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2))
    net = nn.Sequential(*conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    # 2 x 4 x 4 features: bias, BatchNorm twice, ReLU, pooling; 2 x 2 x 2 into the other pooling; bias of the scores.
    assert elements(net, (1, 4, 4)) == 5 * 32 + 8 + 3
    assert cost(net, (1, 4, 4), elementwise=True).macs == 9 * 32 + 6 + 171


@pytest.mark.parametrize("inplace", [False, True])
def test_a_residual_sum_counts_once_and_a_missing_bias_does_not(inplace: bool) -> None:
    assert elements(Residual(True, inplace), (2, 4, 4)) == 8 * 16 + 2 * 16 + 2 * 16  # ReLU, second bias, sum
    assert elements(Residual(False, inplace), (2, 4, 4)) == 8 * 16 + 2 * 16


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        nn.ReLU,
        nn.ReLU6,
        nn.SiLU,
        nn.Hardswish,
        nn.Hardsigmoid,
        nn.Hardtanh,
        nn.LeakyReLU,
        nn.ELU,
        nn.SELU,
        nn.CELU,
        nn.Mish,
    ],
)
def test_activations_count_once(kind: Callable[..., nn.Module], inplace: bool) -> None:
    assert elements(kind(inplace=inplace), (2, 3)) == 6


@pytest.mark.parametrize(
    ("module", "shape", "count"),
    [
        (nn.Linear(3, 4, bias=False), (3,), 0),
        (nn.Linear(3, 4), (5, 3), 5 * 4),  # ptflops says 4
        (nn.Linear(3, 4), (2, 5, 3), 2 * 5 * 4),
        (nn.Conv1d(3, 4, 2), (3, 6), 4 * 5),
        (nn.ConvTranspose2d(2, 3, 2, stride=2), (2, 3, 3), 3 * 6 * 6),
        (nn.BatchNorm1d(3), (3, 5), 2 * 15),
        (nn.BatchNorm2d(3, affine=False), (3, 2, 2), 12),
        (nn.BatchNorm2d(3, track_running_stats=False), (3, 2, 2), 2 * 12),
        (nn.GroupNorm(1, 3), (3, 2, 2), 2 * 12),
        (nn.LayerNorm(5), (3, 5), 2 * 15),
        (nn.InstanceNorm2d(3), (3, 2, 2), 12),
        (nn.PReLU(3), (3, 5), 15),
        (nn.GELU(), (5,), 5),
        (nn.Sigmoid(), (5,), 5),
        (nn.LogSigmoid(), (5,), 5),
        (nn.Threshold(0, 1, inplace=True), (5,), 5),
        (nn.GLU(), (6,), 3),
        (nn.Softmax(1), (5,), 5),
        (nn.LogSoftmax(1), (5,), 5),
        (nn.MaxPool1d(2), (3, 6), 18),
        (nn.AvgPool2d(3, stride=1), (2, 4, 4), 32),
        (nn.MaxPool3d(2), (2, 4, 4, 4), 128),
        (nn.AdaptiveAvgPool1d(1), (2, 6), 12),
        (nn.AdaptiveAvgPool2d(2), (2, 4, 4), 32),
        (nn.AdaptiveMaxPool3d(1), (2, 2, 2, 2), 16),
        (Calls(lambda x: x.mean((2, 3))), (2, 4, 4), 32),
        (Calls(lambda x: x.amax(1)), (6,), 6),
        (Calls(lambda x: (x + x).sum()), (6,), 12),
        (Calls(lambda x: x * torch.ones(4, 1)), (6,), 24),  # of the result, which is larger than the input
        (nn.Upsample(scale_factor=2), (1, 3, 3), 36),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 3, 3), 36),
        (nn.Sequential(nn.Flatten(), nn.Unflatten(1, (3, 2)), nn.Dropout(), nn.ConstantPad1d(1, 0.0)), (6,), 0),
        (Calls(lambda x: torch.cat([x, x.clone(), x.mT.contiguous().mT, x.double().float()], 1)), (2, 3), 0),
    ],
)
def test_what_counts_how_often(module: nn.Module, shape: tuple[int, ...], count: int) -> None:
    assert elements(module, shape) == count


# Timing -------------------------------------------------------------------------------------------------------------


class Clock:
    """Stands still until a module that is timed moves it."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def module(self, *milliseconds: float) -> nn.Module:
        """Take the given times in turn, over and over."""
        durations = itertools.cycle(milliseconds)

        def wait(_: Tensor) -> None:
            self.now += next(durations) / 1000

        return Calls(wait)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_a_sleep_takes_its_time() -> None:
    timed = latency(Calls(lambda _: time.sleep(0.002)), (1,), seconds=0.05)
    assert 2 <= timed.median_ms <= timed.p95_ms
    assert (timed.batch, timed.threads, timed.device, timed.machine) == (1, torch.get_num_threads(), "cpu", machine())


def test_median_and_percentile(clock: Clock) -> None:
    # A budget of 1000 ms: in each fifth of it, 40 ms warm up and 160 ms are timed.
    timed = latency(clock.module(1), (1,), seconds=1.0)
    assert (timed.median_ms, timed.p95_ms) == pytest.approx((1, 1))
    assert timed.runs == pytest.approx(5 * 160, abs=5)
    timed = latency(clock.module(*[2] * 15, 9, 2, 2, 2, 40), (1,), seconds=4.0)  # 1 of 20 takes 9 ms, 1 takes 40
    assert (timed.median_ms, timed.p95_ms) == pytest.approx((2, 9))


def test_a_slow_module_is_timed_three_times(clock: Clock) -> None:
    begin = clock.now
    assert latency(clock.module(700), (1,), seconds=0.5).runs == 3
    assert clock.now - begin == pytest.approx(6 * 0.7)  # each after one pass to warm up


def test_members_take_turns(clock: Clock) -> None:
    order: list[str] = []
    turns: list[tuple[int, int]] = []
    members = {"a": clock.module(1), "b": clock.module(4)}
    makers = [lambda name=name: order.append(name) or members[name] for name in members]
    first, second = latencies(makers, (2,), seconds=0.5, progress=lambda done, of: turns.append((done, of)))
    assert order == ["a", "b"] * 5
    assert turns == [(i, 10) for i in range(1, 11)]
    assert (first.median_ms, second.median_ms) == pytest.approx((1, 4))
    assert clock.now == pytest.approx(1, abs=0.03)  # half a second each


def test_threads_are_set_and_restored() -> None:
    before = torch.get_num_threads()
    seen: set[tuple[object, ...]] = set()

    def look(x: Tensor) -> None:
        seen.add((torch.get_num_threads(), torch.is_inference_mode_enabled(), *x.shape))

    timed = latency(Calls(look), (2, 3), batch=4, threads=before + 1, seconds=0.001)
    assert (timed.threads, timed.batch) == (before + 1, 4)
    assert seen == {(before + 1, True, 4, 2, 3)}
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match=r"failed on an input of shape \(1, 5\)"):
        latency(nn.Linear(3, 4), (5,), threads=before + 1)
    assert torch.get_num_threads() == before


def test_timing_uses_eval_mode_and_the_modules_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    class Norm(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            places.add((self.weight.data_ptr(), self.training))
            return super().forward(x)

    places: set[tuple[int, bool]] = set()
    net = nn.Sequential(Norm(3)).train()
    state = torch.get_rng_state()
    latency(net, (3,), seconds=0.001)
    assert places == {(net[0].weight.data_ptr(), False)} and net[0].training
    assert net[0].num_batches_tracked == 0 and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("numbers", [{"threads": 0}, {"seconds": 0}, {"seconds": float("nan")}, {"batch": 0}])
def test_impossible_timings_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"1 thread or more|whole numbers? above 0"):
        latency(nn.Linear(2, 2), (2,), **numbers)  # type: ignore[arg-type]


def test_the_fingerprint_is_one_stable_line() -> None:
    assert machine() == machine() and machine.__wrapped__() == machine()
    assert f"torch {torch.__version__}" in machine() and "CPUs" in machine()
    assert 10 < len(machine()) < 200 and "\n" not in machine()
