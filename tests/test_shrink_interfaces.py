"""Filters in networks that read more of a layer than its outputs, have several ways in, or are wrapped."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_shrink import exact, filters, kill
from test_shrink_channels import Forward
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

import telescopic as tl
from telescopic import shrink
from telescopic.anytime.rows import _of_module
from telescopic.architecture import build, describe
from telescopic.layers import CausalConv2d, Filter
from telescopic.layers.filter import attach_, attached, detach_
from telescopic.layers.narrowing import narrow, narrow_outputs
from telescopic.shrink.family import living
from telescopic.shrink.shapes import reshape_

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ROWS = IMAGES[:, :, 0, 0]
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def widths(log: shrink.Log) -> list[int]:
    return list(log.left.values())


# A layer keeps its interface ------------------------------------------------------------------------------------------


def test_a_filter_is_a_child_of_its_layer() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 4)
    plain, seen = layer(ROWS.float()), list[Tensor]()
    layer.register_forward_hook(lambda _, __, out: seen.append(out))
    attach_(layer, Filter(4))
    layer.filter.theta.data[1] = 0
    made = layer(ROWS.float())
    assert torch.equal(made, plain * layer.filter.theta) and seen[-1] is made
    assert type(layer) is nn.Linear and list(layer.state_dict()) == ["weight", "bias", "filter.theta", "filter.alive"]
    other = copy.deepcopy(layer)
    other.filter.theta.data[2] = 0
    assert not other(ROWS.float())[:, 2].any() and torch.equal(layer(ROWS.float()), made)
    detached = {name: t.detach() * 2 for name, t in layer.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(layer, detached, (ROWS.float(),)), made * 4)
    detach_(other)
    assert attached(other) is None and torch.equal(other(ROWS.float()), plain) and attached(layer)
    with pytest.raises(ValueError, match=r"Linear has an attribute 'filter'"):
        attach_(layer, Filter(4))


def test_a_pickled_filter_is_not_lost_to_the_next_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch counts hooks from 0 in each process; one that came from a file must be counted too."""
    layer = nn.Linear(2, 3)
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    attach_(layer, Filter(3))
    layer.filter.theta.data[:] = 0
    torch.save(layer, tmp_path / "layer.pt")
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    layer = torch.load(tmp_path / "layer.pt", weights_only=False)
    for _ in range(9):
        layer.register_forward_hook(lambda *_: None)
    assert not layer(torch.ones(1, 2)).any()


def viewed(self: Any, x: Tensor) -> Tensor:
    return self.b(torch.relu(self.a(x)).view(-1, self.a.out_channels, 4, 4)).flatten(1)


def test_a_forward_pass_that_reads_a_layers_attributes() -> None:
    torch.manual_seed(0)
    net = shrink.add_filters(Forward(viewed, a=nn.Conv2d(3, 6, 5), b=nn.Conv2d(6, 2, 1)).double(), IMAGES)
    assert widths(exact(net, IMAGES)) == [4] and net.a.out_channels == net.b.in_channels == 4


def encoder(**how: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0, **how)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 2)).double()


@pytest.mark.parametrize("how", [{}, {"activation": "gelu", "norm_first": True}])
def test_a_transformer_runs_its_filters_in_both_modes(how: dict[str, Any]) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"0\.layers\.0\.linear2 could never .* layer_norm in 0\.layers\.0\.norm"):
        shrink.add_filters(encoder(), x)
    net = shrink.add_filters(encoder(**how), x, where=lambda path: path.endswith("linear1"))
    assert list(filters(net)) == ["0.layers.0.linear1.filter", "0.layers.1.linear1.filter"]
    assert widths(exact(net, x)) == [8, 8]
    plain = shrink.fold(net)  # which takes torch's fused path in eval mode
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x), net.train()(x), **CLOSE)
        torch.testing.assert_close(plain.eval()(x), net.eval()(x), **CLOSE)
        net[0].layers[0].linear1.filter.theta.zero_()
        without = copy.deepcopy(net)
        detach_(without[0].layers[0].linear1)
        without[0].layers[0].linear2.weight.zero_()  # what reads it, times 0
        torch.testing.assert_close(net(x), without(x), **CLOSE)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_of_padded_tokens_runs() -> None:
    torch.manual_seed(0)
    x, padding = torch.randn(3, 5, 8), torch.arange(5) >= torch.tensor([[3], [5], [4]])
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0)
    net: Any = nn.TransformerEncoder(layer, 1)
    example = lambda net: net(x, src_key_padding_mask=padding)  # noqa: E731
    net = shrink.add_filters(net.eval(), example, where=lambda path: path.endswith("linear1"))
    kill(net)
    with torch.no_grad():
        y = example(net)
        assert widths(shrink.compact_(net)) == [8]
        torch.testing.assert_close(example(net), y)


