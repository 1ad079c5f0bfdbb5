"""The laws, each a function that raises AssertionError if it is broken; its docstring's first sentence is the law."""

import itertools
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from telescopic.bundle import BundleError, load, save
from telescopic.catalogue import measure
from telescopic.extract import extract
from telescopic.inputs import each, first, leaves, shape_of
from telescopic.layers.causal import prefix
from telescopic.layers.cuts import named_tensors
from telescopic.layers.sized import require_channels_first, require_sized
from telescopic.neighbours import require_alone
from telescopic.nested import Nested
from telescopic.subnet import Coordinates
from telescopic.testing.trial import (
    TOLERANCE,
    Some,
    Trial,
    by_turns,
    demand,
    demand_same,
    gradients,
    ids,
    largest,
    macs,
)  # fmt: skip
from telescopic.wrappers import copied


@torch.no_grad()
def sized(trial: Trial) -> None:
    """Sized: given the first groups of channels, a stage gives the first groups of what it gives of all.

    Every part is known to do so (see `layers.sized`), and does so with the features that it gets in this network. A
    network with one width has nothing to keep; and one whose layers are told their width takes a pass for each.
    """
    net = trial.net
    if net.groups == 1 or not net.causal:
        return
    require_sized(net.parts(), net.groups)
    widths = sorted({member.width for member in trial.members})
    for entry in net.grid.entries:
        deepest = max((m for m in net.grid if m.entry == entry), key=lambda m: (m.exit, m.width))
        (_, adapter), *stages, _ = net.path(deepest)
        features = adapter(trial.some())
        require_channels_first(adapter, features)
        for name, stage in stages:
            whole = stage(features.clone())
            for width in widths:
                given, wanted = (f[:, : prefix(f.shape[1], net.groups, width)] for f in (features, whole))
                some = f"{name}, of the first {width} of {net.groups} channel groups"
                try:
                    made = stage(given.clone())
                except (ValueError, RuntimeError, IndexError) as error:
                    raise AssertionError(f"{some}: {error}") from error
                demand_same(made, wanted, f"{some} and of all")
            features = whole


@torch.no_grad()
def no_memory(trial: Trial) -> None:
    """No memory: in eval mode an answer depends on the input and the member alone, and asking changes nothing.

    What was asked before makes no difference: other members in another order, all members, an extraction. The input,
    the parameters and the buffers stay as they are.
    """
    net, before = trial.net, {name: tensor.clone() for name, tensor in named_tensors(trial.net).items()}
    answers = {member: trial.answer(member) for member in trial.members}
    given = trial.some()

    def same() -> bool:
        return all(torch.equal(one, other) for one, other in zip(leaves(given), leaves(trial.x), strict=True))

    for member in reversed(trial.members):
        demand_same(trial.answer(member), answers[member], f"{trial.label(member)}, asked first and asked again")
        net(given, member)
        demand(same(), f"{trial.label(member)} changes its input: something works in place on it")
        extract(net, member)
    net.all(given)
    demand(same(), "net.all changes its input: something works in place on it")
    for member in trial.members:
        demand_same(trial.answer(member), answers[member], f"{trial.label(member)}, asked before and after net.all")
    for name, tensor in named_tensors(net).items():
        demand(torch.equal(tensor, before[name]), f"{name} has changed")


@torch.no_grad()
def neighbours(trial: Trial) -> None:
    """Neighbours: an example's answer does not depend on the other examples of its batch.

    It is the same beside others, in another place, and alone; from net(x, member) and from net.all(x). So a server may
    put strangers into one batch.
    """
    net, x = trial.net, trial.x
    for member in trial.members:
        name, answer = trial.label(member), trial.answer(member)
        try:
            require_alone(partial(net, subnet=member), net.path(member), x, TOLERANCE)
            alone = trial.answer(member, trial.some(lambda x: x[:1]))
        except (ValueError, RuntimeError, IndexError) as error:
            raise AssertionError(f"{name}: {error}") from error
        demand_same(alone, answer[:1], f"{name}, for an example alone and in a batch")
        demand_same(
            trial.answer(member, trial.some(lambda x: x.flip(0))),
            answer.flip(0),
            f"{name}, for a batch in another order",
        )
    demand_same(
        trial.rows(trial.some(lambda x: x[:1])), trial.rows()[:, :1], "net.all, for an example alone and in a batch"
    )


