import gc
import itertools
import math
import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typer.testing import CliRunner

import telescopic as tl
from telescopic import cli
from telescopic.anytime import paths, try_deadlines
from telescopic.anytime.paths import PartCosts, largest_area
from telescopic.layers import CausalBatchNorm1d, CausalBatchNorm2d, CausalConv2d, CausalLinear, Residual, SharedHead
from telescopic.subnet import Subnet

module = sys.modules["telescopic.anytime.answers"]
GROUPS = 3


class Own(nn.Module):
    """A user's block: functions, methods and sums, in place and not, and one layer called twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv2d(channels, channels, 3, padding=2, dilation=2, width_groups=GROUPS)
        self.deep = CausalConv2d(channels, channels, 3, padding=1, width_groups=GROUPS, depthwise=True)
        self.norm = CausalBatchNorm2d(channels, width_groups=GROUPS)
        self.act = nn.LeakyReLU(0.1, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm(self.conv(x)), inplace=True)
        y = self.act(self.deep(self.conv(y)).mul(0.5) + 1)
        y += x
        return y * functional.adaptive_avg_pool2d(x, 1)


class Reversed(nn.Module):
    """Mixes channels inside each group only, and says itself what it does with new groups."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ends = [channels * w // GROUPS for w in range(GROUPS + 1)]

    def forward(self, x: Tensor) -> Tensor:
        return self.new_groups(x, 0, self.ends.index(x.shape[1]))

    def new_groups(self, x: Tensor, have: int, width: int) -> Tensor:
        sizes = [self.ends[w + 1] - self.ends[w] for w in range(have, width)]
        return torch.cat([part.flip(1) for part in x.split(sizes, 1)], 1)


def conv(given: int, made: int, stride: int = 1) -> list[nn.Module]:
    return [
        CausalConv2d(given, made, 3, stride, 1, width_groups=GROUPS),
        CausalBatchNorm2d(made, width_groups=GROUPS),
    ]


def head(channels: int, average: bool = False) -> nn.Sequential:
    shared = SharedHead(channels, 4, width_groups=GROUPS, average=average)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), shared)


