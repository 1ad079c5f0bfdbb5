"""Channels that are rearranged, or told apart by their number: they go in step, or stay, by name; training goes on."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_shrink import exact, filters, kill
from test_shrink_channels import Forward
from torch import Tensor, nn
from torch.nn import functional

from telescopic import shrink
from telescopic.layers import Filter

How = Callable[[Tensor], Tensor]


def network(how: Any, channels: int = 9) -> tuple[nn.Module, Tensor]:
    """Two convolutions, and something between that keeps a shape."""
    torch.manual_seed(0)
    net = Forward(
        lambda self, x: self.b(self.how(self.a(x).relu())), a=nn.Conv2d(2, channels, 1), b=nn.Conv2d(channels, 4, 1)
    )
    net.how = how
    return net, torch.randn(3, 2, 4, 4)


def by_hand(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, h, w)


def thirds(x: Tensor) -> Tensor:
    one, two, three = x.chunk(3, 1)
    return torch.cat((one + two, two, three), 1)


STEPS: dict[str, tuple[How, list[int], list[int]]] = {
    # What is done, which are dead, and which stay.
    "ChannelShuffle": (nn.ChannelShuffle(3), [0, 3, 4, 5, 6, 7], [1, 2, 4, 5, 7, 8]),
    "shuffled by hand": (by_hand, [0, 1, 3, 4, 5, 6, 7], [2, 5, 8]),
    "groups first": (
        lambda x: x.view(len(x), 3, -1, 4, 4).transpose(1, 2).flatten(1, 2), [0, 3, 6, 7], [1, 2, 4, 5, 7, 8],
    ),
    "groups last": (
        lambda x: x.view(len(x), -1, 3, 4, 4).transpose(1, 2).flatten(1, 2), [0, 1, 2, 3, 4], [3, 4, 5, 6, 7, 8],
    ),
    "an open Unflatten": (lambda x: nn.Unflatten(1, (-1, 3))(x).flatten(1, 2), [0, 1, 2, 7, 8], [3, 4, 5, 6, 7, 8]),
    "turned round": (lambda x: x.flip(1), [0, 1, 3, 4, 5, 6, 7], [2, 8]),
    "thirds": (thirds, [0, 1, 3, 4, 6, 7, 8], [2, 5, 8]),
    "thirds in another order": (lambda x: torch.cat(x.chunk(3, 1)[::-1], 1), [0, 1, 3, 6, 8], [1, 2, 4, 5, 7, 8]),
    "rolled in space": (lambda x: x.roll(1, 2), [0, 8], [1, 2, 3, 4, 5, 6, 7]),
    "indexed in space": (lambda x: x[:, :, torch.tensor([3, 2, 1, 0])], [0, 8], [1, 2, 3, 4, 5, 6, 7]),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_what_is_rearranged_goes_in_step(name: str) -> None:
    how, dead, stay = STEPS[name]
    net, x = network(lambda x: how(x))
    net = shrink.add_filters(net, x)

    def some(net: nn.Module) -> None:
        for part in filters(net).values():
            part.theta.data[dead] = 0

    log = exact(net, x, dead=some)
    kept = next((cut.kept for cut in log.cuts if cut.name.endswith("theta")), torch.arange(9))
    if name == "thirds":  # of the first as many go as of the others, whichever they are
        assert len(kept) % 3 == 0 and set(stay) <= set(kept.tolist())
    else:
        assert kept.tolist() == stay


def test_a_grouped_convolution_behind_a_shuffle() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4, 4)
    parts = [nn.Conv2d(2, 12, 1), nn.ReLU(), nn.ChannelShuffle(3), nn.Conv2d(12, 8, 1, groups=2), nn.ReLU()]
    net = shrink.add_filters(nn.Sequential(*parts, nn.ChannelShuffle(2), nn.Conv2d(8, 3, 1, groups=1)), x)

    def some(net: nn.Module) -> None:
        for part, dead in zip(filters(net).values(), ([0, 4, 8, 2, 6, 10, 3], [0, 4, 5]), strict=True):
            part.theta.data[dead] = 0

    assert list(exact(net, x, dead=some).left.values()) == [6, 6]


def test_groups_that_lose_more_than_others() -> None:
    net = nn.Sequential(nn.Linear(3, 6), Filter(6), nn.Unflatten(1, (6, 1)), nn.Conv1d(6, 4, 1, groups=2), nn.Flatten())
    net[2] = nn.Sequential(nn.Flatten(1), Forward(lambda self, x: x[:, :, None]))
    net.append(nn.Linear(4, 2))
    net[1].theta.data[:2] = 0
    assert shrink.compact_(net, example=torch.randn(2, 3)).held == {"1": "groups that keep equally many channels"}


HELD: dict[str, tuple[How, str]] = {
    "roll": (lambda x: x.roll(3, 1), "roll in the network (Forward), which tells channels apart by their number"),
    "index": (lambda x: x[:, [8, 1, 2, 3, 4, 5, 6, 7, 0]], "getitem in the network (Forward), which tells"),
    "tensor": (lambda x: x[:, torch.arange(8, -1, -1)], "getitem in the network (Forward), which tells"),
    "index_select": (lambda x: x.index_select(1, torch.arange(9)), "index_select in the network (Forward), which is"),
    "pixels": (lambda x: functional.pixel_shuffle(x, 3).repeat(1, 9, 1, 1)[:, :, :4, :4], "pixel_shuffle in the"),
    "split": (lambda x: torch.cat(x.split(3, 1)[::-1], 1), "split in the network (Forward), which tells"),
    "unbind": (lambda x: torch.stack(x.unbind(1)[::-1], 1), "unbind in the network (Forward), which tells"),
    "fft": (lambda x: torch.fft.fft(x, dim=1).real, "fft_fft in the network (Forward), which is not known"),
    "cumsum": (lambda x: x.cumsum(1), "cumsum in the network (Forward), which is not known"),
    "sort": (lambda x: torch.gather(x, 1, x.sort(1)[1]), "sort in the network (Forward), which is not known"),
    "topk": (lambda x: x[:, x.mean((0, 2, 3)).topk(9)[1]], "topk in the network (Forward), which is not known"),
    "GLU": (lambda x: functional.glu(torch.cat((x, x), 1), 1), "glu in the network (Forward), which is not known"),
    "einsum": (lambda x: torch.einsum("bchw->bhwc", x).permute(0, 3, 1, 2), "einsum in the network (Forward), which"),
}


@pytest.mark.parametrize("name", HELD)
def test_what_cannot_be_followed_is_held_by_name(name: str) -> None:
    how, why = HELD[name]
    net, x = network(how)
    with pytest.raises(ValueError, match="a filter behind a could never remove a channel") as caught:
        shrink.add_filters(net, x)
    assert why in str(caught.value) and "from the input's shape" not in str(caught.value)
    net.a = nn.Sequential(net.a, Filter(9))
    kill(net)
    log = shrink.compact_(net, example=x)
    assert not log and why in log.held["a.1"]


def test_depthwise_convolutions_lose_what_goes_together() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 5, 5)
    for times in (1, 2, 3):
        wide = 6 * times
        parts = [nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, wide, 3, groups=6), nn.BatchNorm2d(wide), nn.ReLU()]
        net = shrink.add_filters(nn.Sequential(*parts, nn.Conv2d(wide, 2, 1)), x)
        assert list(filters(net)) == ["0.filter", "3.filter"]

        def some(net: nn.Sequential, times: int = times) -> None:
            net[0].filter.theta.data[[0, 4]] = 0
            net[3].filter.theta.data[: 5 * times] = 0
            net[3].filter.theta.data[-1] = 0

        # An input goes when all its outputs are dead, whether it is dead itself or not.
        assert list(exact(net, x, dead=some).left.values()) == [1, times]


# Surprises ------------------------------------------------------------------------------------------------------------


def test_a_surprise_holds_its_filter_and_no_other() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        return self.d(self.c(x.view(-1, 6 * 16)).relu())

    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Conv2d(given, 6, 1), Filter(6)) for given in (2, 6))
    net = Forward(forward, a=a, b=b, c=nn.Sequential(nn.Linear(96, 6), Filter(6)), d=nn.Linear(6, 2))
    x = torch.randn(3, 2, 4, 4)
    with pytest.warns(UserWarning, match=r"filter b\.1 stay: view\(-1, 96\) .* \[2, 6, 4, 4\] to \[2, 4, "):
        log = exact(net, x)
    assert log.left == {"a.1": 4, "b.1": 6, "c.1": 4} and log.removed == {"a.1": 2, "c.1": 2}
    assert log.held.keys() == {"b.1"} and "view(-1, 96)" in log.held["b.1"]
    # It is remembered, and said once.
    for part in filters(net).values():
        part.theta.data[0] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log = shrink.compact_(net, example=x)
    assert log.left == {"a.1": 3, "b.1": 6, "c.1": 3} and log.held.keys() == {"b.1"}


def test_a_surprise_whose_reason_is_not_known_is_told_as_it_is() -> None:
    def choosy(x: Tensor) -> Tensor:
        if x.shape[1] == 6:
            raise RuntimeError("not six!\n" + "and so on\n" * 60)
        return x

    net, x = network(choosy)
    net.a = nn.Sequential(net.a, Filter(9))
    net.a[1].theta.data[:3] = 0
    with pytest.warns(UserWarning, match=r"a\.1 stay: the network \(Forward\), which fails .*: not six!$"):
        assert not shrink.compact_(net, example=x)
    assert "shape" not in shrink.compact_(net, example=x).held["a.1"]


def test_a_surprise_in_the_outputs() -> None:
    net, x = network(lambda x: x * (2 if x.shape[1] == 9 else 3))
    with pytest.raises(ValueError, match=r"because of the network's outputs, which would change by 0\.\d+, of \d"):
        shrink.add_filters(net, x)


def test_what_torch_does_not_announce_holds_all() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.a(x)
        with torch._C.DisableTorchFunction():
            x = 2 * x
        return self.b(x)

    net = Forward(forward, a=nn.Sequential(nn.Linear(3, 6), Filter(6)), b=nn.Linear(6, 2))
    x = torch.randn(2, 3)
    kill(net)
    before = copy.deepcopy(net.state_dict())
    with pytest.warns(UserWarning, match=r"a\.1 stay: b \(Linear\) reads a tensor made by something that"):
        log = shrink.compact_(net, example=x)
    assert not log and log.left == {"a.1": 6} and log.held.keys() == {"a.1"}
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_a_rule_that_fails_holds() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    def rule(watch: Any, call: Any) -> Any:
        raise KeyError("oh")

    shrink.register_rule(Own, rule)
    net = nn.Sequential(nn.Linear(3, 6), Filter(6), Own(), nn.Linear(6, 2))
    kill(net)
    log = shrink.compact_(net, example=torch.randn(2, 3))
    assert log.held == {
        "1": "Own in 2 (Own), which is not known to treat each channel alone when used like this ('oh')"
    }