@torch.no_grad()
def extraction(trial: Trial) -> None:
    """Extraction is exact: a member taken out answers as net(x, member) does, and as its row of net.all(x).

    It is independent of the network, in eval mode, and of no other classes than its parts: of stock torch layers if
    these are; with several widths layers of ours become stock ones.
    """
    net, rows = trial.net, trial.rows()
    demand(len(rows) == len(net.grid), f"net.all has {len(rows)} rows for {len(net.grid)} members")
    for member in trial.members:
        name, answer, taken = trial.label(member), trial.answer(member), extract(net, member)
        shape = tuple(answer.shape)
        demand(
            len(shape) >= 2 and shape[0] == len(first(trial.x)), f"{name} gives {shape}: logits are [batch, classes]"
        )
        demand_same(taken(trial.some()), answer, f"{name}, extracted and by net(x, member)")
        demand_same(rows[net.grid.index(member)], answer, f"{name}, its row of net.all(x) and net(x, member)")
        demand(not any(part.training for part in taken.modules()), f"{name} is in training mode when extracted")
        own = {nn.Sequential} | {type(module) for part in trial.parts(member) for module in part.modules()}
        if net.groups > 1:
            own = {kind for kind in own if not (kind.__module__.startswith("telescopic.") and hasattr(kind, "narrow"))}
            own |= {type(module) for module in taken.modules() if type(module).__module__.startswith("torch.nn.")}
        foreign = {type(module).__name__ for module in taken.modules() if type(module) not in own}
        demand(not foreign, f"{name} is extracted with {', '.join(foreign)}, which its parts have not")
        theirs, ours = ({t.untyped_storage().data_ptr() for t in named_tensors(m).values()} for m in (taken, net))
        demand(not theirs & ours - {0}, f"{name} shares memory with the network when extracted")


