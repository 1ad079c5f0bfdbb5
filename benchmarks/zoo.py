"""Networks of many kinds through every door: each must be taken and right, or be refused in one sentence.

python benchmarks/zoo.py [--only NAME ...]    writes results/zoo.json

"Right" is checked: a family keeps all laws and its full member answers as the network did; a network without its dead
channels answers as before; a file, loaded or run, gives the network's answers. tests/test_zoo.py runs the quick doors.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import telescopic as tl
from telescopic import shrink
from telescopic.layers import Filter

from results import write

IMAGE, SERIES, ROW = (3, 8, 8), (7, 6), (6,)
Example = tuple[Tensor, ...]
LONGEST = 600  # characters of a refusal


def conv(given: int, made: int, *more: nn.Module) -> nn.Sequential:
    """A convolution, its norm and its activation."""
    return nn.Sequential(nn.Conv2d(given, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU(), *more)


def head(channels: int = 8, classes: int = 5) -> nn.Sequential:
    """From feature maps to scores."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Module(nn.Module):
    """A module whose forward pass is a function of the module and its inputs."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        """Take the parts: modules, parameters, or other attributes; a tuple of one tensor becomes a buffer."""
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, tuple):
                self.register_buffer(name, part[0])
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        """What the function says."""
        return self.run(self, x)


class Standardised(nn.Conv2d):
    """A convolution that standardises its weight at each call."""

    def forward(self, x: Tensor) -> Tensor:
        """As its parent, with another weight."""
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return nn.functional.conv2d(x, w, self.bias, self.stride, self.padding)


def within(block: nn.Module) -> nn.Sequential:
    """A block between two convolutions of eight channels."""
    return nn.Sequential(conv(3, 8), block, conv(8, 8), head())


def instead(block: nn.Module) -> nn.Sequential:
    """A block in place of the second convolution."""
    return nn.Sequential(conv(3, 8), block, head())


def changed(change: Callable[[nn.Sequential], Any]) -> nn.Sequential:
    """A plain network, to which something was done."""
    network = nn.Sequential(conv(3, 8), conv(8, 8), head())
    change(network)
    return network


class TwoInputs(nn.Module):
    """A network of two inputs."""

    def __init__(self) -> None:
        """A layer for each, and one for their sum."""
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The scores."""
        return self.out(torch.relu(self.a(x) + self.b(y)))  # type: ignore[no-any-return]


def several(how: Callable[[Tensor, Tensor], Any]) -> nn.Module:
    """A network of two heads, and what it makes of both."""

    def run(s: Any, x: Tensor) -> Any:
        x = s.body(x)
        return how(s.one(x), s.two(x))

    return Module(run, body=conv(3, 8), one=head(), two=head(8, 3))


def recurrent(rnn: nn.Module, made: int = 8) -> nn.Module:
    """A recurrent network whose last state is classified."""
    return Module(
        lambda s, x: s.out(s.rnn(torch.relu(s.up(x)))[0][:, -1]), up=nn.Linear(6, 8), rnn=rnn, out=nn.Linear(made, 5)
    )


def spectral() -> nn.Module:
    """A filter in the Fourier domain."""

    def run(s: Any, x: Tensor) -> Tensor:
        wave = torch.fft.rfft2(torch.relu(s.conv(x))) * s.filter
        return s.head(torch.fft.irfft2(wave, s=x.shape[-2:]))

    return Module(run, conv=nn.Conv2d(3, 8, 3, padding=1), filter=nn.Parameter(torch.randn(8, 8, 5)), head=head())


def complex_numbers() -> nn.Module:
    """A layer of complex numbers."""
    return Module(
        lambda s, x: s.out(s.a(x.to(s.a.weight.dtype)).abs()),
        a=nn.Linear(6, 8, dtype=torch.cfloat),
        out=nn.Linear(8, 5),
    )


