"""What a program has set for all of torch neither fails what the library does nor changes what it finds."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from test_shrink import filters
from torch import Tensor, nn

import telescopic as tl
from telescopic import shrink
from telescopic.data import Dataset, Split

SHAPE = (2, 6, 6)


@contextlib.contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AMBIENT: dict[str, Callable[[], tuple[Any, ...]]] = {  # in twos: what either of them does, both do
    "inference mode, autocast": lambda: (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)),
    "no grad, the meta device": lambda: (torch.no_grad(), torch.device("meta")),
    "float64": lambda: (default(torch.float64),),
    "bfloat16": lambda: (default(torch.bfloat16),),
}


def plain_network() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Conv2d(given, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)) for given in (2, 4)
    ]
    return nn.Sequential(*blocks, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))


def family() -> tl.Nested:
    return tl.nest(plain_network(), input_shape=SHAPE, entries=[1], exits=[1])


def filtered() -> nn.Module:
    net = shrink.add_filters(plain_network(), torch.ones(3, *SHAPE))
    for part in filters(net).values():
        part.theta.data[1::2] = 0
    return net


def data() -> Dataset:
    images = torch.randint(0, 256, (12, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    part = Split(images, torch.arange(12) % 3)
    return Dataset("ours", part, part, part, ("a", "b", "c"), "here")


def compacted(net: nn.Module, folder: Path) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters())
    assert shrink.compact_(net, optimizer)
    return net


def replayed(both: tuple[nn.Module, nn.Module, shrink.Log], folder: Path) -> nn.Module:
    both[2].replay_(both[1])
    return both[1]


def twice() -> tuple[nn.Module, nn.Module, shrink.Log]:
    net = filtered()
    other = copy.deepcopy(net)
    return net, other, shrink.compact_(net)


def ordered(net: nn.Module, folder: Path) -> nn.Module:
    assert shrink.order_(net)
    return net


def priced(net: nn.Module, folder: Path) -> nn.Module:
    shrink.price_(net)
    return net


def saved(net: tl.Nested, folder: Path) -> nn.Module:
    tl.save(net, folder / "net.telescopic", input_shape=SHAPE)
    return tl.load(folder / "net.telescopic")


def exported(both: tuple[nn.Module, Tensor], folder: Path) -> nn.Module:
    tl.export(both[0], folder / "net.safetensors", both[1])
    return tl.load(folder / "net.safetensors")


def causal(net: nn.Module, folder: Path) -> nn.Module:
    return tl.causal_(net, 2, input_shape=SHAPE)


def trained(both: tuple[tl.Nested, Dataset], folder: Path) -> nn.Module:
    tl.fit(*both, tl.Recipe(epochs=1, batch_size=6), progress=False)
    return both[0]


# Name → what is made in peace, and what is done to it in the ambient mode.
CALLS: dict[str, tuple[Callable[[], Any], Callable[[Any, Path], Any]]] = {
    "add_filters": (lambda: (plain_network(), torch.ones(3, *SHAPE)), lambda both, _: shrink.add_filters(*both)),
    "add_filters_to_family": (
        lambda: (family(), torch.ones(3, *SHAPE)), lambda both, _: shrink.add_filters_to_family(*both),
    ),
    "compact_": (filtered, compacted),
    "replay_": (twice, replayed),
    "order_": (filtered, ordered),
    "price_": (filtered, priced),
    "fold": (filtered, lambda net, _: shrink.fold(net)),
    "fold_bn": (lambda: plain_network().eval(), lambda net, _: tl.fold_bn(net)),
    "nest": (plain_network, lambda net, _: tl.nest(net, input_shape=SHAPE, entries=[1], exits=[1])),
    "causal_": (plain_network, causal),
    "extract": (family, lambda net, _: tl.extract(net, tl.Subnet(entry=1, exit=1))),
    "recalibrate": (lambda: (family(), data().train), lambda both, _: tl.recalibrate(*both)),
    "save and load": (family, saved),
    "export": (lambda: (tl.extract(family()), torch.ones(2, *SHAPE)), exported),
    "fit": (lambda: (family(), data()), trained),
    "cost": (plain_network, lambda net, _: tl.cost(net, SHAPE)),
    "latency": (plain_network, lambda net, _: tl.latency(net, SHAPE, seconds=0.001).batch),
    "measure": (family, lambda net, _: [(m.subnet, m.macs, m.params) for m in tl.measure(net, input_shape=SHAPE)]),
    "check_nested": (family, lambda net, _: tl.testing.check_nested(net, input_shape=SHAPE, members=2)),
}  # fmt: skip


@pytest.fixture(scope="module")
def in_peace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What a call gives when nothing is set; each is made once, for nobody changes it."""

    @cache
    def made(call: str) -> Any:
        make, do = CALLS[call]
        given = make()
        torch.manual_seed(1)
        return do(given, tmp_path_factory.mktemp("peace"))

    return made


@pytest.mark.parametrize("ambient", AMBIENT)
@pytest.mark.parametrize("call", CALLS)
def test_nothing_ambient_matters(call: str, ambient: str, in_peace: Callable[[str], Any], tmp_path: Path) -> None:
    make, do = CALLS[call]
    given = make()
    torch.manual_seed(1)
    with contextlib.ExitStack() as stack:
        for mode in AMBIENT[ambient]():
            stack.enter_context(mode)
        found = do(given, tmp_path)
    wanted = in_peace(call)
    if not isinstance(wanted, nn.Module):
        assert found == wanted
        return
    # New parameters are drawn in the default type and then brought to the network's.
    drawn = call in ("add_filters", "add_filters_to_family", "nest") and ambient in ("float64", "bfloat16")
    bound = {"rtol": 2.0, "atol": 2.0} if drawn else {"rtol": 0.0, "atol": 0.0}
    torch.testing.assert_close(found.state_dict(), wanted.state_dict(), equal_nan=True, **bound)
    found.train()(torch.rand(3, *SHAPE)).square().sum().backward()  # what was made in inference mode could not
    torch.optim.SGD(found.parameters(), 0.1).step()


def test_inside_transformed_functions_it_is_refused() -> None:
    net = filtered()
    for transform in (torch.vmap, torch.func.grad):

        def call(x: Tensor) -> Tensor:
            shrink.compact_(net)
            return x.sum()

        with pytest.raises(ValueError, match=r"inside a function that torch\.vmap, torch\.func\.grad"):
            transform(call)(torch.ones(2))
    assert all(len(part.theta) == 4 for part in filters(net).values())