@torch.no_grad()
def nesting(trial: Trial) -> None:
    """Nesting: the stages that a member runs are also run by each member that contains it.

    So their parameters and MACs never shrink from a member to one that contains it, and no member stands in the grid
    before one that it contains. Adapters and heads are excepted: members of one entry have the same adapter and
    members of one exit the same head, but a small member costs more than a larger one in total if its adapter (or
    head) costs more than what it leaves out. With several widths a member has of each parameter the elements of the
    first groups, no more and no less; but of what each width of a head has of its own its own row, which no wider
    member has.
    """
    net, index = trial.net, trial.net.grid.index
    members = sorted({*trial.members, net.grid.full}, key=index)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    inner, ends, cost = {}, {}, {}
    for member in members:
        adapter, *stages, head = (module for _, module in net.path(member))
        inner[member], ends[member] = ids(stages), {"entry": ids([adapter]), "exit": ids([head])}
        features = adapter(trial.some(lambda x: x[:1]))
        if net.groups > 1 and net.causal:
            features = features[:, : features.shape[1] * member.width // net.groups]
        if net.groups > 1:
            has_first_groups(trial, member)
        cost[member] = macs(nn.Sequential(*stages), features)
    for small, large in itertools.product(members, members):
        if not net.grid.contains(large, small):
            continue
        one, other = trial.label(small), trial.label(large)
        demand(index(small) <= index(large), f"{other} stands in the grid before {one}, which it contains")
        lost = ", ".join(names[i] for i in inner[small] - inner[large])
        demand(not lost, f"{one} runs a stage with {lost}, which {other} has not, though it contains it")
        demand(
            cost[small] <= cost[large],
            f"the stages of {one} cost {cost[small]} MACs, those of {other}, which contains it, {cost[large]}: "
            "the adapter of the one gives larger features than the stages of the other",
        )
        for what in ("entry", "exit"):
            alike = getattr(small, what) != getattr(large, what) or ends[small][what] == ends[large][what]
            demand(alike, f"{one} and {other} have the same {what}, but not the same parameters there")


def has_first_groups(trial: Trial, member: Coordinates) -> None:
    """Demand that an extracted member has just the elements that belong to it."""
    net, belonging = trial.net, trial.shares(member)
    sizes = [parameter.numel() for parameter in net.parameters()]
    taken = torch.zeros(sum(sizes), dtype=torch.bool)
    for index, factor in trial.origins(member):
        taken[index[factor != 0]] = True
    for (name, parameter), has in zip(net.named_parameters(), torch.split(taken, sizes), strict=True):
        share = belonging.get(id(parameter))
        should = torch.zeros_like(has) if share is None else share.read.flatten()
        wrong = int((has != should).sum())
        what = f"{int(has.sum())} elements of {name}, not the {int(should.sum())} of its first groups"
        demand(not wrong, f"{trial.label(member)} is extracted with {what}; {wrong} are wrong")


def independence(trial: Trial) -> None:
    """Independence: what lies outside a member neither changes its answer nor learns from it.

    Its answer is both net(x, member) and its row of net.all(x). Buffers that it does not run lie outside too; and with
    several widths, in what it runs, all elements but those of its first groups.
    """
    net = trial.net
    for member in trial.members:
        inside = trial.shares(member)
        masks = {id(t): ~inside[id(t)].read if id(t) in inside else None for t in named_tensors(net).values()}

        def lies_outside(tensor: Tensor, masks: dict[int, Tensor | None] = masks) -> bool:
            mask = masks[id(tensor)]
            return tensor.is_floating_point() and (mask is None or bool(mask.any()))

        outside = {n: p for n, p in net.named_parameters() if lies_outside(p)}
        buffers = [buffer for buffer in net.buffers() if lies_outside(buffer)]

        def answers(member: Coordinates = member) -> dict[str, Tensor]:
            return {"net(x, member)": trial.answer(member), "net.all(x)": trial.rows()[net.grid.index(member)]}

        before = answers()
        for how, logits in before.items():
            found = gradients((logits * torch.randn_like(logits)).sum(), list(outside.values()))
            for name, whole in zip(outside, found, strict=True):
                mask = masks[id(outside[name])]
                gradient = whole if mask is None else whole * mask
                part = name if mask is None else f"a part of {name}"
                what = f"{part} is outside {trial.label(member)}, but gets a gradient from its {how}"
                demand(largest(gradient) == 0, f"{what}, of up to {largest(gradient):.3g}")
        with torch.no_grad():
            saved = [(tensor, tensor.clone()) for tensor in (*outside.values(), *buffers)]
            for tensor, _ in saved:
                change, mask = torch.rand_like(tensor), masks[id(tensor)]  # positive, for buffers may hold variances
                tensor.add_(change if mask is None else change * mask)
            for how, logits in answers().items():
                demand_same(logits, before[how], f"{trial.label(member)}, {how} before and after a change outside it")
            for tensor, value in saved:
                tensor.copy_(value)


def gradient_mix(trial: Trial) -> None:
    """The gradient mix is exact: it scales what each member sends to each parameter, and nothing else.

    The gradient of net.all(x, mix) is the sum over members of mix[member][owner] times the gradient of that member
    alone, taken from an extracted copy; the owner is the smallest member that has the parameter. Without a mix all
    factors are 1, and towards the input they always are. No mix changes an answer. With several widths, an extracted
    copy teaches the elements that it has, by the chain rule those that are folded into them too, and only members that
    are checked learn.
    """
    net, grid = trial.net, trial.net.grid
    chosen = range(len(grid)) if net.groups == 1 else sorted({grid.index(member) for member in trial.members})
    x = trial.some()
    given = [part.requires_grad_() for part in leaves(x) if part.is_floating_point()]
    logits = net.all(each(torch.clone, x))
    weights = torch.randn_like(logits)
    if net.groups > 1:
        asked = torch.zeros(len(grid)).index_fill(0, torch.tensor(list(chosen)), 1)
        weights *= asked.view(-1, *[1] * (logits.ndim - 1))
    owner: dict[int, int] = {}  # parameter → its owner; the input has none
    alone: dict[int, dict[int, Tensor]] = {}  # member → tensor → gradient
    for m, member in enumerate(grid):
        theirs = list(nn.ModuleList(trial.parts(member)).parameters())
        for parameter in theirs:
            owner.setdefault(id(parameter), m)
        if m not in chosen:
            continue
        taken = extract(net, member)
        copies, belonging = list(taken.parameters()), trial.shares(member)
        theirs = [parameter for parameter in theirs if belonging[id(parameter)].size]  # the others are folded into them
        numbers = f"{trial.label(member)} has {len(theirs)} parameters, extracted {len(copies)}, or in another order"
        alike = (
            [c.shape for c in copies] == [p.shape for p in theirs] if net.groups == 1 else len(copies) == len(theirs)
        )
        demand(alike, numbers)
        found = gradients((taken(each(torch.clone, x)) * weights[m]).sum(), [*given, *copies])
        of_x, found = found[: len(given)], found[len(given) :]
        if net.groups > 1:
            found = scattered(trial, member, found)
            theirs = list(net.parameters())
        alone[m] = dict(zip(map(id, [*given, *theirs]), [*of_x, *found], strict=True))
    table = torch.rand(len(grid), len(grid))
    table[torch.rand_like(table) < 0.3] = 0
    table[torch.rand_like(table) < 0.2] = 1
    table[[m for m in range(len(grid)) if m not in chosen]] = 1  # so that they take one pass together
    tensors = {f"input {number}": part for number, part in enumerate(given)} | dict(net.named_parameters())
    for mix in (None, tuple(tuple(row) for row in table.tolist())):
        mixed = net.all(each(torch.clone, x), mix)
        demand_same(mixed, logits, "net.all with and without a gradient mix")
        found = gradients((mixed * weights).sum(), list(tensors.values()))
        for (name, tensor), gradient in zip(tensors.items(), found, strict=True):
            o = owner.get(id(tensor))
            factors = {m: 1.0 if mix is None or o is None else mix[m][o] for m in chosen}
            shares = [
                factors[m] * found_alone[id(tensor)] for m, found_alone in alone.items() if id(tensor) in found_alone
            ]
            whose = name if o is None else f"{name}, owned by {trial.label(grid[o])},"
            how = f"the gradient of {whose} {'without a mix' if mix is None else 'with a random mix'}"
            want, size = sum(shares, torch.zeros_like(tensor)), sum(map(largest, shares))
            demand_same(gradient, want, f"{how}, from net.all and from its members alone", size)


def scattered(trial: Trial, member: Coordinates, found: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of an extracted member as those of the network's own parameters, element by element."""
    net, taken = trial.net, trial.origins(member)
    sizes = [parameter.numel() for parameter in net.parameters()]
    total = torch.zeros(sum(sizes), dtype=found[0].dtype if found else None)
    for gradient, (index, factor) in zip(found, taken, strict=True):
        total.index_add_(0, index.flatten(), (gradient.flatten() * factor).flatten())
    # What is taken out may be made of several, of which some do not learn.
    parts = zip(torch.split(total, sizes), net.parameters(), strict=True)
    return [part.view_as(p) if p.requires_grad else torch.zeros_like(p) for part, p in parts]


@torch.no_grad()
def threads(trial: Trial) -> None:
    """Threads: two that share the network in eval mode get the answers of one.

    They take turns, module by module, so that the steps of one fall between those of the other for certain; with the
    same member and with different ones, for the one may hide what the other shows.
    """
    x, y = trial.x, trial.some(lambda x: torch.randn_like(x) if x.is_floating_point() else x.flip(0))
    pairs = [(m, other) for i, m in enumerate(trial.members) for other in (m, trial.members[i - 1])]
    for pair in pairs:
        calls = [partial(trial.answer, member, given) for member, given in zip(pair, (x, y), strict=True)]
        names = [trial.label(member) for member in pair]
        for me, got in enumerate(by_turns(trial.net, calls)):
            demand_same(got, calls[me](), f"{names[me]}, beside {names[1 - me]} in another thread and alone")
    every = [partial(trial.rows, x), partial(trial.rows, y)]
    for got, call in zip(by_turns(trial.net, every), every, strict=True):
        demand_same(got, call(), "net.all, beside another thread's and alone")


@torch.no_grad()
def cost(trial: Trial) -> None:
    """Cost is true: the catalogue's MACs and parameters are those that torch counts on the extracted member."""
    net = trial.net
    if net.groups > 1 and len(trial.members) < len(net.grid):
        net.grid = Some(net.grid, trial.members)  # there may be hundreds
    catalogue = measure(net, input_shape=shape_of(trial.x))
    listed = [entry.subnet for entry in catalogue]
    demand(listed == list(net.grid), f"the catalogue lists {', '.join(map(str, listed))} for {net.grid}")
    for member in trial.members:
        stated, taken = catalogue[net.grid.index(member)], extract(net, member)
        belonging = trial.shares(member)
        parameters = {id(p): belonging[id(p)].size for part in trial.parts(member) for p in part.parameters()}
        facts = (
            ("MACs", stated.macs, macs(taken, trial.some(lambda x: x[:1]))),
            ("parameters", stated.params, sum(p.numel() for p in taken.parameters())),
            ("parameters in the network", stated.params, sum(parameters.values())),
        )
        for what, number, counted in facts:
            demand(number == counted, f"{trial.label(member)} has {counted} {what}, and the catalogue says {number}")


@torch.no_grad()
def round_trip(trial: Trial) -> None:
    """Round trip: a bundle saved and loaded holds the same tensors and gives the same answers, whole or by member."""
    net = trial.net

    def blank() -> Nested | None:
        """What to load into: nothing of the network's weights is left in it."""
        if trial.rebuild:
            return None
        into = copied(net)
        for tensor in named_tensors(into).values():
            tensor.zero_()
        return into

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        try:
            save(net, path, input_shape=shape_of(trial.x), architecture=trial.rebuild)
        except BundleError as error:
            raise AssertionError(f"{error}; or check with rebuild=False") from error
        loaded = load(path, into=blank())
        ours, theirs = named_tensors(net), named_tensors(loaded)
        different = [
            n for n in ours | theirs if n not in ours or n not in theirs or not torch.equal(ours[n], theirs[n])
        ]
        demand(not different, f"{', '.join(different)} differ after saving and loading")
        for member in trial.members:
            name, answer = trial.label(member), trial.answer(member)
            demand_same(loaded(trial.some(), member), answer, f"{name} of the network loaded and saved")
            demand_same(load(path, member, into=blank())(trial.some()), answer, f"{name}, loaded alone and saved")