def attention_pool() -> nn.Module:
    """Pooling by attention, with one learned query."""

    def run(s: Any, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        weights = torch.softmax(torch.einsum("c,bcn->bn", s.query, tokens), -1)
        return torch.einsum("bn,bcn->bc", weights, tokens)

    return Module(run, query=nn.Parameter(torch.randn(8)))


def experts() -> nn.Module:
    """Two experts, of which one answers for each example."""

    def run(s: Any, x: Tensor) -> Tensor:
        x = torch.relu(s.up(x))
        chosen = s.gate(x).argmax(-1)
        answers = torch.stack([s.one(x), s.two(x)], 1)
        return s.out(torch.relu(answers.gather(1, chosen[:, None, None].expand(-1, 1, 8)).squeeze(1)))

    return Module(
        run, up=nn.Linear(6, 8), gate=nn.Linear(8, 2), one=nn.Linear(8, 8), two=nn.Linear(8, 8), out=nn.Linear(8, 5)
    )


def branches() -> nn.Module:
    """A branch that depends on values."""

    def run(s: Any, x: Tensor) -> Tensor:
        x = torch.relu(s.a(x))
        return s.out(torch.relu(s.b(x)) if x.sum() > 0 else x)

    return Module(run, a=nn.Linear(6, 8), b=nn.Linear(8, 8), out=nn.Linear(8, 5))


def codebook() -> nn.Module:
    """Vector quantisation against a buffer."""

    def run(s: Any, x: Tensor) -> Tensor:
        tokens = x.permute(0, 2, 3, 1)
        nearest = torch.cdist(tokens.flatten(0, 2), s.code).argmin(-1)
        return x + (s.code[nearest].view(tokens.shape) - tokens).detach().permute(0, 3, 1, 2)

    return Module(run, code=(torch.randn(4, 8),))


def causal_mask() -> nn.Module:
    """A mask that is kept as a plain attribute."""

    def run(s: Any, x: Tensor) -> Tensor:
        if s.mask is None or s.mask.shape != x.shape[-2:] or s.mask.device != x.device:
            s.mask = torch.ones(x.shape[-2:], dtype=x.dtype, device=x.device).tril()
        return x * s.mask

    return Module(run, mask=None)


def keeps_features() -> nn.Module:
    """A module that holds on to its last features."""

    def run(s: Any, x: Tensor) -> Tensor:
        s.last = x
        return x

    return Module(run, last=None)


def counts() -> nn.Module:
    """A module whose answer depends on how often it was called."""

    def run(s: Any, x: Tensor) -> Tensor:
        s.calls += 1
        return x * (1 + 0.1 * s.calls)

    return Module(run, calls=0)


def running_mean() -> nn.Module:
    """A buffer that is assigned anew at each step of training."""

    def run(s: Any, x: Tensor) -> Tensor:
        if s.training:
            s.mean = s.mean * 0.9 + x.mean((0, 2, 3)).detach() * 0.1
        return x - s.mean[:, None, None]

    return Module(run, mean=(torch.zeros(8),))


def drop_path() -> nn.Module:
    """A residual block that is skipped at random in training."""

    def run(s: Any, x: Tensor) -> Tensor:
        made = s.body(x)
        return x + (made * (torch.rand(len(x), 1, 1, 1) > 0.2) if s.training else made)

    return Module(run, body=conv(8, 8))


def tied() -> nn.Module:
    """Two layers of one weight."""
    network = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5)
    )
    network[4].weight = network[2].weight
    return network


def scripted() -> nn.Module:
    """What `torch.jit.trace` makes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.trace(instead(conv(8, 8)).eval(), torch.randn(2, *IMAGE))  # type: ignore[no-any-return, no-untyped-call]


def quantised() -> nn.Module:
    """Dynamically quantised layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import quantize_dynamic

        return quantize_dynamic(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), {nn.Linear})  # type: ignore[no-any-return, no-untyped-call]