def test_tied_weights_stay_tied() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 6), nn.Linear(6, 3), nn.Linear(3, 6), nn.Linear(6, 2)]
    layers[2].weight = layers[0].weight
    net = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])
    made = shrink.add_filters(net.double(), ROWS)
    made[4].weight = made[0].weight  # as a tie_weights() does
    assert widths(exact(made, ROWS)) == [4, 4] and made[4].weight is made[0].weight
    torch.testing.assert_close(shrink.fold(made).eval()(ROWS), made.eval()(ROWS), **CLOSE)


FUNCTIONAL: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "in training": (
        lambda self, x: self.b(functional.linear(x, self.a.weight, self.a.bias) if self.training else self.a(x)),
        r"a filter behind a would do nothing in training mode",
    ),
    "in eval": (
        lambda self, x: self.b(self.a(x) if self.training else functional.linear(x, self.a.weight, self.a.bias)),
        r"no place for a filter: .* calls in eval mode",
    ),
    "too": (
        lambda self, x: self.b(self.a(x).relu() + functional.linear(x, self.a.weight).relu()),
        r"a filter behind a could never .* linear in b \(Linear\), which takes it as something else than 0",
    ),
    "transposed": (
        lambda self, x: self.b(self.c(self.a(x).relu() @ self.a.weight)),
        r"a\.filter cannot be folded into a, whose weight is read by",
    ),
}


@pytest.mark.parametrize("how", FUNCTIONAL)
def test_a_layer_whose_weights_are_used_without_it_is_refused(how: str) -> None:
    forward, error = FUNCTIONAL[how]
    net = Forward(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 2), c=nn.Linear(3, 6)).double()
    if how != "transposed":
        del net.c
    with pytest.raises(ValueError, match=error):
        shrink.add_filters(net, ROWS, where=lambda path: path == "a")


def test_hooks_are_not_lost_where_layers_are_made_anew() -> None:
    causal = CausalConv2d(4, 4, 3, width_groups=2)
    attach_(causal, Filter(4))
    with pytest.raises(ValueError, match="CausalConv2d with hooks"):
        narrow(nn.Sequential(causal), 1)
    assert _of_module(causal, "", None) is None  # type: ignore[arg-type]
    first = nn.Conv2d(3, 4, 1)
    attach_(first, Filter(4))
    with pytest.raises(ValueError, match="Conv2d with hooks"):
        narrow_outputs(nn.Sequential(first, nn.ReLU()), 1, 2)
    block = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(128, 2)).double().eval()
    block.register_forward_hook(lambda _, __, out: 2 * out)
    net = tl.nest([block], input_shape=(3, 8, 8))
    torch.testing.assert_close(tl.extract(net)(IMAGES), net(IMAGES), **CLOSE)
    torch.testing.assert_close(tl.fold_bn(shrunk := images())(IMAGES), shrunk(IMAGES), **CLOSE)


def images(*middle: nn.Module) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), *middle, nn.ReLU(), nn.Conv2d(6, 2, 1)).double().eval()
    return shrink.add_filters(net, IMAGES)


def test_filters_in_a_description() -> None:
    net = images(nn.BatchNorm2d(6))
    text = describe(net)
    assert text["children"][1][1] == {"class": "BatchNorm2d", "num_features": 6,
                                      "filter": {"class": "layers.Filter", "channels": 6}}  # fmt: skip
    built = build(text)
    assert attached(built[1]) and repr(built) == repr(net)
    for wrong in ({"class": "ReLU"}, 3):
        text["children"][1][1]["filter"] = wrong
        with pytest.raises(ValueError, match="filter"):
            build(text)
    endless = text["children"][1][1]
    for _ in range(300):
        endless = {"class": "Linear", "in_features": 1, "out_features": 1, "filter": endless}
    with pytest.raises(ValueError, match="levels"):
        build(endless)
    with pytest.raises(ValueError, match=r"0\.1\.0"):
        build({"class": "layers.Filtered", "parts": []})


