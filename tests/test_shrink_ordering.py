"""Channels in the order of θ: the network stays what it was, and its first channels are the important ones."""

import copy
from typing import Any

import pytest
import torch
from test_shrink import IMAGES, LeNet, filters, kill, lived, step
from test_shrink_channels import Forward, block, concatenated, squeeze
from torch import Tensor, nn
from torch.optim import Adafactor, Adam

import telescopic as tl
from telescopic import shrink
from telescopic.layers import Filter, Residual
from telescopic.networks import resnet, vgg
from telescopic.shrink.family import Every, add_filters_to_family


def falling(part: Filter) -> bool:
    return bool((part.scale().diff() <= 0).all())


def ordered(net: nn.Module, x: Tensor, **how: Any) -> shrink.Log:
    """Train, put in order; outputs, the rest of training and its states are those of the network without order."""
    net, x = lived(net).double(), x.double()
    optimizer = Adam(shrink.parameter_groups(net), 1e-3)
    for seed in (1, 2):
        step(net, optimizer, x, seed)
    before, its = copy.deepcopy((net, optimizer))
    log = shrink.order_(net, optimizer, **how)
    torch.testing.assert_close(net.eval()(x), before.eval()(x), rtol=1e-12, atol=1e-12)
    for seed in (3, 4):
        losses = step(net, optimizer, x, seed), step(before, its, x, seed)
        torch.testing.assert_close(*losses, rtol=1e-11, atol=1e-11)
    log.replay_(before, its)
    torch.testing.assert_close(net.state_dict(), before.state_dict(), rtol=1e-10, atol=1e-10)
    theirs = dict(before.named_parameters())
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(
            dict(optimizer.state[parameter]), dict(its.state[theirs[name]]), rtol=1e-9, atol=1e-9
        )
    assert not log.removed and list(log.left.values()) == [len(part.theta) for part in filters(net).values()]
    return log


def test_a_network_with_a_flatten() -> None:
    torch.manual_seed(0)
    x = torch.randn(IMAGES)
    net = shrink.add_filters(LeNet(), x)
    kill(net)
    with torch.no_grad():
        filters(net)["norm.filter"].theta.copy_(torch.tensor([0.3, -1.0, 0.5, 0.4, -2.0, 0.9]))
    log = ordered(net, x)
    (moved,) = [cut for cut in log.cuts if cut.name == "conv1.weight"]
    assert moved.kept.tolist() == [5, 2, 3, 0, 1, 4]  # the dead in the order in which they were
    assert all(falling(part) for part in filters(net).values())
    assert not filters(net)["norm.filter"].alive[4:].any()
    assert not shrink.order_(net)  # there is nothing left to move


def test_a_residual_stream_moves_together() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 6, 6)
    parts = [nn.Conv2d(2, 8, 3), nn.ReLU(), Residual(block(8)), Residual(block(8)), nn.AdaptiveAvgPool2d(1)]
    net = shrink.add_filters(nn.Sequential(*parts, nn.Flatten(), nn.Linear(8, 3)), x)
    log = ordered(net, x)
    found = filters(net)
    assert falling(found["2.body.0.filter"]) and falling(found["3.body.0.filter"])
    moves = {cut.name: cut.kept.tolist() for cut in log.cuts if cut.name.endswith("theta")}
    stream = ("0.filter", "2.body.3.filter", "3.body.3.filter")
    assert len({tuple(moves[f"{path}.theta"]) for path in stream}) == 1
    shrink.order_(net)
    assert (sum(found[path].scale() for path in stream).diff() <= 0).all()


def test_a_resnet_20() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    net = shrink.add_filters(resnet(20, width=4), x)
    ordered(net, x)
    shrink.order_(net)
    inner = [part for path, part in filters(net).items() if path.endswith("body.1.filter")]
    assert len(inner) == 9 and all(falling(part) for part in inner)


def test_groups_of_a_convolution_keep_their_channels() -> None:
    torch.manual_seed(0)
    middle, last = nn.Conv2d(6, 8, 3, groups=2), nn.ConvTranspose2d(8, 6, 3, groups=2)
    parts = [nn.Conv2d(3, 6, 1), Filter(6), middle, Filter(8), nn.ReLU(), last, Filter(6), nn.Conv2d(6, 2, 1)]
    net, x = nn.Sequential(*parts), torch.randn(2, 3, 6, 6)
    log = ordered(net, x, example=x)
    for part in (net[1], net[3], net[6]):
        one, other = part.scale().chunk(2)
        assert (one.diff() <= 0).all() and (other.diff() <= 0).all()
    assert [cut.kept.shape for cut in log.cuts if (cut.name, cut.dim) == ("2.weight", 1)] == [(2, 3)]


def halves(self: Any, x: Tensor) -> Tensor:
    one, other = self.filter(self.a(x)).chunk(2, 1)
    return self.b(one) + self.c(other)


def gated(self: Any, x: Tensor) -> Tensor:
    one, other = self.filter(self.a(x)).chunk(2, 1)
    return self.b(one * other.relu())