def old_weight_norm(network: nn.Sequential) -> None:
    """The weight norm that works by hooks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(network[1][0])


ZOO: Mapping[str, tuple[Callable[[], nn.Module], Any]] = {
    "two inputs": (TwoInputs, ((6,), (4,))),
    "two outputs": (lambda: several(lambda one, two: (one, two)), IMAGE),
    "a dict of outputs": (lambda: several(lambda one, two: {"one": one, "two": two}), IMAGE),
    "weight norm": (lambda: within(nn.Sequential(parametrizations.weight_norm(nn.Conv2d(8, 8, 1)), nn.ReLU())), IMAGE),
    "weight norm by hooks": (lambda: changed(old_weight_norm), IMAGE),
    "spectral norm": (
        lambda: within(nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)), nn.ReLU())),
        IMAGE,
    ),
    "orthogonal": (
        lambda: nn.Sequential(
            nn.Linear(6, 8), nn.ReLU(), parametrizations.orthogonal(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 5)
        ),
        ROW,
    ),
    "pruned": (lambda: changed(lambda net: prune.l1_unstructured(net[1][0], "weight", 0.5)), IMAGE),  # type: ignore[no-untyped-call]
    "complex": (complex_numbers, ROW),
    "spectral": (spectral, IMAGE),
    "convolutions in 3 dimensions": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU()),
            nn.Sequential(nn.Conv3d(8, 8, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5)),
        ),
        (1, 4, 4, 4),
    ),
    "convolutions in 1 dimension": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Conv1d(2, 8, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv1d(8, 8, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5)),
        ),
        (2, 12),
    ),
    "positions": (lambda: within(Module(lambda s, x: x + s.table, table=nn.Parameter(torch.randn(1, 8, 8, 8)))), IMAGE),
    "dropouts": (
        lambda: nn.Sequential(
            conv(3, 8, nn.Dropout2d(0.2)), conv(8, 8, nn.AlphaDropout(0.1)), nn.Dropout3d(0.1), head()
        ),
        IMAGE,
    ),
    "GRU": (lambda: recurrent(nn.GRU(8, 8, batch_first=True)), SERIES),
    "LSTM both ways": (lambda: recurrent(nn.LSTM(8, 8, batch_first=True, bidirectional=True), 16), SERIES),
    "GRU as a block": (
        lambda: nn.Sequential(
            nn.Linear(6, 8),
            nn.ReLU(),
            Module(lambda s, x: s.rnn(x)[0][:, -1], rnn=nn.GRU(8, 8, batch_first=True)),
            nn.Linear(8, 5),
        ),
        SERIES,
    ),
    "a hook": (lambda: changed(lambda net: net[0].register_forward_hook(lambda _, given, made: made * 2)), IMAGE),
    "a cached mask": (lambda: within(causal_mask()), IMAGE),
    "keeps its features": (lambda: within(keeps_features()), IMAGE),
    "counts its calls": (lambda: within(counts()), IMAGE),
    "noise": (lambda: within(Module(lambda s, x: x + 0.1 * torch.randn_like(x))), IMAGE),
    "a running mean": (lambda: within(running_mean()), IMAGE),
    "a codebook": (lambda: within(codebook()), IMAGE),
    "generated by fx": (lambda: fx.symbolic_trace(instead(conv(8, 8))), IMAGE),
    "quantised": (quantised, ROW),
    "scripted": (scripted, IMAGE),
    "tied": (tied, ROW),
    "bfloat16": (lambda: instead(conv(8, 8)).bfloat16(), IMAGE),
    "float64": (lambda: instead(conv(8, 8)).double(), IMAGE),
    "lazy": (
        lambda: nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5)),
        IMAGE,
    ),
    "frozen": (lambda: changed(lambda net: net[0].requires_grad_(False)), IMAGE),
    "checkpointed": (
        lambda: instead(Module(lambda s, x: checkpoint(s.body, x, use_reentrant=False), body=conv(8, 8))),
        IMAGE,
    ),
    "standardised weights": (lambda: instead(nn.Sequential(Standardised(8, 8, 3, padding=1), nn.ReLU())), IMAGE),
    "layer scale": (
        lambda: instead(
            Module(lambda s, x: x + s.body(x) * s.gain, body=conv(8, 8), gain=nn.Parameter(torch.ones(8, 1, 1) / 2))
        ),
        IMAGE,
    ),
    "drop path": (lambda: instead(drop_path()), IMAGE),
    "attention pool": (lambda: nn.Sequential(conv(3, 8), conv(8, 8), attention_pool(), nn.Linear(8, 5)), IMAGE),
    "encoder layer": (
        lambda: nn.Sequential(
            nn.Linear(6, 16),
            nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True),
            nn.Flatten(),
            nn.Linear(112, 5),
        ),
        SERIES,
    ),
    "tokens": (
        lambda: Module(
            lambda s, x: s.out(torch.relu(s.up(s.table(x))).mean(1)),
            table=nn.Embedding(20, 16),
            up=nn.Linear(16, 16),
            out=nn.Linear(16, 5),
        ),
        "tokens",
    ),
    "experts": (experts, ROW),
    "branches on values": (branches, ROW),
    "bilinear": (
        lambda: Module(
            lambda s, x: s.out(torch.relu(s.b(torch.relu(s.a(x)), x))),
            a=nn.Linear(6, 8),
            b=nn.Bilinear(8, 6, 8),
            out=nn.Linear(8, 5),
        ),
        ROW,
    ),
    "transposed": (lambda: instead(nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2), nn.ReLU())), IMAGE),
    "pixel shuffle": (lambda: instead(nn.Sequential(nn.PixelShuffle(2), nn.Conv2d(2, 8, 3), nn.ReLU())), IMAGE),
    "unfold": (
        lambda: nn.Sequential(
            conv(3, 8),
            nn.Sequential(nn.Unfold(2, stride=2), nn.Flatten(), nn.Linear(512, 8), nn.ReLU()),
            nn.Linear(8, 5),
        ),
        IMAGE,
    ),
    "instance norm": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.ReLU()),
            conv(8, 8),
            head(),
        ),
        IMAGE,
    ),
    "local response norm": (lambda: nn.Sequential(conv(3, 8, nn.LocalResponseNorm(3)), conv(8, 8), head()), IMAGE),
    "gated": (lambda: nn.Sequential(nn.Sequential(nn.Conv2d(3, 16, 3), nn.GLU(1)), conv(8, 8), head()), IMAGE),
    "a slope for each channel": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(8), conv(8, 8), head()), IMAGE),
}
"""Name → how it is made, and the shape of one input (of several inputs, their shapes)."""


def example(network: nn.Module, shape: Any, number: int = 4) -> Example:
    """Inputs of the type that the network computes in."""
    if shape == "tokens":
        return (torch.randint(0, 20, (number, 7)),)
    types = [p.dtype for p in network.parameters() if p.dtype.is_floating_point]
    shapes = shape if isinstance(shape[0], tuple) else (shape,)
    return tuple(torch.randn(number, *one, dtype=types[0] if types else torch.float32) for one in shapes)


def answers(network: Callable[..., Any], inputs: Example) -> list[Tensor]:
    """All that it gives, as a list, in a state of torch's random numbers that is always the same."""

    def flat(made: Any) -> list[Tensor]:
        if isinstance(made, Tensor):
            return [made]
        return [t for part in (made.values() if isinstance(made, dict) else made) for t in flat(part)]

    torch.manual_seed(1)
    with torch.no_grad():
        return flat(network(*inputs))