# Sizes in attributes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("kind", [nn.InstanceNorm2d, nn.BatchNorm2d])
def test_norms_with_and_without_tensors_say_their_size(kind: Any, affine: bool, track: bool) -> None:
    torch.manual_seed(0)
    net = images(kind(6, affine=affine, track_running_stats=track))
    kill(net)
    y, masked = net(IMAGES), copy.deepcopy(net)
    log = shrink.compact_(net)
    assert widths(log) == [4] and net[1].num_features == 4
    torch.testing.assert_close(net(IMAGES), y, **CLOSE)
    log.replay_(masked)
    assert repr(masked) == repr(net)
    plain = shrink.fold(net)
    torch.testing.assert_close(plain(IMAGES), y, **CLOSE)
    assert plain[1].num_features == 4 and plain[1].affine
    other = images(kind(6, affine=affine, track_running_stats=track))
    reshape_(other, {name: tuple(t.shape) for name, t in tl.architecture.named_tensors(net).items()}, IMAGES)
    assert repr(other) == repr(net)
    net.load_state_dict(other.state_dict())


def test_layers_behind_that_have_no_tensors_follow() -> None:
    torch.manual_seed(0)
    bare = nn.BatchNorm2d(6, affine=False, track_running_stats=False)
    pairs = nn.Flatten(2), nn.Unflatten(2, (3, 12)), nn.Flatten(1), nn.Unflatten(1, (6, 6, 6))
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), Filter(6), nn.InstanceNorm2d(6), bare, nn.ReLU(), *pairs, nn.Conv2d(6, 2, 1)
    )
    masked = copy.deepcopy(net.double())
    log = exact(net, IMAGES)
    assert log.sizes == {"2": {"num_features": 4}, "3": {"num_features": 4}, "8": {"unflattened_size": (4, 6, 6)}}
    assert net[6].unflattened_size == (3, 12)
    log.replay_(masked)
    assert repr(masked) == repr(net)


def test_an_unflatten_of_channels_loses_its_rows() -> None:
    torch.manual_seed(0)
    split = nn.Sequential(nn.Unflatten(1, (3, 2)), nn.Flatten(1, 2))
    net = shrink.add_filters(nn.Sequential(nn.Conv2d(3, 6, 3), split, nn.ReLU(), nn.Conv2d(6, 2, 1)).double(), IMAGES)

    def some(net: Any) -> None:
        net[0].filter.theta.data[[0, 2, 3]] = 0

    log = exact(net, IMAGES, dead=some)
    assert widths(log) == [4] and log.sizes == {"1.0": {"unflattened_size": (2, 2)}}


def test_a_refused_compaction_leaves_sizes_as_they_were() -> None:
    forward = lambda self, x: self.b(self.norm(self.f(self.a(x))).relu().view(-1, 6 * 36))  # noqa: E731
    net = Forward(forward, a=nn.Conv2d(3, 6, 3), f=Filter(6), norm=nn.InstanceNorm2d(6), b=nn.Linear(216, 2)).double()
    kill(net)
    before, y = repr(net), net(IMAGES)
    with pytest.warns(UserWarning, match=r"filter f stay: view\(-1, 216\)"):
        assert not shrink.compact_(net, example=IMAGES)
    assert repr(net) == before and torch.equal(net(IMAGES), y)


@pytest.mark.parametrize(
    "layer",
    [
        nn.GroupNorm(6, 6, affine=False),
        nn.LayerNorm((6, 6), elementwise_affine=False),
        nn.LocalResponseNorm(2),
        nn.Softmax2d(),
        nn.RMSNorm((6, 6)),
        nn.Unflatten(1, (2, 3)),
        nn.MultiheadAttention(36, 2, batch_first=True),
    ],
)
def test_what_counts_channels_otherwise_is_refused_by_name(layer: nn.Module) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        if isinstance(self.layer, nn.MultiheadAttention):
            tokens = x.flatten(2)
            return self.b(self.layer(tokens, tokens, tokens)[0].unflatten(2, (6, 6)))
        return self.b(self.layer(x).reshape(len(x), 6, 6, 6))

    net = Forward(forward, a=nn.Conv2d(3, 6, 3), layer=layer, b=nn.Conv2d(6, 2, 1)).double()
    with pytest.raises(ValueError, match=r"a filter behind a could never .* in |reshape"):
        shrink.add_filters(net, IMAGES)


