"""Which channels belong together, in networks of any kind; filters put in, and folded away."""

import copy
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_shrink import IMAGES, LeNet, exact, filters, kill, lived
from torch import Tensor, nn
from torch.nn import functional

from telescopic import shrink
from telescopic.layers import Filter, Residual
from telescopic.networks import resnet
from telescopic.shrink import rules


class Forward(nn.Module):
    """Layers, and a forward pass that gets them and the input."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.forward_pass = forward

    def forward(self, x: Tensor) -> Any:
        return self.forward_pass(self, x)


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(rules, "LAYERS", dict(rules.LAYERS))
    monkeypatch.setattr("telescopic.shrink.compact.LAYERS", rules.LAYERS)
    monkeypatch.setattr("telescopic.shrink.adding.LAYERS", rules.LAYERS)
    monkeypatch.setattr("telescopic.shrink.folding.LAYERS", rules.LAYERS)
    yield


def widths(log: shrink.Log) -> list[int]:
    return list(log.left.values())


# What a channel takes with it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("bias", [False, True])
def test_convolutions(dimensions: int, transposed: bool, groups: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain, kind = (getattr(nn, f"Conv{name}{dimensions}d") for name in ("", "Transpose" if transposed else ""))
    middle = kind(6, 12, 3, stride=2, padding=1, groups=groups, bias=bias)
    parts = [plain(4, 6, 1), Filter(6), nn.ReLU(), middle, Filter(12), nn.ReLU(), plain(12, 3, 1)]
    net = nn.Sequential(*parts)

    def some(net: nn.Sequential) -> None:
        net[1].theta.data[[0, 1, 4]] = 0
        net[4].theta.data[[1, 3, 7, 8, 9]] = 0

    log = exact(net, torch.randn(3, 4, *[6] * dimensions), dead=some)
    # Two groups lose one each of the first's (0 and 1, but only 4), two of the second's (1 and 3; 7, 8, 9).
    if groups < 6:
        assert log.left == ({"1": 3, "4": 7} if groups == 1 else {"1": 4, "4": 8})
    else:  # depthwise, two outputs each: 8 and 9 are of input 4, which goes if both do
        assert log.left == {"1": 5, "4": 10} if bias else {"1": 3, "4": 6}
    assert middle.weight.shape[:2] == ((net[3].in_channels, net[3].out_channels // net[3].groups) if transposed else
                                       (net[3].out_channels, net[3].in_channels // net[3].groups))  # fmt: skip
    assert net[3].groups == (len(net[1].theta) if groups == 6 else groups)


def block(wide: int, norm: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, wide, 3, padding=1, bias=not norm)]
    return nn.Sequential(*layers, *[nn.BatchNorm2d(wide)] * norm)


def test_a_residual_network_loses_what_all_branches_lost() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 6, 6)
    parts = [nn.Conv2d(2, 8, 3), nn.ReLU(), Residual(block(8)), Residual(block(8)), nn.AdaptiveAvgPool2d(1)]
    net = shrink.add_filters(nn.Sequential(*parts, nn.Flatten(), nn.Linear(8, 3)), x)
    assert list(filters(net)) == [
        "0.filter",
        "2.body.0.filter",
        "2.body.3.filter",
        "3.body.0.filter",
        "3.body.3.filter",
    ]

    def some(net: nn.Module) -> None:
        for part, dead in zip(filters(net).values(), ([0, 1, 2], [5], [1, 2, 3], [], [1, 2, 7]), strict=True):
            part.theta.data[dead] = 0

    log = exact(net, x, dead=some)
    assert log.left == dict(zip(filters(net), (6, 7, 6, 8, 6), strict=True))
    assert log.held.keys() == {"0.filter", "2.body.3.filter", "3.body.3.filter"}


def test_a_resnet_20() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    net = shrink.add_filters(resnet(20, width=4), x)
    assert len(filters(net)) == 21
    log = exact(net, x, dead=lambda net: kill(net, lambda size: slice(0, None, 2)))
    assert widths(log) == [2] * 7 + [4] * 7 + [8] * 7
    plain = shrink.fold(net)
    torch.testing.assert_close(plain.eval()(x.double()), net.eval()(x.double()), rtol=1e-12, atol=1e-12)


def squeeze(self: Any, x: Tensor) -> Tensor:
    x = torch.relu(self.conv(x))
    x = x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))[:, :, None, None]
    return self.head(x.amax((-2, -1)))


def test_squeeze_and_excitation() -> None:
    torch.manual_seed(0)
    parts = {"conv": nn.Conv2d(3, 6, 3), "down": nn.Linear(6, 4), "up": nn.Linear(4, 6), "head": nn.Linear(6, 2)}
    x = torch.randn(2, 3, 5, 5)
    where = {"conv", "down"}
    net = shrink.add_filters(Forward(squeeze, **parts), x, where=where.__contains__)
    assert widths(exact(net, x)) == [4, 3] and net.up.out_features == 4
    # A filter in front of the sigmoid never gives zeros.
    with pytest.raises(ValueError, match=r"behind up could never .* \(Linear\), which takes it as"):
        shrink.add_filters(Forward(squeeze, **parts), x, where=lambda path: path == "up")


def concatenated(self: Any, x: Tensor) -> Tensor:
    x = torch.cat([self.a(x), x, self.b(x).relu()], dim=1)
    b, c, h, w = x.size()
    first, second = x.view(b, c, h * w).transpose(1, 2), self.c(x).flatten(2).permute(0, 2, 1)
    return self.head(torch.cat((first, second), -1)).mean(1) + self.d(x.reshape(b, -1))


def test_concatenation_flatten_and_channels_in_the_last_dimension() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    convs = {name: nn.Conv2d(wide, 6, 1) for name, wide in (("a", 3), ("b", 3), ("c", 15))}
    net = Forward(concatenated, **convs, head=nn.Linear(21, 2), d=nn.Linear(15 * 16, 2))
    net = shrink.add_filters(net, x)
    assert widths(exact(net, x)) == [4, 4, 4]
    assert net.head.in_features == 15 and net.d.in_features == 11 * 16


def tokens(self: Any, x: Tensor) -> Tensor:
    x = self.embed(x)
    x = x + self.two(functional.gelu(self.one(self.norm(x))))
    return self.head(x.mean(1))


def test_tokens() -> None:
    torch.manual_seed(0)
    layers = {"embed": nn.Linear(4, 6), "norm": nn.LayerNorm(6), "one": nn.Linear(6, 12), "two": nn.Linear(12, 6)}
    x, net = torch.randn(3, 5, 4), Forward(tokens, **layers, head=nn.Linear(6, 2))
    with pytest.raises(ValueError, match=r"behind embed could never .* layer_norm in norm \(LayerNorm\)"):
        shrink.add_filters(net, x)
    net = shrink.add_filters(net, x, where=lambda path: path == "one")
    assert repr(net.one.filter) == "TokenFilter(12)" and net.one.filter.macs.tolist() == [5 * (6 + 6)] * 12
    assert widths(exact(net, x)) == [8]
    plain = shrink.fold(net).eval()
    torch.testing.assert_close(plain(x.double()), net.eval()(x.double()), rtol=1e-12, atol=1e-12)


def stacked(self: Any, x: Tensor) -> Tensor:
    y = torch.stack([self.a(x), self.b(x)]).sum(0) + torch.stack((self.a(x), self.b(x)), -1).sum(dim=-1, keepdim=False)
    return self.c(y) + y.sum(1, keepdim=True)


def test_a_sum_of_stacked_branches() -> None:
    torch.manual_seed(0)
    x, net = torch.randn(3, 3), Forward(stacked, a=nn.Linear(3, 6), b=nn.Linear(3, 6), c=nn.Linear(6, 2))
    net = shrink.add_filters(net, x)

    def some(net: Any) -> None:
        net.a.filter.theta.data[[0, 1, 2]] = 0
        net.b.filter.theta.data[[1, 2, 3]] = 0

    assert widths(exact(net, x, dead=some)) == [4, 4]


def shuffled(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    x = x.view(len(x), 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
    one, other = x.chunk(2, 1)
    return self.b(torch.cat((other, one), 1)).sum((2, 3))


def test_shuffled_channels() -> None:
    torch.manual_seed(0)
    x, net = torch.randn(2, 3, 4, 4), Forward(shuffled, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 2, 1))
    net = shrink.add_filters(net, x, where=lambda path: path == "a")
    # They come in the order 0 4 1 5 2 6 3 7 and are halved then: of each half as many go, each with its partner.
    net.a.filter.theta.data[[0, 4, 2, 3, 6, 7]] = 0
    log = exact(net, x, dead=lambda net: None)
    assert widths(log) == [4] and torch.equal(log.cuts[-1].kept, torch.tensor([1, 3, 5, 7]))


def sliced(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    return self.b(torch.cat((x[:, :4] * 2, x[:, 4:], x.unbind(1)[0][:, None]), 1)).sum((2, 3))


def test_channels_that_are_told_apart_by_number_stay() -> None:
    x, net = torch.randn(2, 3, 4, 4), Forward(sliced, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(9, 2, 1))
    with pytest.raises(
        ValueError, match=r"behind a could never .* getitem in the network .*which tells channels apart"
    ):
        shrink.add_filters(net, x)


def padded(self: Any, x: Tensor) -> Tensor:
    x = torch.relu(self.a(x))
    return self.c(torch.relu(self.b(x) + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))).mean((2, 3))


def test_a_shortcut_padded_with_zero_channels() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    net = Forward(padded, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 8, 1, stride=2), c=nn.Conv2d(8, 3, 1))
    net = shrink.add_filters(net, x)
    net.a.filter.theta.data[1] = 0
    net.b.filter.theta.data[[0, 3]] = 0  # of which 3 is channel 1 of the other

    log = exact(net, x, dead=lambda net: None)
    assert log.left == {"a.filter": 3, "b.filter": 7}
    assert log.held == {"b.filter": "what the network (Forward) pads with"}


def twice(self: Any, x: Tensor) -> Tensor:
    x = torch.relu(self.stem(x))
    x = torch.relu(self.shared(x))
    return self.head(torch.relu(self.shared(x)) + self.other(x))


def test_a_layer_that_is_called_twice() -> None:
    torch.manual_seed(0)
    parts = {name: nn.Linear(6, 6) for name in ("stem", "shared", "other")}
    x = torch.randn(3, 6)
    net = shrink.add_filters(Forward(twice, **parts, head=nn.Linear(6, 2)), x)
    assert list(filters(net)) == ["stem.filter", "shared.filter", "other.filter"]

    def some(net: Any) -> None:
        net.stem.filter.theta.data[[0, 1]] = 0
        net.shared.filter.theta.data[[1, 2]] = 0
        net.other.filter.theta.data[[1, 3]] = 0

    log = exact(net, x, dead=some)
    assert log.left == {"stem.filter": 5, "shared.filter": 5, "other.filter": 5}
    plain = shrink.fold(net).eval()
    torch.testing.assert_close(plain(x.double()), net.eval()(x.double()), rtol=1e-12, atol=1e-12)


def test_a_layer_with_two_consumers_and_tied_weights() -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(4, 6), nn.Linear(4, 6)
    other.weight = one.weight
    net = Forward(
        lambda self, x: self.c(torch.relu(y := self.a(x))) + self.d(torch.tanh(y)) + self.e(torch.relu(self.b(x))),
        a=one, b=other, c=nn.Linear(6, 2), d=nn.Linear(6, 2), e=nn.Linear(6, 2),
    )  # fmt: skip
    x = torch.randn(3, 4)
    net = shrink.add_filters(net, x)

    def some(net: Any) -> None:
        net.a.filter.theta.data[[0, 1, 2]] = 0
        net.b.filter.theta.data[[2, 3]] = 0

    log = exact(net, x, dead=some)
    assert log.left == {"a.filter": 5, "b.filter": 5} and net.a.weight is net.b.weight
    plain = shrink.fold(net).eval()
    torch.testing.assert_close(plain(x.double()), net.eval()(x.double()), rtol=1e-12, atol=1e-12)
    assert plain.a.weight is not plain.b.weight  # for the filters are not the same


class Scaled(nn.Module):
    """A layer with weights of its own, which it uses element by element and in a matrix product."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(given, made)), nn.Parameter(torch.randn(made))
        self.register_buffer("mask", torch.ones(made))

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(x @ self.weight) * self.scale.view(1, -1) * self.mask[None]