class Largest(nn.Module):
    """A head of any width that is no shared head: it must see all channels each time."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.amax((1, 2, 3)), x.amin((1, 2, 3)), x.mean((1, 2, 3)), x.sum((1, 2, 3))], 1)


def trained(net: tl.Nested, x: Tensor) -> tl.Nested:
    """With statistics that have seen something, in eval mode."""
    net.double().train()
    net.all(x)
    return net.eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net(x: Tensor) -> tl.Nested:
    """Channels that are no multiple of the groups; exits before, between and behind the stages; two entries."""
    torch.manual_seed(0)
    around = CausalConv2d(7, 18, 1, 2, width_groups=GROUPS)
    stages = [
        nn.Sequential(Own(7), Reversed(7)),
        Residual(nn.Sequential(*conv(7, 18, 2), nn.ReLU(inplace=True), *conv(18, 18)), around),
        nn.Sequential(nn.ReLU(inplace=True), *conv(18, 18), nn.CELU(), nn.MaxPool2d(2), nn.Flatten()),
        nn.Sequential(CausalLinear(72, 9, width_groups=GROUPS), CausalBatchNorm1d(9, width_groups=GROUPS), nn.SiLU()),
    ]
    entries = {
        0: nn.Sequential(nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7), nn.ReLU()),
        1: nn.Conv2d(3, 7, 3, padding=1),
    }
    exits = {-1: head(7), 0: Largest(), 1: head(18, average=True), 3: SharedHead(9, 4, width_groups=GROUPS)}
    return trained(tl.Nested(stages, entries, exits, groups=GROUPS, statistics="per-entry"), x)


@pytest.fixture(scope="module")
def deep(x: Tensor) -> tl.Nested:
    """Exits only: plain layers, one of them with GroupNorm, which no width could have."""
    torch.manual_seed(1)

    def block(given: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(given, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Softmax(1))

    def out() -> nn.Sequential:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

    return tl.Nested([block(3), block(8), block(8), block(8)], exits={i: out() for i in range(4)}).double().eval()


def members(*cells: tuple[int, int], entry: int = 0) -> list[Subnet]:
    return [Subnet(entry=entry, exit=exit_, width=width) for exit_, width in cells]


def staircases() -> list[list[Subnet]]:
    """Every way from the smallest member to the full network in single steps: all cells are on several."""
    exits, ways = (-1, 0, 1, 3), []
    for wider in itertools.combinations(range(5), 2):
        place, width, way = 0, 1, [(exits[0], 1)]
        for step in range(5):
            place, width = (place, width + 1) if step in wider else (place + 1, width)
            way.append((exits[place], width))
        ways.append(members(*way))
    return ways


LEAPS = [
    members((-1, 1), (3, 3)),
    members((0, 1), (1, 3), (3, 3)),
    members((1, 1), (1, 2), (1, 3)),
    members((-1, 2), (0, 2), (0, 3), (3, 3)),
    members((3, 1), (3, 3)),
    members((1, 2)),
    members((0, 1), (0, 2), (1, 3), entry=1),
    members((1, 1), (3, 2), (3, 3), entry=1),
]


def test_every_refinement_is_the_member_computed_alone(net: tl.Nested, x: Tensor) -> None:
    assert len(staircases()) == 10
    for path in staircases() + LEAPS:
        answers = list(tl.anytime(net, x, path=path))
        assert [answer.subnet for answer in answers] == path
        for answer in answers:
            assert (answer.logits - net(x, answer.subnet)).abs().max() < 1e-12, (path, answer.subnet)


@pytest.mark.parametrize("shortcut", ["pad", "projection"])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("rows", ["", "conditioned", "separate"])
def test_the_causal_resnet_refined(shortcut: str, average: bool, rows: str, x: Tensor) -> None:
    torch.manual_seed(2)
    options = {"shortcut": shortcut, "average": average} | ({rows: True} if rows else {})
    net = tl.networks.causal_resnet(3, (2, 4, 4), 1, 4, **options)  # type: ignore[arg-type]
    trained(net, x)
    own = [p for name, p in net.named_parameters() if name.endswith((".scale", ".shift", ".own"))]
    assert len(own) == (8 if rows else 0)
    for _ in range(2):
        for parameter in own:  # again, and in place: what was folded for the last answers holds no more
            nn.init.normal_(parameter)
        for path in (
            members((-1, 1), (0, 1), (0, 2), (1, 2), (2, 3)),
            members((2, 1), (2, 2), (2, 3)),
            list(tl.deepening(net)),
        ):
            for answer in tl.anytime(net, x, path=path):
                assert (answer.logits - net(x, answer.subnet)).abs().max() < 1e-12


def test_a_conditioned_head_is_refined_for_the_examples_that_go_on() -> None:
    torch.manual_seed(3)
    net = tl.networks.causal_resnet(3, (2,), 1, 4, conditioned=True).double().eval()
    for name, parameter in net.named_parameters():
        if name.endswith((".scale", ".shift")):
            nn.init.normal_(parameter, std=3)
    x = torch.rand(8, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        sure = net(x, Subnet(exit=0, width=1)).softmax(1).amax(1).sort().values
    answers = list(tl.anytime(net, x, path=members((0, 1), (0, 2), (0, 3)), confidence=sure[4:6].mean().item()))
    steps = answers[-1].steps.tolist()
    assert len(set(steps)) > 1, "some are sure enough before others"
    for i, step in enumerate(steps):
        want = net(x[i : i + 1], Subnet(exit=0, width=step + 1))
        torch.testing.assert_close(answers[-1].logits[i : i + 1], want, rtol=0, atol=1e-12)


def test_deepening_ends_with_the_member_it_is_told(net: tl.Nested, deep: tl.Nested) -> None:
    assert list(tl.deepening(deep)) == list(deep.grid)
    assert list(tl.deepening(net)) == members((-1, 3), (0, 3), (1, 3), (3, 3))
    assert list(tl.deepening(net, Subnet(entry=1, exit=1, width=2))) == members((0, 2), (1, 2), entry=1)


def test_depth_alone_costs_what_the_full_network_does_and_the_heads_on_the_way(deep: tl.Nested, x: Tensor) -> None:
    calls: list[int] = []
    hooks = [s.register_forward_hook(lambda *_, i=i: calls.append(i)) for i, s in enumerate(deep.stages)]
    answers = list(tl.anytime(deep, x))
    for hook in hooks:
        hook.remove()
    assert calls[-4:] == [0, 1, 2, 3]  # before: priced on one example
    direct = [tl.cost(tl.extract(deep, subnet), (3, 8, 8)).macs for subnet in deep.grid]
    assert [answer.macs for answer in answers] == [macs + 8 * 4 * i for i, macs in enumerate(direct)]
    assert [answer.batch_macs for answer in answers] == [3 * answer.macs for answer in answers]
    assert torch.equal(answers[-1].logits, deep(x))
    assert answers[1].steps.tolist() == [1, 1, 1] and answers[-1].left == 0
    first = list(tl.anytime(deep, x, path=[Subnet(exit=1), Subnet(exit=3)]))
    assert [answer.macs for answer in first] == [direct[1], direct[3] + 8 * 4]
    assert torch.equal(first[0].logits, deep(x, Subnet(exit=1)))


def test_attention_and_recurrence_cost_what_they_do_in_the_catalogue() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]

    stages = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), Reader()]
    net = tl.Nested(stages, exits={i: nn.Sequential(nn.Flatten(), nn.Linear(40, 3)) for i in range(2)}).eval()
    counted = [answer.macs for answer in tl.anytime(net, torch.rand(2, 5, 8))]
    layer, reader, head = 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8 + 2 * 5 * 8 * 16, 5 * 4 * 2 * 8 * 8, 40 * 3
    assert counted == [layer + head, layer + reader + 2 * head]
    assert [member.macs for member in tl.measure(net, input_shape=(5, 8))] == [layer + head, layer + reader + head]


@pytest.mark.parametrize("rows", ["", "conditioned", "separate"])
def test_widening_costs_the_new_rows_alone(rows: str) -> None:
    stages = [CausalConv2d(4, 8, 3, padding=1, width_groups=2), CausalConv2d(8, 8, 1, width_groups=2)]
    shared = SharedHead(8, 5, width_groups=2, **({rows: True} if rows else {}))
    exits = {1: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), shared)}
    net = tl.Nested(stages, {0: nn.Conv2d(3, 4, 1)}, exits, groups=2).eval()
    first, second = tl.anytime(net, torch.rand(1, 3, 6, 6), path=[Subnet(width=1), Subnet(width=2)])
    assert first.macs == 36 * (3 * 4 + 2 * 4 * 9 + 4 * 4) + 4 * 5  # the adapter is run whole
    read = 8 if rows else 4  # each width weighs all features in its own way
    assert second.macs - first.macs == 36 * (4 * 4 * 9 + 8 * 4) + read * 5


class Clock:
    """Time passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def elapsed(net: tl.Nested, x: Tensor, deadline: float, costs: Sequence[float]) -> list[float]:
    """When the answers came, if each one takes its reader a second."""
    clock, times = Clock(), []
    for answer in tl.anytime(net, x, deadline=deadline, costs=costs, clock=clock):
        times.append(answer.elapsed)
        clock.now += 1
    return times


