"""Heads of an attention become narrow as a whole, however the code is written; where that is not known, they stay."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import telescopic as tl
from telescopic import shrink
from telescopic.layers.filter import Filter
from telescopic.testing import check_nested

from chance import examples

WIDE, LENGTH = 24, 5


def merged(y: Tensor) -> Tensor:
    return y.transpose(1, 2).reshape(len(y), y.shape[2], -1)


def by_scores(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return (query @ key.transpose(-2, -1) * scale).softmax(-1) @ value


class Spelled(nn.Module):
    """Heads of `size` channels, in one of many spellings."""

    def __init__(self, how: str, heads: int = 4, size: int = 8, sharing: int = 1) -> None:
        super().__init__()
        self.how, self.heads, self.size, self.sharing = how, heads, size, sharing
        self.norm, self.out = nn.LayerNorm(WIDE), nn.Linear(heads * size, WIDE)
        if how.startswith("fused"):
            self.qkv = nn.Linear(WIDE, 3 * heads * size)
        else:
            self.q = nn.Linear(WIDE, heads * size)
            self.k, self.v = (nn.Linear(WIDE, heads // sharing * size) for _ in range(2))
        if how == "cosine":
            self.scale = nn.Parameter(torch.rand(heads, 1, 1) + 1)
        elif how == "slopes":
            self.register_buffer("slopes", 2.0 ** -torch.arange(heads).view(heads, 1, 1))
        elif how == "norms":
            self.norms = nn.ModuleList((nn.LayerNorm(size), nn.RMSNorm(size)))
        elif how == "positions":
            self.positions = nn.Embedding(2 * LENGTH - 1, heads)
        elif how == "bias":
            self.bias = nn.Parameter(torch.randn(heads, LENGTH, LENGTH))

    def divided(self, y: Tensor) -> Tensor:
        """`[batch, length, channels]` to `[batch, heads, length, size]`."""
        b, n, c = y.shape
        if self.how == "unflatten":
            return y.unflatten(-1, (-1, self.size)).transpose(1, 2)
        if self.how == "counted":
            return y.view(b, n, c // self.size, self.size).permute(0, 2, 1, 3)
        if self.how == "named":
            return y.view(b, n, self.heads, self.size).transpose(1, 2)
        if self.how.startswith("inside"):
            return y.view(b, n, self.heads, -1).transpose(1, 2)
        return y.view(b, n, -1, self.size).transpose(1, 2)

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.how == "fused":
            query, key, value = self.qkv(x).unflatten(-1, (3, -1, self.size)).permute(2, 0, 3, 1, 4)
        elif self.how == "fused, chunked":
            query, key, value = (self.divided(y) for y in self.qkv(x).chunk(3, -1))
        elif self.how == "fused, by heads":
            query, key, value = self.qkv(x).unflatten(-1, (-1, 3, self.size)).permute(3, 0, 2, 1, 4)
        elif self.how == "fused, by an attribute":
            shape = (3, self.qkv.out_features // 3 // self.size, self.size)
            query, key, value = self.qkv(x).unflatten(-1, shape).permute(2, 0, 3, 1, 4)
        else:
            query, key, value = (self.divided(layer(x)) for layer in (self.q, self.k, self.v))
        if self.how == "repeated":
            key, value = (y.repeat_interleave(self.sharing, 1) for y in (key, value))
        elif self.how == "expanded":
            b, kept, n, size = key.shape
            wider = (b, kept, self.sharing, n, size)
            key, value = (y[:, :, None].expand(wider).reshape(b, -1, n, size) for y in (key, value))
        return query, key, value

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.heads_of(self.norm(x))
        distance = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        if self.how == "rotary":
            angle = torch.arange(x.shape[1])[:, None] * 0.1 ** torch.arange(self.size // 2).repeat(2).to(x)
            halves = [torch.cat((-y[..., self.size // 2 :], y[..., : self.size // 2]), -1) for y in (query, key)]
            query, key = (y * angle.cos() + h * angle.sin() for y, h in zip((query, key), halves, strict=True))
        if self.how == "norms":
            query, key = self.norms[0](query), self.norms[1](key)
        scale = 1 / math.sqrt(self.size)
        if self.how in ("scores", "inside"):
            y = by_scores(query, key, value, scale)
        elif self.how == "all channels":
            y = by_scores(query, key, value, 1 / math.sqrt(query.shape[1] * query.shape[3]))
        elif self.how == "equation":
            y = torch.einsum("bhqd,bhkd->bhqk", query, key).mul(scale).softmax(-1)
            y = torch.einsum("bhqk, bhkd -> bhqd", y, value)
        elif self.how == "filled":
            y = (query @ key.transpose(2, 3) * scale).masked_fill(distance < 0, -1e9).softmax(-1) @ value
        elif self.how == "cosine":
            query, key = functional.normalize(query, dim=-1), functional.normalize(key, dim=-1)
            y = (query @ key.transpose(2, 3) * self.scale.exp()).softmax(-1) @ value
        elif self.how == "slopes":
            y = (query @ key.transpose(2, 3) * scale - self.slopes * distance.abs().to(x)).softmax(-1) @ value
        elif self.how == "slopes by number":
            slopes = torch.linspace(0, 1, query.shape[1]).to(x).view(-1, 1, 1)
            y = (query @ key.transpose(2, 3) * scale - slopes * distance.abs().to(x)).softmax(-1) @ value
        elif self.how == "across heads":
            y = (query @ key.transpose(2, 3) * scale).softmax(1) @ value
        elif self.how == "one batch":
            query, key, value = (t.reshape(-1, *t.shape[2:]) for t in (query, key, value))
            y = torch.bmm(torch.bmm(query, key.transpose(1, 2)).mul(scale).softmax(-1), value)
            y = y.view(len(x), -1, *y.shape[1:])
        else:
            mask = None
            if self.how == "causal":
                mask = distance >= 0
            elif self.how == "positions":
                mask = self.positions(distance + LENGTH - 1).permute(2, 0, 1)
            elif self.how == "bias":
                mask = self.bias
            elif self.how == "a mask for each":
                mask = torch.linspace(0, 1, self.heads).to(x).view(-1, 1, 1).expand(-1, x.shape[1], x.shape[1])
            y = functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=self.how == "grouped")
        if self.how == "named again":
            return x + self.out(y.transpose(1, 2).reshape(len(x), -1, self.heads * self.size))
        if self.how == "flattened":
            return x + self.out(y.transpose(1, 2).flatten(2))
        made: Tensor = x + self.out(merged(y))
        return made


def network(*args: Any, **kwargs: Any) -> nn.Sequential:
    net = nn.Sequential(Spelled(*args, **kwargs), nn.Flatten(), nn.Linear(LENGTH * WIDE, 3)).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def by_hand(net: nn.Sequential, heads: int) -> nn.Sequential:
    """The same network with the first heads alone, written by hand."""
    old = net[0]
    new = network(old.how, heads, old.size, old.sharing)
    tensors = dict(net.state_dict())
    for name, tensor in tensors.items():
        _, _, part = name.partition(".")
        size = {"k": old.sharing, "v": old.sharing}.get(part[0], 1)
        if part.startswith(("q.", "k.", "v.")):
            tensors[name] = tensor[: heads * old.size // size]
        elif part.startswith("qkv"):
            shape = (-1, 3, old.size) if old.how == "fused, by heads" else (3, -1, old.size)
            divided = tensor.unflatten(0, shape)
            kept = divided[:heads] if old.how == "fused, by heads" else divided[:, :heads]
            tensors[name] = kept.flatten(0, 2)
        elif part == "out.weight":
            tensors[name] = tensor[:, : heads * old.size]
        elif part in ("scale", "slopes"):
            tensors[name] = tensor[:heads]
        elif part == "positions.weight":
            tensors[name] = tensor[:, :heads]
    new.load_state_dict(tensors)
    return new


def example() -> Tensor:
    return torch.randn(3, LENGTH, WIDE, dtype=torch.float64)


THREE = {"q": (16, 32), "k": (16, 32), "v": (16, 32)}
ONE = {"qkv": (48, 96)}
SHARED = {"q": (16, 32), "k": (8, 16), "v": (8, 16)}
FOUND: dict[str, dict[str, tuple[int, ...]]] = {
    **dict.fromkeys(("", "unflatten", "counted", "flattened", "scores", "equation", "filled", "one batch"), THREE),
    **dict.fromkeys(("rotary", "norms", "causal"), THREE),
    "cosine": THREE | {"": (2, 4)}, "slopes": THREE | {"": (2, 4)}, "positions": THREE | {"positions": (2, 4)},
    **dict.fromkeys(("fused", "fused, chunked", "fused, by heads"), ONE),
    **dict.fromkeys(("repeated", "expanded", "grouped"), SHARED),
}  # fmt: skip


@pytest.mark.parametrize("how", FOUND)
def test_heads_become_narrow_as_a_whole(how: str) -> None:
    torch.manual_seed(0)
    net, x = network(how, sharing=2 if FOUND[how] is SHARED else 1), example()
    family = tl.slim(net, x, (0.5, 1), order="given")
    found = {
        layer.removeprefix("stages.0.0").lstrip("."): n
        for names, n in family.narrowing.channels.items()
        for layer in names
    }
    assert found == FOUND[how], str(family.narrowing)
    assert torch.equal(family(x), net(x))
    narrow = tl.extract(family, tl.Subnet(width=1))
    torch.testing.assert_close(narrow(x), by_hand(net, 2)(x), rtol=0, atol=1e-14)
    ordered = tl.slim(net, x, (0.5, 1))
    torch.testing.assert_close(ordered(x), net(x), rtol=0, atol=1e-12)


HELD = {
    "named": r"view\(2, 5, 4, 8\) in stages.0.0 .* \[2, 5, 32\] to \[2, 5, 16\]; .* write -1",
    "named again": r"reshape\(2, -1, 32\) in stages.0.0",
    "fused, by an attribute": "outputs, which would change .* depends on how many there are",
    "all channels": "outputs, which would change .* such as a scale, depends on how many there are",
    "slopes by number": "outputs, which would change",
    "a mask for each": r"tensor a \(2\) must match the size of tensor b \(4\)",
    "bias": "stages.0.0.bias, which stages.0.0 .* uses in a way that is not known",
    "across heads": "softmax in stages.0.0",
}


@pytest.mark.parametrize("how", HELD)
def test_heads_stay_where_something_tells_them_apart(how: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"stages\.0\.0\.q.*: .*" + HELD[how]):
        tl.slim(network(how), example(), (0.5, 1))


def test_torchs_own_attention_says_why_it_stays() -> None:
    net = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Flatten(), nn.Linear(48, 2))
    family = tl.slim(net.eval(), torch.randn(2, 3, 16), 2)
    assert "makes 2 heads of whatever it gets" in family.narrowing.whole["stages.0.0.self_attn"]
    assert family.narrowing.channels == {("stages.0.0.linear1",): (16, 32)}


def test_a_number_of_heads_that_is_named_makes_heads_narrow_inside() -> None:
    torch.manual_seed(0)
    net, x = network("inside"), example()
    family = tl.slim(net, x, (0.5, 1), order="given")
    assert family.narrowing.channels == {("stages.0.0.q", "stages.0.0.k"): (16, 32), ("stages.0.0.v",): (16, 32)}
    narrow, first = tl.extract(family, tl.Subnet(width=1)), torch.arange(32).view(4, 8)[:, :4].flatten()
    torch.testing.assert_close(narrow[0].q.weight, net[0].q.weight[first], rtol=0, atol=0)
    zeroed = by_hand(net, 4)
    with torch.no_grad():
        others = torch.ones(32, dtype=torch.bool).index_fill(0, first, False)
        for layer in (zeroed[0].q, zeroed[0].k, zeroed[0].v):
            layer.weight[others] = layer.bias[others] = 0
    torch.testing.assert_close(narrow(x), zeroed(x), rtol=0, atol=1e-12)
    # Torch's own scale is that of a head's channels, which are fewer then; values have no part in it.
    other = tl.slim(network("inside, with torch's scale"), x, (0.5, 1))
    assert other.narrowing.channels == {("stages.0.0.v",): (16, 32)}
    assert "depends on how many" in other.narrowing.whole["stages.0.0.q"]


def test_heads_of_large_weights_come_first_and_are_said() -> None:
    torch.manual_seed(0)
    net, x = network(""), example()
    with torch.no_grad():
        net[0].v.weight.view(4, 8, WIDE)[[1, 3]] *= 4
    family = tl.slim(net, x, (0.25, 0.5, 1))
    kept = tl.extract(family, tl.Subnet(width=2))[0]
    heads = net[0].v.weight.view(4, 8, WIDE)
    found = [next(h for h in range(4) if torch.equal(heads[h], each)) for each in kept.v.weight.view(2, 8, WIDE)]
    assert sorted(found) == [1, 3]
    assert torch.equal(kept.q.weight, net[0].q.weight.view(4, 8, WIDE)[found].flatten(0, 1)), "other heads' queries"
    assert family.narrowing.together == {("stages.0.0.q", "stages.0.0.k", "stages.0.0.v"): 8}
    assert "stages.0.0.q, stages.0.0.k, stages.0.0.v: 8, 16, 32, 8 at a time" in str(family.narrowing)
    with pytest.raises(ValueError, match=r"stages\.0\.0\.q keeps 1 to 32 channels, in multiples of 8, not 12"):
        tl.slim(net, x, ({"stages.0.0.q": 12}, 1))
    wide = tl.slim(net, x, (0.25, 0.5, 1), multiple_of=24)  # the least that is a number of heads, too
    assert wide.narrowing.channels[("stages.0.0.q", "stages.0.0.k", "stages.0.0.v")] == (24, 24, 32)


@examples(5, 200)
@given(
    st.sampled_from(["", "fused", "fused, by heads", "grouped", "expanded", "scores"]),
    st.integers(1, 3), st.sampled_from([1, 2, 3]), st.sampled_from([2, 3, 4]), st.floats(0.05, 0.95),
)  # fmt: skip
def test_any_number_of_heads_of_any_size(how: str, groups: int, sharing: int, size: int, share: float) -> None:
    sharing = sharing if how in ("grouped", "expanded") else 1
    groups += 1
    torch.manual_seed(0)
    net, x = network(how, groups * sharing, size, sharing), example()
    heads = math.ceil(round(share * groups, 9)) * sharing
    if heads == groups * sharing:
        with pytest.raises(ValueError, match="nothing in this network becomes narrow"):
            tl.slim(net, x, (share, 1), order="given", multiple_of=1)
        return
    family = tl.slim(net, x, (share, 1), order="given", multiple_of=1)
    torch.testing.assert_close(tl.extract(family, tl.Subnet(width=1))(x), by_hand(net, heads)(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("how", ["", "grouped", "fused"])
def test_a_family_of_heads_keeps_the_laws(how: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tl.register_layer(Spelled)
    net, x = network(how, sharing=2 if how == "grouped" else 1), example()
    family = tl.slim(net, x, (0.25, 0.5, 1))
    check_nested(family, (LENGTH, WIDE), rebuild=False)
    tl.save(family, tmp_path / "family.safetensors", input_shape=(LENGTH, WIDE))
    for member in family.grid:
        assert torch.equal(tl.load(tmp_path / "family.safetensors", member)(x), family(x, member))
    macs = [member.macs for member in tl.measure(family, input_shape=(LENGTH, WIDE))]
    assert macs == sorted(macs) and macs[0] < macs[-1]


def test_a_head_dies_when_all_of_its_values_are_dead() -> None:
    torch.manual_seed(0)
    net, x = network(""), example()
    made = shrink.add_filters(net, x, where=lambda path: path == "0.v")
    (part,) = (part for part in made.modules() if isinstance(part, Filter))
    with torch.no_grad():
        part.theta[8:16] = part.theta[20:23] = 0  # the second head, and some channels of the third
    before = made(x)
    log = shrink.compact_(made, torch.optim.SGD(made.parameters(), 0.1))
    assert log.removed == {"0.v.filter": 8} and "0.v.filter" in log.held
    assert made[0].q.weight.shape == (24, WIDE) and made[0].out.weight.shape == (WIDE, 24)
    torch.testing.assert_close(made(x), before, rtol=0, atol=1e-12)


class Blocks(nn.Module):
    """Channels as blocks, of which the greatest stays: no attention."""

    def __init__(self, outer: bool) -> None:
        super().__init__()
        self.outer, self.one, self.two = outer, nn.Conv2d(3, 32, 3), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        b, c, h, w = y.shape
        y = y.view(b, c // 2, 2, h, w).amax(2) if self.outer else y.view(b, 2, c // 2, h, w).amax(1)
        out: Tensor = self.two(y).mean((2, 3))
        return out


@pytest.mark.parametrize("outer", [True, False])
def test_blocks_of_channels_need_no_attention(outer: bool) -> None:
    torch.manual_seed(0)
    net, x = Blocks(outer).double(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    family = tl.slim(net, x, (0.5, 1), order="given")
    assert family.narrowing.channels == {("stages.0.one",): (16, 32)}
    kept = torch.arange(16) if outer else torch.cat((torch.arange(8), torch.arange(16, 24)))
    assert torch.equal(tl.extract(family, tl.Subnet(width=1))[0].one.weight, net.one.weight[kept])
    check_nested(family, (3, 6, 6), rebuild=False)


class Scaled(nn.Module):
    """Hidden units, divided by their number, or multiplied by it; and others."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.one, self.two, self.out = how, nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 2)
        gate = {"small": 1e-6, "gate": 0.0}.get(how, 1.0)
        self.beside, self.gate = nn.Linear(4, 2), nn.Parameter(torch.full((2,), gate))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.one(x))
        y = y * torch.arange(1, y.shape[1] + 1).to(y) if self.how == "order" else y / math.sqrt(y.shape[1])
        made: Tensor = self.beside(x) + self.gate * self.out(torch.relu(self.two(y)))
        return torch.cat((made, torch.full_like(x, -torch.inf)), 1) if self.how == "masked" else made