def same(one: list[Tensor], other: list[Tensor], tolerance: float = 1e-5) -> None:
    """Assert that two lists of answers are alike."""
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def one(inputs: Example) -> Any:
    """An example as the doors take it: one tensor by itself, several as a tuple."""
    return inputs[0] if len(inputs) == 1 else inputs


def shape_of(shape: Any) -> Any:
    """The shape of one input where a door asks for it."""
    return (7,) if shape == "tokens" else shape


def lawful(family: tl.Nested, shape: Any) -> None:
    """Check all laws; a network that breaks one is refused by them."""
    try:
        tl.testing.check_nested(family, shape_of(shape), rebuild=False)
    except AssertionError as error:
        raise ValueError(str(error)) from error


def nested(network: nn.Module, shape: Any, folder: Path) -> None:
    """A family with an entry and an exit more, in eval mode."""
    family = tl.nest(network.eval(), input_shape=shape_of(shape), entries=[1], exits=[1])  # type: ignore[arg-type]
    lawful(family, shape)
    inputs = example(network, shape)
    same(answers(family, inputs), answers(network, inputs))


def causal(network: nn.Module, shape: Any, folder: Path) -> None:
    """A family with two widths."""
    made = tl.causal_(network, 2, input_shape=shape_of(shape))
    family = tl.nest(made, input_shape=shape_of(shape), exits=[1], groups=2)  # type: ignore[arg-type]
    lawful(family, shape)