def test_no_step_begins_that_would_not_end_in_time(deep: tl.Nested, x: Tensor) -> None:
    assert elapsed(deep, x, 2.5, (1, 1, 1, 1)) == [0, 1]  # a third would end at 2 + 1
    assert elapsed(deep, x, 2.05, (1, 1, 1, 1)) == [0]  # 1 + 1 ends in time by too little
    assert elapsed(deep, x, 2.5, (1, 3, 0.1, 0.1)) == [0]  # what is behind a dear step is out of reach
    assert elapsed(deep, x, 1e-9, (1, 1, 1, 1)) == [0]  # never nothing
    assert elapsed(deep, x, 9.0, (9, 1, 1, 1)) == [0, 1, 2, 3]
    assert len(list(tl.anytime(deep, x))) == 4


def test_costs_are_measured_once_for_each_shape(deep: tl.Nested, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def measure(plan: object, x: Tensor, *_: float) -> tuple[float, ...]:
        measured.append(len(x))
        plan.seconds[module._conditions(x)] = (1.0, 1.0, 5.0, 1.0)  # type: ignore[attr-defined]
        return 1.0, 1.0, 5.0, 1.0

    path = list(deep.grid)
    monkeypatch.setattr(module, "_measure", measure)
    for batch, answers in ((x, 2), (x, 2), (x[:2], 2), (x, 2)):
        assert len(list(tl.anytime(deep, batch, path=path, deadline=4, clock=Clock()))) == answers
    assert measured == [3, 2]
    with torch.no_grad():
        deep.stages[0][0].weight.add_(0)  # another version of the weights, which costs the same
    assert len(list(tl.anytime(deep, x, path=path, deadline=4, clock=Clock()))) == 2
    assert measured == [3, 2]


def test_step_costs_are_what_steps_take(deep: tl.Nested, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks) / 8)
    costs = tl.step_costs(deep, x, seconds=1)
    assert costs == (1 / 8,) * 4
    monkeypatch.undo()
    assert len(list(tl.anytime(deep, x, deadline=0.1375 * 3, clock=Clock()))) == 4  # each from the same moment
    assert len(list(tl.anytime(deep, x, deadline=0.13, clock=Clock()))) == 1
    with pytest.raises(ValueError, match="more than 0 seconds, not 0"):
        tl.step_costs(deep, x, seconds=0)
    with pytest.raises(ValueError, match="percentile is a share of the runs, above 0 and at most 1, not 90"):
        tl.step_costs(deep, x, percentile=90)