@pytest.mark.parametrize(
    ("how", "says"),
    [*((how, "such as a scale") for how in ("scale", "small", "gate", "masked")), ("order", "change by")],
)
@pytest.mark.parametrize("new", [True, False])
def test_what_depends_on_the_number_of_channels_or_their_order_stays(how: str, says: str, new: bool) -> None:
    """Also where the network has not learned yet, its branches add next to nothing, or some answers are infinite."""
    torch.manual_seed(0)
    net = Scaled(how)
    if new and how != "order":
        nn.init.zeros_(net.out.weight)
    family = tl.slim(net, torch.randn(2, 4), (0.5, 1))
    assert family.narrowing.channels == {("stages.0.two",): (8, 16)}
    assert says in family.narrowing.whole["stages.0.one"]


def test_a_number_of_channels_is_a_number_like_any_other() -> None:
    class Computing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.out, self.bias = nn.Linear(4, 16), nn.Linear(16, 2), nn.Parameter(torch.randn(2))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.one(x))
            n = y.shape[1]
            assert n * 0.3 == int(n) * 0.3 and n // 0.7 == int(n) // 0.7 and [1] * n == n * [1] and len("-" * n) == n
            assert type(n * 2 // 4) is type(n) and f"{n}" == f"{int(n)}"
            made: Tensor = self.out(y) + (n * self.bias) / n
            return made

    torch.manual_seed(0)
    net, x = Computing(), torch.randn(2, 4)
    family = tl.slim(net, x, (0.5, 1), order="given").eval()
    assert family.narrowing.channels == {("stages.0.one",): (8, 16)}
    narrow = functional.linear(torch.relu(net.one(x))[:, :8], net.out.weight[:, :8], net.out.bias) + net.bias
    torch.testing.assert_close(family(x, subnet=tl.Subnet(width=1)), narrow)


def test_a_layer_that_stands_there_twice_keeps_its_tensors() -> None:
    torch.manual_seed(0)
    twice = nn.Linear(8, 8)
    net, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), twice, nn.ReLU(), twice), torch.randn(2, 4)
    family = tl.slim(net, x, (0.5, 1), order="given").eval()
    assert torch.equal(family(x), net(x))
    assert family.narrowing.channels == {("stages.0.0",): (8, 16)}
    filtered = shrink.add_filters(net, x)
    parameters = {name: (id(p), p.dtype) for name, p in filtered.named_parameters()}
    theta = filtered.get_submodule("0.filter").theta
    with torch.no_grad():
        theta[4:] = -1
    before = filtered(x)
    assert shrink.compact_(filtered).removed == {"0.filter": 12} and len(theta) == 4
    assert {name: (id(p), p.dtype) for name, p in filtered.named_parameters()} == parameters
    torch.testing.assert_close(filtered(x), before)