def shrunk(network: nn.Module, shape: Any, folder: Path) -> None:
    """Every third channel removed, then no filter left."""
    inputs = example(network, shape)
    made = shrink.add_filters(network, one(inputs))
    with torch.no_grad():
        for part in made.modules():
            if isinstance(part, Filter):
                next(part.parameters())[1::3] = -1
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1, momentum=0.9)
    before = answers(made.eval(), inputs)
    size = sum(p.numel() for p in made.parameters())
    shrink.compact_(made.train(), optimizer, example=one(inputs))
    same(answers(made.eval(), inputs), before, tolerance := 1e-2 if inputs[0].dtype == torch.bfloat16 else 1e-5)
    assert sum(p.numel() for p in made.parameters()) < size
    same(answers(shrink.fold(made).eval(), inputs), before, tolerance)


def priced(network: nn.Module, shape: Any, folder: Path) -> None:
    """Its cost; that it is true is for the tests of cost to say."""
    assert tl.cost(network.eval(), shape_of(shape)).params == sum(p.numel() for p in set(network.parameters()))


def saved(network: nn.Module, shape: Any, folder: Path) -> None:
    """Saved as a bundle, and loaded again."""
    inputs = example(network, shape)
    path = tl.save(network.eval(), folder / "network.safetensors")
    same(answers(tl.load(path).eval(), inputs), answers(network, inputs))


def exported(ending: str) -> Callable[[nn.Module, Any, Path], None]:
    """A file of this kind; `export` itself compares its answers."""

    def door(network: nn.Module, shape: Any, folder: Path) -> None:
        inputs = example(network.eval(), shape)
        tl.export(network, folder / f"network{ending}", one(inputs))

    return door


def packed(network: nn.Module, shape: Any, folder: Path) -> None:
    """A pack with an exit more, run by the engine."""
    family = tl.nest(network.eval(), input_shape=shape_of(shape), exits=[1]).eval()  # type: ignore[arg-type]
    engine = tl.Engine(tl.pack(family, folder / "pack", input_shape=shape_of(shape), members="all"))
    inputs = example(network, shape)
    for member in family.grid:
        theirs = torch.as_tensor(engine.run(inputs[0].numpy(), subnet=member).logits)
        same([theirs], answers(lambda x, member=member: family(x, member), inputs), 1e-4)


QUICK = {"nest": nested, "causal_": causal, "shrink": shrunk, "cost": priced, "save": saved}
DOORS = QUICK | {".pt2": exported(".pt2"), ".onnx": exported(".onnx"), "pack": packed}
REFUSALS = (ValueError, TypeError, tl.ExportError, tl.PackError, tl.BundleError)


def outcome(name: str, door: str) -> str:
    """What came of it: right, or what a refusal says.

    Raises:
        AssertionError: if an answer is wrong, or a refusal is no sentence of ours.
    """
    make, shape = ZOO[name]
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make()
        try:
            DOORS[door](network, shape, Path(folder))
        except REFUSALS as error:
            text = str(error).replace(folder, "")
            assert "\n" not in text and "\x1b" not in text and len(text) <= LONGEST, f"no sentence: {text}"
            return text
    return "right"


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(ZOO), metavar="NAME")
    names, table, wrong = parser.parse_args().only, {}, 0
    for name in names:
        table[name] = {}
        for door in DOORS:
            try:
                told = outcome(name, door)
            except Exception as error:
                wrong += 1
                told = f"WRONG: {type(error).__name__}: {error}"[:400]
            table[name][door] = told
            print(f"{name:30s} {door:8s} {told[:200]}", flush=True)
    write("zoo", {"networks": len(names)}, {"wrong": wrong, "table": table})
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