def test_layers_with_weights_of_their_own() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), Filter(6), nn.ReLU(), Scaled(6, 9), Filter(9), nn.Linear(9, 2))
    log = exact(net, torch.randn(4, 3))
    assert widths(log) == [4, 6]
    assert (net[3].weight.shape, net[3].scale.shape, net[3].mask.shape) == ((4, 6), (6,), (6,))


def test_in_place_and_odd_spellings() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        y *= 2
        y = -y.relu_()
        y += functional.elu(self.b(x), inplace=True).clamp(-1, 1)
        y = functional.interpolate(functional.pad(1.5 * y / 3, (1, 1, 0, 2)), scale_factor=2)
        y = functional.adaptive_max_pool2d(functional.dropout2d(y, training=False), 2).squeeze().unsqueeze(0)[0]
        return functional.log_softmax(self.c(y.contiguous().flatten(1)), 1)

    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    net = Forward(forward, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(3, 6, 1), c=nn.Linear(24, 2))
    net = shrink.add_filters(net, x)
    assert widths(exact(net, x)) == [4, 4]


def test_what_only_training_calls() -> None:
    """An auxiliary head."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        return self.head(y) + self.auxiliary(y) if self.training else self.head(y)

    torch.manual_seed(0)
    x = torch.randn(2, 3)
    net = Forward(forward, a=nn.Linear(3, 6), head=nn.Linear(6, 2), auxiliary=nn.Linear(6, 2))
    net = shrink.add_filters(net, x)
    exact(net, x)
    assert net.auxiliary.in_features == 4


def test_control_flow_is_followed() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        for layer in self.order:
            x = torch.relu(layer(x)) if x.shape[1] > 2 and float(x.detach().sum()) < 1e9 else x
        return self.head(x)

    x = torch.randn(2, 3)
    net = Forward(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 6), head=nn.Linear(6, 2))
    net.order = [net.a, net.b]
    assert widths(exact(shrink.add_filters(net, x), x)) == [4, 4]


# What is refused ------------------------------------------------------------------------------------------------------


def hidden(self: Any, x: Tensor) -> Tensor:
    """As in compiled code."""
    with torch._C.DisableTorchFunction():
        return 2 * x


MIXING = {
    "group_norm in layer": (nn.GroupNorm(2, 6), None),
    "layer_norm in layer": (nn.LayerNorm(6), None),
    "lstm in layer": (nn.LSTM(6, 6, batch_first=True), lambda layer, x: layer(x[:, None])[0][:, 0]),
    "softmax in layer": (nn.Softmax(1), None),
    "cumsum in the network": (nn.Identity(), lambda layer, x: x.cumsum(1)),
    "mean in the network": (nn.Identity(), lambda layer, x: x / (1 + x.mean(1, keepdim=True).abs())),
    "linear in layer": (nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), None),
    "the network's output": (nn.Identity(), lambda layer, x: (x, x)),
    "matmul in the network": (nn.Linear(6, 6), lambda layer, x: x @ layer.weight.exp()),
}


@pytest.mark.parametrize("reason", MIXING)
def test_what_mixes_channels_is_refused_by_name(reason: str) -> None:
    layer, how = MIXING[reason]
    net = Forward(
        lambda self, x: (self.head(y[0]), y[1]) if isinstance(y := self.how(self.layer, self.a(x)), tuple)
        else self.head(y), a=nn.Linear(3, 6), layer=layer, head=nn.Linear(6, 2),
    )  # fmt: skip
    net.how = how or (lambda layer, x: layer(x))
    x = torch.randn(2, 3)
    error = r"no place for a filter" if "output" in reason else rf"behind (a|layer).* could never .*{reason}.*where="
    with pytest.raises(ValueError, match=error):
        shrink.add_filters(copy.deepcopy(net), x, where=lambda path: path in ("a", "layer"))
    own = copy.deepcopy(net)
    own.a = nn.Sequential(own.a, Filter(6))
    kill(own)
    before = copy.deepcopy(own.state_dict())
    log = shrink.compact_(own, example=x)
    assert not log and reason.split()[0] in log.held["a.1"]
    torch.testing.assert_close(own.state_dict(), before, rtol=0, atol=0)


def test_what_torch_does_not_announce_is_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 6), Forward(hidden), nn.Linear(6, 2))
    with pytest.raises(ValueError, match=r"2 \(Linear\) reads a tensor made by something that torch does not announce"):
        shrink.add_filters(net, torch.randn(2, 3))


def test_outputs_that_cannot_be_found_are_refused() -> None:
    class Answer:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    net = Forward(lambda self, x: Answer(self.a(x)), a=nn.Linear(3, 6))
    with pytest.raises(ValueError, match=r"returns Answer, in which tensors cannot be found"):
        shrink.add_filters(net, torch.randn(2, 3))
    as_dict = Forward(
        lambda self, x: {"logits": self.b(self.a(x).relu()), "n": 1}, a=nn.Linear(3, 6), b=nn.Linear(6, 2)
    )
    assert list(filters(shrink.add_filters(as_dict, torch.randn(2, 3)))) == ["a.filter"]


def test_what_gets_out_of_torch_is_refused() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y * float(y.detach().numpy().mean()))

    net = nn.Sequential(Forward(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 2)))
    with pytest.raises(ValueError, match=r"behind 0\.a could never .* numpy in 0 \(Forward\)"):
        shrink.add_filters(net, torch.randn(2, 3))


def test_a_type_that_the_forward_pass_needs() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)).float())  # fails in double precision

    x = torch.randn(2, 3)
    net = shrink.add_filters(Forward(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 2)), x)
    kill(net)
    y = net(x)
    assert shrink.compact_(net)
    torch.testing.assert_close(net(x), y)


class Opaque(nn.Module):
    """Each channel times a factor of its own, by a function that torch does not announce."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.factor = channels, nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        return hidden(self, x * self.factor)

    def resize_(self) -> None:
        self.channels = len(self.factor)