def test_the_cost_of_a_step_is_a_high_percentile(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = tl.networks.causal_resnet(1, (2,), 3, 4).eval(), torch.rand(1, 3, 8, 8)
    now, paces = [0.0], itertools.cycle(range(1, 11))
    pace = [1]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def advance(run: object) -> None:
        if run.done % 4 == 0:  # type: ignore[attr-defined]
            pace[0] = next(paces)
        run.done += 1  # type: ignore[attr-defined]
        now[0] += pace[0]

    monkeypatch.setattr(module.Run, "advance", advance)
    assert tl.step_costs(net, x, seconds=4000, percentile=0.45) == (5.0,) * 4
    assert tl.step_costs(net, x, seconds=4000, percentile=0.85) == (9.0,) * 4
    assert tl.step_costs(net, x, seconds=4000, percentile=1) == (10.0,) * 4


@pytest.mark.parametrize("widening", [False, True])
def test_the_confident_leave_with_the_answer_they_had(widening: bool) -> None:
    torch.manual_seed(3)
    x = torch.randn(90, 3, 4, 4, dtype=torch.float64)
    net = trained(tl.networks.causal_resnet(3, (2, 4, 4), 1, 4), x)
    for place, exit_ in net.exits.items():  # all equally sure, of different examples
        exit_[-1].bias.data.zero_()
        exit_[-1].bias.data.sub_(net(x, Subnet(exit=int(place))).mean(0).detach())
        spread = net(x, Subnet(exit=int(place))).std().detach()
        exit_[-1].weight.data.div_(spread)
        exit_[-1].bias.data.div_(spread)
    path = members((-1, 2), (0, 2), (0, 3), (2, 3)) if widening else list(tl.deepening(net))
    alone = torch.stack([net(x, subnet) for subnet in path]).detach()
    sure = alone.float().softmax(2).amax(2)

    def leaving(threshold: float) -> Tensor:
        leaves = sure >= threshold
        leaves[-1] = True
        return leaves.int().argmax(0)

    # In the middle between two that occur, so that rounding decides nothing.
    levels = sure.flatten().sort().values.double()
    between = [float(a + b) / 2 for a, b in itertools.pairwise(levels) if b - a > 1e-4]
    threshold = max(between, key=lambda level: len(leaving(level).unique()))
    first = leaving(threshold)
    assert len(first.unique()) >= 3
    answers = list(tl.anytime(net, x, path=path, confidence=threshold))
    assert len(answers) == first.max() + 1  # and then there is nobody left
    macs, prices = 0, [a.macs for a in tl.anytime(net, x[:1], path=path)]
    for number, answer in enumerate(answers):
        assert torch.equal(answer.steps, first.clamp(max=number))
        wanted = alone.gather(0, answer.steps[None, :, None].expand(1, -1, 4))[0]
        assert (answer.logits - wanted).abs().max() < 1e-12
        inside = int((first >= number).sum())
        macs += inside * (prices[number] - (prices[number - 1] if number else 0))
        assert answer.batch_macs == macs and answer.macs == prices[number]
        assert answer.left == int((sure >= threshold)[: number + 1].any(0).sum())


def test_when_all_have_left_nothing_more_is_computed(deep: tl.Nested, x: Tensor) -> None:
    (only,) = tl.anytime(deep, x, confidence=0.01)
    assert only.left == 3 and torch.equal(only.logits, deep(x, Subnet(exit=0)))
    assert [answer.left for answer in tl.anytime(deep, x, confidence=math.inf)] == [0, 0, 0, 0]


def test_confidence_for_is_the_lowest_that_loses_little(deep: tl.Nested) -> None:
    images = torch.randint(256, (300, 3, 8, 8), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    logits = torch.stack([deep(images.double() / 255, subnet) for subnet in deep.grid]).detach().float()
    sure, guesses = logits.softmax(2).amax(2), logits.argmax(2)
    labels = torch.where(torch.arange(300) % 3 > 0, guesses[-1], guesses[0])

    def loss(threshold: float, against: Tensor) -> float:
        leaves = sure >= threshold
        leaves[-1] = True
        final = guesses.gather(0, leaves.int().argmax(0)[None])[0]
        return float((guesses[-1] == against).float().mean() - (final == against).float().mean())

    split = tl.data.Split(images, labels)
    levels = sorted({float(level) for level in sure[:-1].flatten()})
    for against, target in (("labels", labels), ("last", guesses[-1])):
        for most in (0.0, 0.02, 0.3):
            found = tl.confidence_for(deep, split, max_loss=most, against=against, batch_size=70)  # type: ignore[arg-type]
            wanted = math.inf
            for level in reversed(levels[:: len(levels) // 1000 + 1]):
                if loss(level, target) > most + 1e-6:
                    break
                wanted = level
            # Up to a thousand levels are tried, so that the one found may be a neighbour.
            assert found == wanted or loss(found, target) <= most + 1e-6
            assert abs(np.searchsorted(levels, found) - np.searchsorted(levels, wanted)) <= 3
    assert tl.confidence_for(deep, split, max_loss=1) == pytest.approx(levels[0], abs=1e-6)
    with pytest.raises(ValueError, match="against is one of labels, last, not 'best'"):
        tl.confidence_for(deep, split, against="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"these are 0 and 0\.005"):
        tl.confidence_for(deep, tl.data.Split(images[:0], labels[:0]))


def test_nobody_leaves_if_it_always_costs_too_much() -> None:
    sure = torch.tensor([[0.9, 0.8], [0.5, 0.5]])
    right = torch.tensor([[False, False], [True, True]])
    assert module._lowest(sure, right, 0.4) == math.inf
    assert module._lowest(sure, right, 0.5) == pytest.approx(0.9)
    assert module._lowest(sure, ~right, 0.0) == pytest.approx(0.8)


def test_answers_follow_the_weights(x: Tensor) -> None:
    torch.manual_seed(5)
    net = tl.networks.causal_resnet(2, (2, 2), 1, 4)
    trained(net, x)
    path = members((0, 1), (1, 1), (1, 2))

    def check(x: Tensor) -> None:
        for answer in tl.anytime(net, x, path=path):
            assert (answer.logits - net(x, answer.subnet)).abs().max() < 1e-12 if x.dtype == torch.float64 else 1e-5

    check(x)
    conv = net.stages[0].body[0]
    with torch.no_grad():
        conv.weight.mul_(2)
    check(x)
    with torch.no_grad():
        conv.weight.fill_(0.1)  # also where the mask has zeros
    check(x)
    conv.weight.data.mul_(-3)
    check(x)
    net.load_state_dict({name: tensor * 0.9 for name, tensor in net.state_dict().items()})
    check(x)
    net.stages[0].body[1].running_mean = torch.randn_like(net.stages[0].body[1].running_mean)
    check(x)
    net.stages[0].body[2] = nn.Tanh().eval()
    check(x)
    net.exits["1"] = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), SharedHead(4, 4, width_groups=2)).double()
    net.eval()
    check(x)
    net.float()
    check(x.float())


def test_stages_that_write_over_their_input_harm_no_answer() -> None:
    class Adds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.add_(1)

    exits = {0: nn.Identity(), 1: nn.Flatten(), 2: nn.Identity()}
    net = tl.Nested([nn.ReLU(inplace=True), Adds(), Adds()], exits=exits).eval()
    x = torch.tensor([[-1.0, 2.0]])
    tl.step_costs(net, x, seconds=0.01)
    assert x.tolist() == [[-1, 2]]
    answers = list(tl.anytime(net, x.clone()))
    assert [answer.logits.tolist() for answer in answers] == [[[0, 2]], [[1, 3]], [[2, 4]]]


def test_threads_share_one_network(net: tl.Nested) -> None:
    path, wrong = staircases()[3], []
    inputs = [torch.randn(2, 3, 8, 8, dtype=torch.float64) for _ in range(4)]
    wanted = [[net(x, subnet) for subnet in path] for x in inputs]
    list(tl.anytime(net, inputs[0], path=path))

    def work(number: int) -> None:
        for _ in range(5):
            for answer, logits in zip(tl.anytime(net, inputs[number], path=path), wanted[number], strict=True):
                if (answer.logits - logits).abs().max() > 1e-12:
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_network_is_not_kept_alive_nor_changed(x: Tensor) -> None:
    net = tl.networks.causal_resnet(2, (2, 2), 1, 4).double().eval()
    before = [vars(part).keys() for part in net.modules()]
    iterator = tl.anytime(net, x)
    next(iterator)
    assert [vars(part).keys() for part in net.modules()] == before
    alive = weakref.ref(net)
    del net, iterator
    gc.collect()
    assert alive() is None


def test_answers_need_eval_mode(net: tl.Nested, x: Tensor) -> None:
    net.stages[1].train()
    with pytest.raises(ValueError, match=r"stages\.1 is in training mode.*net\.eval\(\)"):
        tl.anytime(net, x)
    net.train()
    with pytest.raises(ValueError, match="this network is in training mode"):
        tl.anytime(net, x)
    net.eval()
    with pytest.raises(TypeError, match=r"expected a telescopic\.Nested, got Sequential"):
        tl.anytime(tl.extract(net), x)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ([], "at least one member"),
        (members((1, 1), (0, 2)), "exit=0,width=2 does not follow entry=0,exit=1,width=1"),
        (members((1, 2), (3, 1)), "neither shallower nor narrower"),
        (members((1, 2), (1, 2)), "does not follow"),
        ([Subnet(entry=1, exit=1), Subnet(entry=0, exit=3)], "each member has the entry of the one before"),
        ([Subnet(exit=2)], "there is no member exit=2"),
    ],
)
def test_a_path_gets_larger(path: list[Subnet], message: str, net: tl.Nested, x: Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        tl.anytime(net, x, path=path)


def test_numbers_out_of_range_are_refused_at_once(deep: tl.Nested, x: Tensor) -> None:
    with pytest.raises(ValueError, match="deadline is more than 0 seconds from now, not 0"):
        tl.anytime(deep, x, deadline=0)
    with pytest.raises(ValueError, match="not nan"):
        tl.anytime(deep, x, deadline=math.nan)
    with pytest.raises(ValueError, match="confidence is a probability above 0"):
        tl.anytime(deep, x, confidence=0)
    with pytest.raises(ValueError, match="4 members needs as many costs, not 2"):
        tl.anytime(deep, x, deadline=1, costs=(1, 1))


def test_costs_may_be_an_array(x: Tensor) -> None:
    net = tl.networks.causal_resnet(1, (2,), 3, 4).double().eval()  # of which nothing is known yet
    assert len(list(tl.anytime(net, x, deadline=100, costs=np.zeros(4)))) == 4  # type: ignore[arg-type]


class Overwriting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.relu()
        return y.add_(1) * y


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift[: x.shape[1]]

    def narrow(self, width: int) -> nn.Module:
        raise AssertionError("not asked here")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (nn.Sequential(nn.ReLU(), nn.Softmax(2)), r"stages\.0 cannot be made wider step by step: 1, a Softmax,"),
        (nn.Softmax(3), "a Softmax, is not known to treat each channel alone"),
        (CausalBatchNorm2d(4, width_groups=2, track_running_stats=False), "a CausalBatchNorm2d,"),
        (nn.Flatten(2), "a Flatten,"),
        (Overwriting(), "add_, which overwrites what others read"),
        (Branching(), "torch.fx cannot follow its forward pass"),
        (Shifted(), "shift"),
    ],
)
def test_what_cannot_be_made_wider_is_named_and_may_get_deeper(stage: nn.Module, message: str) -> None:
    exits = {exit_: nn.Sequential(nn.Flatten(), SharedHead(16, 5, width_groups=2)) for exit_ in (-1, 0)}
    net = tl.Nested([stage], {0: nn.Conv2d(3, 4, 1)}, exits, groups=2).eval()
    x = torch.rand(2, 3, 2, 2)
    with pytest.raises(ValueError, match=message):
        tl.anytime(net, x, path=[Subnet(width=1), Subnet(width=2)])
    for answer in tl.anytime(net, x):
        torch.testing.assert_close(answer.logits, net(x, answer.subnet))


