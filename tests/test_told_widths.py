"""What is done with a network whose layers are told their width: costs, refinement, packs, training."""

from collections.abc import Callable
from pathlib import Path

import pytest
import told_widths
import torch

import telescopic as tl
from telescopic.cost.nominal import nominal_macs, nominal_params

FAMILIES: dict[str, tuple[Callable[[], tl.Nested], tuple[int, ...]]] = {
    "slimmable": (told_widths.slimmable, (2, 4, 4)),
    "statistics per entry": (lambda: told_widths.slimmable(statistics="per-entry"), (2, 4, 4)),
    "hidden units": (told_widths.transformer, (3, 4)),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[tl.Nested, tuple[int, ...]]:
    build, shape = FAMILIES[request.param]
    net = build()
    torch.manual_seed(0)
    for _ in range(3):
        net.train().all(torch.randn(8, *shape))
    return net.eval(), shape


def test_every_weight_that_a_member_has_is_read(family: tuple[tl.Nested, tuple[int, ...]]) -> None:
    net, shape = family
    catalogue = tl.measure(net, input_shape=shape)
    assert [member.macs for member in catalogue] == nominal_macs(net, shape)
    assert [member.params for member in catalogue] == nominal_params(net)
    assert len({member.macs for member in catalogue}) > len(net.grid) // 2


def test_a_path_gets_deeper_and_not_wider(family: tuple[tl.Nested, tuple[int, ...]]) -> None:
    net, shape = family
    x = torch.randn(2, *shape)
    path = tl.deepening(net, tl.Subnet(width=2))
    assert len(path) > 1 and {member.width for member in path} == {2}
    for answer in tl.anytime(net, x, path=path):
        torch.testing.assert_close(answer.logits, net(x, answer.subnet))
    with pytest.raises(ValueError, match="width=1, which is narrower"):
        list(tl.anytime(net, x, path=[tl.Subnet(width=1), tl.Subnet(width=2)]))


def test_a_pack_holds_all_widths(family: tuple[tl.Nested, tuple[int, ...]], tmp_path: Path) -> None:
    net, shape = family
    x = torch.randn(2, *shape)
    # Of those with statistics per entry, the ones in which these meet: the others are packed like the first family's.
    members = [member for member in net.grid if net.statistics == "shared" or member.exit == net.grid.full.exit]
    tl.pack(net, tmp_path / "pack", members=members, input_shape=shape)
    prepared = tmp_path / "cache" if len(members) < 6 else False  # some as they are, and some made for this machine
    engine = tl.Engine(tmp_path / "pack", cache=prepared)
    assert [member.subnet for member in engine.members] == members and {m.width for m in members} == {*net.grid.widths}
    for member in members:
        given = torch.from_numpy(engine.run(x.numpy(), subnet=member).logits)
        torch.testing.assert_close(given, net(x, member), atol=1e-5, rtol=1e-4)


def test_each_width_has_statistics_of_its_own() -> None:
    net = told_widths.slimmable()
    net.train()(torch.randn(8, 2, 4, 4), tl.Subnet(width=2))
    seen = {name: int(b) for name, b in net.named_buffers() if name.endswith("num_batches_tracked")}
    assert {count for name, count in seen.items() if "@2" in name} == {1}
    assert not any(count for name, count in seen.items() if "@2" not in name)


def test_some_members_are_asked_in_one_pass(family: tuple[tl.Nested, tuple[int, ...]]) -> None:
    net, shape = family
    x, run = torch.randn(2, *shape), []
    every = net.all(x)
    for name, part in net.named_modules():
        if name.startswith("twins.") and name.count(".") == 1:
            part.register_forward_hook(lambda *_, name=name: run.append(name))
    asked = [m for m, member in enumerate(net.grid) if member.width != 2]
    torch.testing.assert_close(net.all(x, members=asked), every[asked])
    assert run and not any(name.endswith("@2") for name in run)
    assert net.all(x, members=[0]).shape[0] == 1