@pytest.mark.usefixtures("forgotten")
def test_a_rule_for_a_layer() -> None:
    def rule(watch: Any, call: Any) -> Any:
        x = watch.flow(call.args[0])
        watch.axis(call.func.factor, 0, x.ids[0])
        return x

    torch.manual_seed(0)
    shrink.register_rule(Opaque, rule)
    x = torch.randn(4, 3)
    net = shrink.add_filters(nn.Sequential(nn.Linear(3, 6), Opaque(6), nn.ReLU(), nn.Linear(6, 2)), x)
    assert widths(exact(net, x)) == [4] and net[1].channels == 4

    class Plain(Opaque):
        def forward(self, x: Tensor) -> Tensor:
            return hidden(self, x)

    shrink.register_rule(Plain, shrink.each_channel)
    net = nn.Sequential(nn.Linear(3, 6), Filter(6), Plain(6), nn.Linear(6, 2))
    assert widths(exact(net, x)) == [4]


def written(self: Any, x: Tensor) -> Tensor:
    return self.b(torch.relu(self.a(x)).view(-1, 6 * 9))


def test_a_number_of_channels_that_is_written_down() -> None:
    net, x = Forward(written, a=nn.Conv2d(2, 6, 2), b=nn.Linear(54, 2)), torch.randn(3, 2, 4, 4)
    known = r"view\(-1, 54\) in the network \(Forward\), whose numbers stay .* \[2, 6, 3, 3\] to \[2, {}, 3, 3\]"
    with pytest.raises(
        ValueError, match=f"a filter behind a could never .* because of {known.format(3)}; take them from the input's"
    ):
        shrink.add_filters(net, x)
    net.a = nn.Sequential(net.a, Filter(6))
    optimizer = torch.optim.Adam(net.parameters())
    net(x).sum().backward()
    optimizer.step()
    kill(net)
    before = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    grads = [p.grad.clone() for p in net.parameters()]
    with pytest.warns(UserWarning, match=f"dead channels of filter a.1 stay: {known.format(4)}"):
        log = shrink.compact_(net, optimizer, example=x)
    assert not log and log.removed == {} and log.left == {"a.1": 6} and "view(-1, 54)" in log.held["a.1"]
    torch.testing.assert_close((net.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)
    torch.testing.assert_close([p.grad for p in net.parameters()], grads, rtol=0, atol=0)
    assert net.a[0].out_channels == 6 and net(x).shape == (3, 2)


def test_what_is_missing_is_said() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"no filters, .*: see shrink\.add_filters"):
        shrink.compact_(net)
    own = nn.Sequential(net[0], Filter(4), net[2])
    kill(own)
    with pytest.raises(ValueError, match=r"pass example=a batch of inputs, or use what add_filters returned"):
        shrink.compact_(own)
    with pytest.raises(ValueError, match="has filters already"):
        shrink.add_filters(own, torch.randn(2, 3))
    with pytest.raises(ValueError, match="no place for a filter"):
        shrink.add_filters(nn.Sequential(nn.Linear(3, 2)), torch.randn(2, 3))
    with pytest.raises(ValueError, match="no place for a filter"):
        shrink.add_filters(net, torch.randn(2, 3), where=lambda path: False)
    with pytest.raises(ValueError, match=r"behind 0 could never .* behind the filter that makes something else of 0"):
        shrink.add_filters(nn.Sequential(net[0], nn.Sigmoid(), net[2]), torch.randn(2, 3))