def test_lazy_layers_are_asked_to_be_called_first() -> None:
    net = nn.Sequential(nn.LazyConv2d(6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    with pytest.raises(ValueError, match="Sequential has lazy layers"):
        shrink.add_filters(net, IMAGES.float())
    net(IMAGES.float())
    assert list(filters(shrink.add_filters(net, IMAGES.float()))) == ["0.filter"]


# What a training loop calls -------------------------------------------------------------------------------------------


class Projected(nn.Module):
    """A network of which the training loop calls more than `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 6), nn.ReLU())
        self.head, self.project = nn.Linear(6, 2), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def both(net: Any) -> Any:
    return net(ROWS), net.project(net.body(ROWS))


def silently(net: Any) -> None:
    both(net)


def test_a_head_that_no_example_reaches_keeps_what_it_may_read() -> None:
    torch.manual_seed(0)
    error = (
        r"behind body\.0 could never .* project\.weight, project\.bias, which the example does not reach\. .*function"
    )
    with pytest.raises(ValueError, match=error):
        shrink.add_filters(Projected().double(), ROWS)
    net: Any = Projected().double()
    net.body.insert(1, Filter(6))
    kill(net)
    log = shrink.compact_(net, example=ROWS)
    assert not log and "project.weight" in log.held["body.1"]
    assert not shrink.order_(net, example=ROWS)  # which would have shuffled what project reads
    both(net)[1].sum().backward()
    assert widths(shrink.compact_(net, example=both)) == [4]


@pytest.mark.parametrize("example", [both, silently])
def test_an_example_that_calls_what_training_calls(example: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    net = shrink.add_filters(Projected().double(), example)
    assert list(filters(net)) == ["body.0.filter"], "none behind what the loop reads"
    assert net.body[0].filter.params.tolist() == [4 + 2 + 4 + 1] * 6  # the row and bias, two columns, θ
    kill(net)
    y = both(net)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    assert widths(shrink.compact_(net, optimizer)) == [4] and net.project.in_features == 4
    torch.testing.assert_close(both(net), y, **CLOSE)
    torch.testing.assert_close(both(shrink.fold(net)), y, **CLOSE)
    net.project(net.body(ROWS)).sum().backward()
    optimizer.step()


def test_inputs_of_a_function_are_inputs() -> None:
    """A layer whose outputs are added to them does not change its size."""
    residual = Forward(
        lambda self, x: self.b(x / 2 + self.a(x)) + self.d(self.c(x)),
        a=nn.Linear(3, 3), b=nn.Linear(3, 2), c=nn.Linear(3, 4), d=nn.Linear(4, 2),
    )  # fmt: skip
    assert list(filters(shrink.add_filters(residual.double(), lambda net: net(ROWS)))) == ["c.filter"]


def test_a_tensor_that_is_no_parameter_holds_what_it_meets() -> None:
    net = Forward(lambda self, x: self.b(self.a(x) * self.mask), a=nn.Linear(3, 6), b=nn.Linear(6, 2)).double()
    net.mask = torch.ones(6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"behind a could never .* neither a parameter nor a buffer"):
        shrink.add_filters(net, ROWS)


# What torch wraps -----------------------------------------------------------------------------------------------------


def counted(calls: list[int]) -> Callable[..., Any]:
    """A backend of torch.compile that notes each time that it is asked to compile something."""

    def compile(graph: Any, _: Any) -> Any:
        calls.append(1)
        return graph.forward

    return compile


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which the compiler asks for
@pytest.mark.parametrize("where", ["all", "inside", "in place"])
def test_compiled_networks_are_looked_into(where: str) -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    calls = list[int]()
    backend = counted(calls)
    inner = images(nn.BatchNorm2d(6)).train()
    if where == "inside":
        inner = nn.Sequential(torch.compile(inner[:2], backend=backend), *inner[2:])
    elif where == "in place":
        inner.compile(backend=backend)
    net: Any = torch.compile(inner, backend=backend) if where == "all" else inner
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(2):
        net(IMAGES).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    kill(net)
    y, masked = net.eval()(IMAGES), copy.deepcopy(inner)
    before = len(calls)
    assert before and living(net) == (4,)
    log = shrink.compact_(net, optimizer, example=IMAGES)
    assert (widths(log) == [4] and where == "inside") or list(log.left) == ["1.filter"]
    assert len(calls) == before, "nothing was compiled on the way"
    torch.testing.assert_close(net(IMAGES), y, **CLOSE)
    assert len(calls) > before, "it is compiled anew"
    log.replay_(masked)
    for part in (net, masked):
        part.train()(IMAGES).square().mean().backward()
    grads = [[p.grad for p in part.parameters()] for part in (net, masked)]
    torch.testing.assert_close(*grads, **CLOSE)
    torch.testing.assert_close(shrink.fold(net, IMAGES).eval()(IMAGES), net.eval()(IMAGES), **CLOSE)


def test_code_compiled_without_a_filter_is_not_run_with_one() -> None:
    """Torch does not look for hooks when it asks whether code that it compiled before will do."""
    torch.compiler.reset()
    plain = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)).double()
    made = shrink.add_filters(plain, IMAGES)
    folded = shrink.fold(made)
    for net in (plain, made, folded, plain, made):
        torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(IMAGES), net(IMAGES), **CLOSE)


def test_what_comes_back_of_a_compiled_network_is_ordinary() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 2)).double()
    compiled: Any = torch.compile(plain, backend="eager")
    made = shrink.add_filters(compiled, IMAGES)
    assert type(made) is nn.Sequential and attached(made[0]) and not attached(plain[0])
    assert type(shrink.fold(torch.compile(made, backend="eager"))) is nn.Sequential
    assert tl.cost(compiled, (3, 8, 8)) == tl.cost(plain, (3, 8, 8))
    family: Any = torch.compile(net := tl.nest(compiled, input_shape=(3, 8, 8)), backend="eager")
    assert torch.equal(tl.extract(family)(IMAGES), tl.extract(net)(IMAGES))
    assert tl.causal_(copy.deepcopy(compiled), 2, input_shape=(3, 8, 8))._orig_mod[3].width_groups == 2


def test_a_compiled_network_is_saved_as_what_was_compiled(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Linear(3, 2)).double()
    tl.save(torch.compile(plain, backend="eager"), tmp_path / "a.safetensors")
    assert torch.equal(tl.load(tmp_path / "a.safetensors")(ROWS), plain(ROWS))
    inside = nn.Sequential(torch.compile(plain, backend="eager"))
    with pytest.raises(tl.BundleError, match=r"0 is what torch\.compile returned"):
        tl.save(inside, tmp_path / "b.safetensors")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_looked_into_is_refused_by_name(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 2)).double().eval()
    wrapped = [
        (torch.jit.trace(plain, IMAGES), "of torch.jit"),  # type: ignore[no-untyped-call]
        (nn.DataParallel(plain), r"DataParallel .* \.module"),
    ]
    for net, error in wrapped:
        for ask in (
            lambda net: shrink.add_filters(net, IMAGES),
            lambda net: shrink.compact_(net, example=IMAGES),
            lambda net: shrink.fold(net, IMAGES),
            lambda net: tl.cost(net, (3, 8, 8)),
            lambda net: tl.nest(net, input_shape=(3, 8, 8)),
            lambda net: tl.causal_(net, 2),
            lambda net: tl.extract(net),
            lambda net: tl.fold_bn(net),
            lambda net: tl.save(net, tmp_path / "net.safetensors"),
        ):
            with pytest.raises(ValueError, match=error):
                ask(net)
    assert not list(tmp_path.iterdir())


def test_a_filtered_network_is_exported_and_pickled() -> None:
    net = images(nn.BatchNorm2d(6))
    kill(net)
    exported = torch.export.export(net, (IMAGES,)).module()
    torch.testing.assert_close(exported(IMAGES), net(IMAGES), **CLOSE)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert torch.equal(again(IMAGES), net(IMAGES))
    assert widths(shrink.compact_(again)) == [4]