def test_halves_are_told_apart() -> None:
    torch.manual_seed(0)
    x, a = torch.randn(5, 3), nn.Linear(3, 8)
    net = Forward(halves, a=a, filter=Filter(8), b=nn.Linear(4, 2), c=nn.Linear(4, 2))
    ordered(net, x, example=x)
    assert all((half.diff() <= 0).all() for half in net.filter.scale().chunk(2))
    net = Forward(gated, a=a, filter=Filter(8), b=nn.Linear(4, 2))
    ordered(net, x, example=x)
    one, other = net.filter.scale().chunk(2)
    assert ((one + other).diff() <= 0).all()


def test_depthwise_concatenated_and_gated() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    parts = [nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=6, bias=False)]
    net = shrink.add_filters(nn.Sequential(*parts, nn.Conv2d(12, 2, 1)), x, where=lambda path: path == "0")
    ordered(net, x)
    assert falling(filters(net)["1.filter"])
    x = torch.randn(2, 3, 4, 4)
    convs = {name: nn.Conv2d(wide, 6, 1) for name, wide in (("a", 3), ("b", 3), ("c", 15))}
    net = shrink.add_filters(Forward(concatenated, **convs, head=nn.Linear(21, 2), d=nn.Linear(15 * 16, 2)), x)
    ordered(net, x)
    assert all(falling(part) for part in filters(net).values())
    parts = {"conv": nn.Conv2d(3, 6, 3), "down": nn.Linear(6, 4), "up": nn.Linear(4, 6), "head": nn.Linear(6, 2)}
    net = shrink.add_filters(Forward(squeeze, **parts), x, where={"conv", "down"}.__contains__)
    ordered(net, x)
    assert all(falling(part) for part in filters(net).values())


@pytest.mark.parametrize("statistics", ["shared", "per-entry"])
def test_a_family(statistics: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 1, 8, 8)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    blocks = [*vgg(11, channels=1, scale=0.0625)[:4], head]
    base = tl.nest(blocks, input_shape=(1, 8, 8), entries=(1, 2), statistics=statistics)
    net = lived(add_filters_to_family(base, x)).double().eval()
    before = net.all(x.double())
    log = shrink.order_(Every(net), example=x)
    assert {f"{path}.theta" for path in filters(net)} & {cut.name.removeprefix("net.") for cut in log.cuts}
    torch.testing.assert_close(net.all(x.double()), before, rtol=1e-12, atol=1e-12)


def test_the_first_channels_are_a_network_of_any_width() -> None:
    torch.manual_seed(0)
    x = torch.randn(IMAGES)
    net = shrink.add_filters(LeNet(), x).double()
    masked = copy.deepcopy(net)
    for part in filters(masked).values():
        part.theta.data[part.theta < part.theta.median()] = 0
    shrink.order_(net)
    for part in filters(net).values():
        part.theta.data[-(-len(part.theta) // 2) :] = 0
    log = shrink.compact_(net)
    assert list(log.left.values()) == [4, 3, 6] and all((cut.kept.diff() > 0).all() for cut in log.cuts)
    for path, part in filters(masked).items():  # of six, the lower median stays alive: four of eight, three of six
        assert (~part.dead()).sum() in (len(filters(net)[path].theta), len(filters(net)[path].theta) + 1)


class Secret(nn.Module):
    """Knows channels by their number, and tells nobody."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.factors = list(range(1, size + 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tensor(self.factors, dtype=x.dtype)


def first_two(self: Any, x: Tensor) -> Tensor:
    x = self.filter(self.a(x)).relu()
    return self.b(x) + x[:, :2]


def test_what_tells_channels_apart_by_their_number() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3)
    net = Forward(first_two, a=nn.Linear(3, 6), filter=Filter(6), b=nn.Linear(6, 2))
    theta = net.filter.theta.detach().clone()
    assert not shrink.order_(net, example=x) and torch.equal(net.filter.theta, theta)
    net = nn.Sequential(nn.Linear(3, 6), Filter(6), Secret(6), nn.Linear(6, 2))
    optimizer = Adam(net.parameters())
    step(net, optimizer, x)
    before, states = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    with pytest.raises(ValueError, match=r"in another order .* the network's outputs, which would change by"):
        shrink.order_(net, optimizer, example=x)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict(), states, rtol=0, atol=0)


def test_what_cannot_be_put_in_order_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^the network has no filters, whose θ say"):
        shrink.order_(nn.Linear(2, 3))
    torch.manual_seed(0)
    x = torch.randn(5, 3)
    net = nn.Sequential(nn.Linear(3, 6), Filter(6), nn.ReLU(), nn.Linear(6, 2))
    optimizer = Adafactor(net.parameters())
    step(net, optimizer, x)
    with pytest.raises(ValueError, match=r"Adafactor is not known to update each entry"):
        shrink.order_(net, optimizer, example=x)


def test_a_causal_family_begins_with_the_important_channels() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 1, 8, 8)
    blocks = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)]
    net = shrink.add_filters(nn.Sequential(*blocks), x)
    shrink.order_(net)
    plain = shrink.fold(net)
    weight = plain[2].weight.detach().clone()
    family = tl.nest(tl.causal_(plain, 2), input_shape=(1, 8, 8), groups=2)
    assert torch.equal(plain[2].weight[:3, :3], weight[:3, :3]) and torch.equal(plain[2].weight[3:], weight[3:])
    assert not plain[2].weight[:3, 3:].any()  # what the first half knew of the second is lost
    assert family(x, tl.Subnet(width=1)).shape == (4, 3)