def test_learned_queries_are_no_features() -> None:
    """A layer is given a view of a parameter."""

    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.asked, self.end = nn.Parameter(torch.randn(1, 3, 16)), nn.Linear(16, 2)
            self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            asked = self.asked.expand(len(x), -1, -1)
            given = (self.query(asked), self.key(x), self.value(x))
            y = functional.scaled_dot_product_attention(*(y.unflatten(-1, (-1, 4)).transpose(1, 2) for y in given))
            made: Tensor = self.end(asked + self.out(merged(y))).mean(1)
            return made

    torch.manual_seed(0)
    net, x = Asking(), torch.randn(2, LENGTH, 16)
    family = tl.slim(net, x, (0.5, 1), order="given").eval()
    layers = ("stages.0.query", "stages.0.key", "stages.0.value")
    assert family.narrowing.channels == {layers: (8, 16)} and family.narrowing.together == {layers: 4}
    with torch.no_grad():
        net.out.weight[:, 8:] = 0
        torch.testing.assert_close(family(x, subnet=tl.Subnet(width=1)), net(x))


def test_embeddings_become_narrow() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(11, 32), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(self.words(x).mean(1))
            return out

    torch.manual_seed(0)
    net, x = Bag().double(), torch.randint(11, (2, 6))
    family = tl.slim(net, x, (0.5, 1), order="given")
    narrow = tl.extract(family, tl.Subnet(width=1))[0]
    assert narrow.words.embedding_dim == 16 and torch.equal(narrow.words.weight, net.words.weight[:, :16])
    check_nested(family, ("int64", 6), rebuild=False)


def test_what_the_example_does_not_reach_is_the_first_reason() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.norm, self.up, self.out = (
                nn.Embedding(9, 16),
                nn.LayerNorm(16),
                nn.Linear(16, 32),
                nn.Linear(32, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(self.up(self.norm(x if x.is_floating_point() else self.words(x))))
            return out

    with pytest.raises(ValueError, match=r"channels \(stages\.0\.up: .*words.weight, which the example does not reach"):
        tl.slim(Two(), torch.randn(2, 16), (0.5, 1))
    assert tl.slim(Two(), torch.tensor([1, 2]), (0.5, 1)).narrowing.channels == {("stages.0.up",): (16, 32)}