# Putting in and taking out --------------------------------------------------------------------------------------------


def test_where_filters_go() -> None:
    x = torch.randn(IMAGES)
    net = LeNet()
    made = shrink.add_filters(net, x)
    assert not filters(net) and set(filters(made)) == {"norm.filter", "conv2.filter", "fc1.filter"}
    assert type(made.norm) is nn.BatchNorm2d and made.state_dict().keys() - net.state_dict().keys() == {
        f"{path}.filter.{name}" for path in ("norm", "conv2", "fc1") for name in ("theta", "alive")
    }
    assert list(filters(shrink.add_filters(net, x, where=lambda path: path == "conv1"))) == ["norm.filter"]
    assert list(filters(shrink.add_filters(LeNet(norm=False), x))) == ["conv1.filter", "conv2.filter", "fc1.filter"]
    # A norm that is not alone behind its convolution
    parts = {"a": nn.Conv2d(1, 4, 1), "norm": nn.BatchNorm2d(4), "b": nn.Conv2d(4, 2, 1)}
    both = Forward(lambda self, x: self.b((y := self.a(x)) + functional.relu(self.norm(y))), **parts)
    with pytest.raises(ValueError, match="behind a could never"):
        shrink.add_filters(both, x)
    # What is added to the network's input cannot shrink.
    inner = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1))
    assert list(filters(shrink.add_filters(nn.Sequential(Residual(inner), nn.Conv2d(1, 2, 1)), x))) == [
        "0.body.0.filter"
    ]
    assert made.double().norm.filter.theta.dtype == torch.float64