def test_linear_features_with_more_dimensions_are_refused() -> None:
    exits = {0: nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), SharedHead(4, 5, width_groups=2))}
    net = tl.Nested([CausalLinear(4, 4, width_groups=2)], {0: nn.Linear(4, 4)}, exits, groups=2).eval()
    with pytest.raises(ValueError, match=r"on features \[batch, features\], not on \[1, 2, 4\]"):
        tl.anytime(net, torch.rand(1, 4, 4), path=[Subnet(width=1), Subnet(width=2)])


def test_a_step_costs_its_stages() -> None:
    stages = {(0, 1): [1.0, 2.0, 4.0], (0, 2): [10.0, 20.0, 40.0], (1, 2): [5.0, 6.0, 7.0]}
    costs = PartCosts(1, stages, {1: {0: 0.1, 3: 0.2}, 2: {0: 0.3, 2: 0.4, 3: 0.5}}, 100.0)
    assert costs.step(None, (0, 1)) == pytest.approx(100 + 0.1)
    assert costs.step(None, (3, 1)) == pytest.approx(100 + 7 + 0.2)
    assert costs.step((1, 1), (3, 1)) == pytest.approx(2 + 4 + 0.2)
    assert costs.step((2, 1), (2, 2)) == pytest.approx(5 + 6 + 0.4)
    assert costs.step((2, 1), (3, 2)) == pytest.approx(5 + 6 + 40 + 0.5)


def test_the_largest_area_is_found() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        cells = [(exit_, width) for exit_ in (-1, 0, 2) for width in (1, 2, 3)]
        accuracy = {cell: float(rng.random()) for cell in cells}
        price = {(a, b): float(rng.random()) for a in [None, *cells] for b in cells}
        best, most = math.inf, max(accuracy.values())
        for number in range(1, 6):
            for path in itertools.combinations(cells, number):
                if path[-1] != (2, 3) or any(b[0] < a[0] or b[1] < a[1] for a, b in itertools.pairwise(path)):
                    continue
                lacking = price[None, path[0]] * most
                lacking += sum(price[a, b] * (most - accuracy[a]) for a, b in itertools.pairwise(path))
                if lacking < best:
                    best, wanted = lacking, list(path)
        assert largest_area(accuracy, lambda a, b, price=price: price[a, b]) == wanted


def test_the_best_path_uses_the_catalogue(net: tl.Nested, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tl.measure(net, input_shape=(3, 8, 8))
    with pytest.raises(ValueError, match="needs accuracies on validation images"):
        tl.best_path(net, table)
    # Accuracy comes with width alone, and all steps take long: one narrow answer at the first exit, then wider.
    better = tuple(replace(m, score=(m.subnet.width or 0) / 10) for m in table)
    table = replace(table, members=better)
    asked: list[object] = []

    def costs(net: tl.Nested, x: Tensor, full: Subnet, widths: Sequence[int], *_: object) -> PartCosts:
        asked.append((tuple(x.shape), full.entry, list(widths)))
        every = {(a, b): [1.0] * 4 for a in (0, *widths) for b in widths if a < b}
        return PartCosts(full.entry or 0, every, {w: dict.fromkeys((-1, 0, 1, 3), 0.1) for w in widths}, 0.5)

    monkeypatch.setattr(paths, "part_costs", costs)
    assert list(tl.best_path(net, table)) == members((-1, 3), (3, 3))
    assert list(tl.best_path(net, table, entry=1, batch=2, widths=[2]))[-1] == Subnet(entry=1, exit=3, width=3)
    assert asked == [((1, 3, 8, 8), 0, [1, 2, 3]), ((2, 3, 8, 8), 1, [2, 3])]
    other = tl.measure(tl.networks.mlp(4, [4], 2), input_shape=(4,))
    with pytest.raises(ValueError, match="this catalogue is of another network"):
        tl.best_path(net, other)


def test_every_part_is_timed_at_every_pair_of_widths(net: tl.Nested, x: Tensor) -> None:
    shown: list[tuple[int, int]] = []
    costs = paths.part_costs(net, x, net.grid.full, [1, 3], 2, lambda *at: shown.append(at))
    assert set(costs.stages) == {(0, 1), (0, 3), (1, 3)} and shown == [(1, 3), (2, 3), (3, 3)]
    assert all(len(times) == 4 and min(times) > 0 for times in costs.stages.values())
    assert {w: set(heads) for w, heads in costs.heads.items()} == {1: {-1, 0, 1, 3}, 3: {-1, 0, 1, 3}}
    assert costs.adapter > 0


def test_deadlines_are_tried_image_by_image(deep: tl.Nested) -> None:
    images = torch.randint(256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(6)).to(torch.uint8)
    labels = deep(images.double() / 255).argmax(1)
    labels[::8] = (labels[::8] + 1) % 4
    table = tl.measure(deep, input_shape=(3, 8, 8))
    times = {"machine": "here", "device": "cpu", "threads": 1, "batch": 1}
    timed = tuple(replace(m, latency_ms=5.0 * (i + 1), latency_p95_ms=10.0 * (i + 1)) for i, m in enumerate(table))
    table = replace(table, members=timed, **times)  # type: ignore[arg-type]
    split = tl.data.Split(images, labels)
    shown: list[tuple[int, int]] = []
    tried = try_deadlines(
        deep, split, [1e3, 0.025, 0.001], catalogue=table, clock=Clock(), progress=lambda *at: shown.append(at)
    )
    names = [trial.name for trial in tried]
    assert names[1::3] == [f"always exit={i}" for i in (3, 1, 0)]
    assert names[::3] == ["anytime"] * 3 and names[2::3] == ["always the full one"] * 3
    assert shown[-1] == (40, 40) and {trial.number for trial in tried} == {40}
    assert {trial.late for trial in tried} == {0} and {trial.in_time for trial in tried[:3]} == {35 / 40}
    second = float((deep(images.double() / 255, Subnet(exit=1)).argmax(1) == labels).double().mean())
    assert tried[4].right == tried[4].in_time == pytest.approx(second)
    ticks = itertools.count()
    late = try_deadlines(deep, split, [0.5], catalogue=table, number=8, clock=lambda: float(next(ticks)))
    assert [trial.late for trial in late] == [8, 8, 8] and {trial.in_time for trial in late} == {0}
    assert late[2].mean == late[2].p95 == 1 and late[2].right > 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small network with two exits and two widths on the user's own images."""
    folder = tmp_path_factory.mktemp("anytime")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    images = rng.integers(0, 100, (200, 8, 8)).astype(np.uint8)
    for label in range(3):
        images[labels == label, 2 * label] = 255
    np.savez(folder / "own.npz", images=images, labels=labels)
    data = tl.data.load(folder / "own.npz")
    net = tl.networks.causal_resnet(2, (4,), 1, 3, in_channels=1)
    tl.fit(net, data, tl.Recipe(epochs=1), out=folder / "run", progress=False)
    return folder


def test_the_command_shows_deadlines_beside_members_chosen_in_advance(folder: Path) -> None:
    words = ["anytime", str(folder / "run"), "--deadline-ms", "1000", "--deadline-ms", "0.001", "--number", "5"]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("path: ") and "exit=0,width=2\n" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if " ms " in line and "%" in line]
    assert [row[0] for row in rows] == ["1000"] * 3 + ["0.001"] * 3
    assert [row[-4] for row in rows] == ["0"] * 3 + ["5"] * 3  # late
    assert all(row[-5] == "0.00%" for row in rows[3:])
    assert "5 test images, batch 1, 1 threads" in result.stdout
    again = CliRunner().invoke(cli.app, [*words, "--deepen", "--images", "validation"])
    assert again.stdout.startswith("path: exit=-1,width=2 → exit=0,width=2\n")


def test_the_command_says_what_it_lacks(folder: Path, tmp_path: Path) -> None:
    def refused(*words: str) -> str:
        return str(CliRunner().invoke(cli.app, ["anytime", *words]).exception)

    name = str(folder / "run")
    assert "one of test, validation, not 'all'" in refused(name, "--deadline-ms", "1", "--images", "all")
    assert "takes images of shape (1, 8, 8), not" in refused(name, "--deadline-ms", "1", "--data", images_of(tmp_path))
    net = tl.networks.mlp(64, [8], 3)
    tl.save(net, tmp_path / "mlp.safetensors", tl.measure(net, input_shape=(1, 8, 8)), input_shape=(1, 8, 8))
    words = (str(tmp_path / "mlp.safetensors"), "--deadline-ms", "1")
    assert "name them with --data" in refused(*words)
    assert "one exit and one width" in refused(*words, "--data", str(folder / "own.npz"))


def images_of(folder: Path) -> str:
    np.savez(folder / "rgb.npz", images=np.zeros((30, 3, 8, 8), np.uint8), labels=np.arange(30) % 3)
    return str(folder / "rgb.npz")