def test_several_inputs() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.dense, self.head = nn.Embedding(5, 6), nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, word: Tensor) -> Tensor:
            return self.head(torch.cat((self.words(word), torch.relu(self.dense(x))), 0))

    inputs = torch.randn(4, 3), torch.tensor([0, 4, 2, 2])
    with pytest.raises(ValueError, match=r"behind dense could never .* linear in head"):
        shrink.add_filters(Sum(), inputs)


@pytest.mark.parametrize("norm", [True, False])
def test_fold(norm: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(IMAGES).double()
    net = LeNet(norm).double()
    made = lived(shrink.add_filters(net, x))
    made.fc1.weight.requires_grad_(False)
    kill(made)
    plain = shrink.fold(made)
    assert type(plain) is LeNet and plain.state_dict().keys() == net.state_dict().keys() and not filters(plain)
    torch.testing.assert_close(plain.eval()(x), made.eval()(x), rtol=1e-12, atol=1e-12)
    assert [p.requires_grad for p in plain.fc1.parameters()] == [False, True]
    assert not hasattr(plain, "shrink_example") and len(filters(made)) == 3
    shrink.compact_(made)
    small = shrink.fold(made)
    torch.testing.assert_close(small(x), plain(x), rtol=1e-12, atol=1e-12)
    assert small.fc2.in_features == 8


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("affine", [None, True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_fold_filters_of_ones_own(groups: int, affine: bool | None, transposed: bool) -> None:
    torch.manual_seed(0)
    conv = (nn.ConvTranspose2d if transposed else nn.Conv2d)(4, 6, 3, groups=groups)
    norm = [nn.BatchNorm2d(6, affine=affine)] if affine is not None else []
    net = nn.Sequential(conv, *norm, Filter(6), nn.ReLU(), nn.Conv2d(6, 2, 1)).double().eval()
    x = torch.randn(3, 4, 5, 5).double()
    plain = shrink.fold(net, x)
    torch.testing.assert_close(plain(x), net(x), rtol=1e-12, atol=1e-12)
    assert type(plain[len(norm) + 1]) is nn.Identity and not plain.training


def test_what_cannot_be_folded() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"filter 2 cannot be folded: in front of it is no convolution"):
        shrink.fold(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Filter(4), nn.Linear(4, 2)), x)
    net = Forward(lambda self, x: self.b(self.f(y := self.a(x)) + y), a=nn.Linear(3, 3), f=Filter(3), b=nn.Linear(3, 2))
    with pytest.raises(
        ValueError, match=r"filter f cannot be folded into a, whose output goes to a function in the network's"
    ):
        shrink.fold(net, x)


def test_a_folded_network_needs_nothing_of_ours(tmp_path: Path) -> None:
    x = torch.randn(2, 3)
    net = shrink.add_filters(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), x)
    kill(net)
    shrink.compact_(net)
    plain = shrink.fold(net)
    torch.save(plain, tmp_path / "net.pt")
    with zipfile.ZipFile(tmp_path / "net.pt") as file:
        (names,) = (file.read(name) for name in file.namelist() if name.endswith("/data.pkl"))
    assert b"torch.nn.modules.linear" in names and b"telescopic" not in names
    loaded = torch.load(tmp_path / "net.pt", weights_only=False)
    assert loaded[0].out_features == 3
    torch.testing.assert_close(loaded(x), net(x))
