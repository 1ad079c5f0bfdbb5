import copy
import csv
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from telescopic.catalogue import BudgetError, Catalogue, Member, measure, measure_latency
from telescopic.cost import cost, machine, timing
from telescopic.data import Dataset, Preprocess, Split
from telescopic.extract import extract
from telescopic.nested import Nested
from telescopic.networks import mlp
from telescopic.subnet import Subnet

from chance import examples


def member(entry: int, **facts: Any) -> Member:
    """A member like entry `entry` of NSN's network, with some facts changed."""
    macs = (1_237_152, 622_496, 7_840)[entry]
    given = {"macs": macs, "params": macs + 10, "bytes": 4 * macs, "peak_activation": 6272, "largest_feature_map": 3136}
    accuracy = (0.989, 0.9843, 0.926)[entry]
    given |= {"score": accuracy, "test_score": 1 - accuracy, "latency_ms": 0.25 * (3 - entry)}
    given |= {
        "latency_p95_ms": 0.3 * (3 - entry),
        "label": f"entry={entry}",
        "subnet": Subnet(entry=entry, exit=1, width=1),
    }
    return Member(**(given | facts))


def catalogue(*members: Member, **facts: Any) -> Catalogue:
    here = {"machine": machine(), "device": "cpu", "threads": 1, "batch": 1}
    return Catalogue(members or tuple(map(member, (2, 1, 0))), (1, 28, 28), **(here | facts))


def unmeasured(*members: Member) -> Catalogue:
    bare = dict.fromkeys(("score", "test_score", "latency_ms", "latency_p95_ms"))
    return Catalogue(tuple(replace(m, **bare) for m in members or catalogue()), (1, 28, 28))


def split(num_images: int, channels: int = 1, size: int = 28) -> Split:
    generator = torch.Generator().manual_seed(num_images)
    images = torch.randint(0, 256, (num_images, channels, size, size), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 10, (num_images,), generator=generator))


def dataset(validation: int = 40, test: int = 25) -> Dataset:
    return Dataset("noise", split(10), split(validation), split(test), tuple("0123456789"), "a generator")


# Measuring ----------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.norm(self.conv(x)))


def head() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))


def conv(channels: int, **options: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1, **options), nn.BatchNorm2d(6), nn.ReLU(inplace=True))


NETS: dict[str, Callable[[], Nested]] = {
    "mlp": lambda: mlp(48, [12, 48, 7], 10, dropout=(0.2, 0.5)),
    "conv": lambda: Nested([conv(3), nn.MaxPool2d(2), conv(6)], exits={2: head()}),
    "residual": lambda: Nested([Residual(), Residual()], {0: conv(3)}, {0: head(), 1: head()}),
    "entries and exits": lambda: Nested(
        [conv(3), Residual(), conv(6, stride=2)],
        {0: nn.Identity(), 1: nn.Conv2d(3, 6, 1), 3: nn.Conv2d(3, 6, 2, 2)},
        {1: head(), 2: head()},
        statistics="per-entry",
    ),
}


def test_a_catalogue_says_which_statistics_were_used() -> None:
    """Where there is BatchNorm, and more than one entry to keep statistics for."""
    used = {name: measure(make(), input_shape=(3, 4, 4)).statistics for name, make in NETS.items()}
    assert used == {"mlp": None, "conv": None, "residual": None, "entries and exits": "per-entry"}
    shared = Nested([conv(3), conv(6)], {0: nn.Identity(), 1: nn.Conv2d(3, 6, 1)}, {1: head()})
    assert measure(shared, input_shape=(3, 4, 4)).statistics == "shared"


@pytest.mark.parametrize("name", NETS)
def test_costs_are_those_that_torch_counts_on_the_extracted_member(name: str) -> None:
    net = NETS[name]().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    steps: list[tuple[str, int, int]] = []
    measured = measure(net, input_shape=(3, 4, 4), progress=lambda *step: steps.append(step))
    assert [m.subnet for m in measured] == list(net.grid)
    assert [m.label for m in measured] == [net.grid.label(s) for s in net.grid]
    for row in measured:
        module = extract(net, row.subnet)
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            module(torch.zeros(1, 3, 4, 4))
        assert row.macs == flops.get_total_flops() / 2 > 0
        assert row.params == sum(p.numel() for p in module.parameters())
        assert row.bytes == sum(t.numel() * t.element_size() for t in module.state_dict().values())
        price = asdict(cost(module, (3, 4, 4)))  # with its feature maps, though members are not run one by one
        assert price == {name: getattr(row, name) for name in price}
        assert row.accuracy is None and row.latency_ms is None
    assert net.training and all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    done = [number for _, number, _ in steps]
    assert {(what, of) for what, _, of in steps} == {("cost", len(net.grid))}
    assert done == sorted({*done}) and done[-1] == len(net.grid)


def test_nsn_costs_what_its_paper_says() -> None:
    rows = measure(mlp(784, [784, 784], 10), input_shape=(1, 28, 28))
    assert [(m.label, m.params, m.macs) for m in rows] == [
        ("entry=2", 7_850, 7_840),
        ("entry=1", 623_290, 622_496),
        ("entry=0", 1_238_730, 1_237_152),
    ]
    assert [m.peak_activation for m in rows] == [4 * (784 + 10), 4 * 2 * 784, 4 * 2 * 784]


def test_accuracy_is_that_of_each_member_on_each_split() -> None:
    torch.manual_seed(0)
    net, data, preprocess = mlp(784, [784], 10, dropout=(0.5,)), dataset(), Preprocess((0.5,), (0.2,))
    net.train()
    for row in measure(net, data, preprocess=preprocess):
        module = extract(net, row.subnet)
        for part, accuracy in ((data.validation, row.accuracy), (data.test, row.test_accuracy)):
            with torch.no_grad():
                right = module(preprocess(part.images)).argmax(1) == part.labels
            assert accuracy == right.double().mean().item()
    assert net.training


def test_a_split_without_images_gives_no_accuracy() -> None:
    rows = measure(mlp(784, [784], 10), dataset(validation=0))
    assert {m.accuracy for m in rows} == {None} and all(m.test_accuracy is not None for m in rows)
    with pytest.raises(ValueError, match="no accuracy, which takes validation images"):
        rows.choose(min_accuracy=0.5)


def test_latency_is_kept_with_its_conditions() -> None:
    net = mlp(16, [20_000, 16], 10, entries=(0, 2))  # a hundred times slower through the first layer
    untimed = measure(net, input_shape=(16,))
    steps: list[tuple[str, int, int]] = []
    timed = measure_latency(net, untimed, seconds=0.02, batch=3, threads=1, progress=lambda *step: steps.append(step))
    assert (timed.machine, timed.device, timed.threads, timed.batch) == (machine(), "cpu", 1, 3)
    assert all(0 < m.latency_ms <= m.latency_p95_ms for m in timed)  # type: ignore[operator]
    assert timed[0].latency_ms < timed[1].latency_ms  # type: ignore[operator]
    assert [replace(m, latency_ms=None, latency_p95_ms=None) for m in timed] == list(untimed)
    assert steps == [("latency", i + 1, 10) for i in range(10)]
    assert timed.latency_is_from_here(batch=3, threads=1)
    assert not timed.latency_is_from_here(batch=1, threads=1)
    assert not timed.latency_is_from_here(batch=3, threads=2)
    assert not timed.latency_is_from_here(batch=3, threads=1, device="cuda")
    assert not replace(timed, machine="another").latency_is_from_here(batch=3, threads=1)
    assert not untimed.latency_is_from_here()
    with pytest.raises(ValueError, match="catalogue is of another network: its members are not those of Grid"):
        measure_latency(mlp(16, [16], 10), untimed)


def test_measure_times_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_ROUNDS", 1)
    rows = measure(Nested([nn.Linear(4, 3)]), input_shape=(4,), latency=True, batch=2, threads=1)
    assert rows[0].label == "full" and rows[0].latency_ms is not None
    assert rows.latency_is_from_here(batch=2, threads=1)


def test_an_input_shape_is_needed_and_checked() -> None:
    with pytest.raises(ValueError, match="give data, or input_shape"):
        measure(mlp(784, [784], 10))
    with pytest.raises(ValueError, match=r"failed on an input of shape \(1, 3, 28, 28\)"):
        measure(mlp(784, [784], 10), input_shape=(3, 28, 28))


# Choosing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budgets", "label", "num_fitting", "binding", "why"),
    [
        ({}, "entry=0", 3, (), "no budget was given: the most accurate of 3 members"),
        (
            {"max_macs": 700e3},
            "entry=1",
            2,
            ("max_macs",),
            "2 of 3 members fit; max_macs binds: entry=0 (98.90 %) needs 1.24 M MACs",
        ),
        (
            {"max_macs": 2e6, "min_accuracy": 0.95},
            "entry=0",
            2,
            (),
            "2 of 3 members fit; none binds: the most accurate of all",
        ),
        ({"max_macs": 622_496}, "entry=1", 2, ("max_macs",), None),
        (
            {"max_macs": 700e3, "max_latency_ms": 0.3},
            "entry=2",
            1,
            ("max_latency_ms",),
            "1 of 3 members fit; max_latency_ms binds: entry=1 (98.43 %) takes 0.600 ms in 95 % of passes",
        ),
        (
            {"max_params": 700e3, "max_bytes": 3e6, "max_peak_activation": 7e3},
            "entry=1",
            2,
            ("max_params", "max_bytes"),
            "2 of 3 members fit; max_params and max_bytes bind together: "
            "entry=0 (98.90 %) has 1.24 M parameters and takes 4.95 MB",
        ),
    ],
)
def test_choosing(
    budgets: dict[str, float], label: str, num_fitting: int, binding: tuple[str], why: str | None
) -> None:
    choice = catalogue().choose(**budgets)
    assert (choice.label, choice.num_fitting, choice.binding) == (label, num_fitting, binding)
    assert why is None or choice.why == why
    chosen = member(int(label[-1]))
    assert (choice.subnet, choice.accuracy, choice.macs) == (chosen.subnet, chosen.accuracy, chosen.macs)


def test_several_budgets_may_each_stand_against_something_better() -> None:
    rows = catalogue(member(2), member(1, latency_ms=0.9, latency_p95_ms=9.0), member(0))
    choice = rows.choose(max_macs=700e3, max_latency_ms=1)
    assert choice.label == "entry=2" and choice.binding == ("max_macs", "max_latency_ms")  # best first
    assert "max_macs binds: entry=0 (98.90 %) needs 1.24 M MACs" in choice.why
    assert "max_latency_ms binds: entry=1 (98.43 %) takes 9.00 ms in 95 % of passes" in choice.why


def test_a_near_miss_is_told_in_full() -> None:
    choice = catalogue(member(2), member(1), member(0, macs=1_237_152)).choose(max_macs=1_237_000)
    assert choice.why.endswith("needs 1,237,152 MACs")
    with pytest.raises(BudgetError, match=r"nearest is entry=0, which reaches 98\.9 %"):
        catalogue().choose(min_accuracy=0.98903)


def test_of_equals_the_cheapest() -> None:
    rows = catalogue(*(member(i, score=0.9) for i in (2, 1, 0)))
    assert rows.choose().label == "entry=2"
    assert rows.choose(max_macs=700e3).binding == ()


def test_test_accuracy_plays_no_part() -> None:
    assert catalogue(member(1, test_score=0.1), member(0, score=0.9, test_score=1.0)).choose().label == "entry=1"


def test_without_accuracies_the_largest_that_fits() -> None:
    rows = unmeasured()
    assert rows.choose().why == "no budget was given: the largest of 3 members"
    choice = rows.choose(max_macs=1e6)
    assert choice.label == "entry=1"
    assert choice.why == "2 of 3 members fit; max_macs binds: entry=0 needs 1.24 M MACs"
    assert unmeasured(member(1, macs=10, params=5), member(0, macs=9, params=99)).choose().label == "entry=1"


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ({"max_macs": 100}, r"none of 3 members fits max_macs 100; nearest is entry=2, which needs 7\.84 k MACs$"),
        ({"max_macs": 0}, r"nearest is entry=2, which needs 7\.84 k MACs"),
        (
            {"min_accuracy": 0.99},
            r"none of 3 members fits min_accuracy 99\.00 %; nearest is entry=0, which reaches 98\.90 %",
        ),
        (
            {"max_macs": 600e3, "min_accuracy": 0.98},
            r"fits max_macs 600 k and min_accuracy 98\.00 %; nearest is entry=1, which needs 622 k MACs$",
        ),
        ({"max_bytes": 10, "max_latency_ms": 0.1}, r"which takes 31\.4 kB and takes 0\.300 ms in 95 % of passes"),
    ],
)
def test_nothing_fits(budgets: dict[str, float], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        catalogue().choose(**budgets)


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ({"max_macs": math.nan}, "max_macs is a number of 0 or more, not nan"),
        ({"max_bytes": -1}, "max_bytes is a number of 0 or more, not -1"),
        ({"max_params": "700k"}, "max_params is a number of 0 or more, not '700k'"),
        ({"min_accuracy": 97.5}, r"fraction from 0 to 1: write 97\.5 % as 0\.975"),
    ],
)
def test_budgets_that_cannot_be_meant(budgets: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        catalogue().choose(**budgets)


def test_what_was_not_measured_cannot_be_bounded() -> None:
    with pytest.raises(ValueError, match=r"no latency_ms, which takes measure\(net, latency=True\)"):
        unmeasured().choose(max_latency_ms=1)
    with pytest.raises(ValueError, match=r"no accuracy, which takes validation images: measure\(net, data\)"):
        unmeasured().choose(min_accuracy=0.5)
    with pytest.raises(TypeError, match="max_flops"):
        catalogue().choose(max_flops=1)  # type: ignore[call-arg]


def test_latencies_of_another_machine_are_said_to_be() -> None:
    elsewhere = catalogue(machine="a mainframe")
    assert elsewhere.choose(max_latency_ms=9).why.endswith("; latencies were measured elsewhere, on a mainframe")
    assert "elsewhere" not in elsewhere.choose(max_macs=1e6).why + catalogue().choose(max_latency_ms=9).why


FEW = st.integers(0, 4)  # few values, so that ties and equal limits are common
TABLES = st.lists(st.tuples(FEW, FEW, FEW), min_size=1, max_size=6)


def scattered(rows: list[tuple[int, int, int]]) -> Catalogue:
    """Members with the given (accuracy in quarters, MACs, parameters)."""
    return catalogue(*(
        member(0, subnet=Subnet(entry=i, exit=9, width=1), label=f"entry={i}", score=a / 4, macs=m, params=p)
        for i, (a, m, p) in enumerate(rows)
    ))  # fmt: skip


@examples(few=50, many=1000)
@given(
    TABLES,
    st.fixed_dictionaries(
        {}, optional={"max_macs": FEW, "max_params": FEW, "min_accuracy": st.sampled_from([0, 0.5, 1])}
    ),
)
def test_the_choice_is_what_looking_at_every_member_gives(
    rows: list[tuple[int, int, int]], budgets: dict[str, float]
) -> None:
    table = scattered(rows)

    def fitting(limits: dict[str, float]) -> list[Member]:
        most, many = limits.get("max_macs", math.inf), limits.get("max_params", math.inf)
        return [m for m in table if m.macs <= most and m.params <= many and m.accuracy >= limits.get("min_accuracy", 0)]

    if not fitting(budgets):
        with pytest.raises(BudgetError, match="nearest is entry="):
            table.choose(**budgets)
        return
    choice = table.choose(**budgets)
    assert choice.num_fitting == len(fitting(budgets))
    best = max(m.accuracy for m in fitting(budgets))
    assert choice.accuracy == best
    assert (choice.macs, choice.params) == min((m.macs, m.params) for m in fitting(budgets) if m.accuracy == best)

    def helps(lifted: set[str]) -> bool:
        rest = {name: limit for name, limit in budgets.items() if name not in lifted}
        return max(m.accuracy for m in fitting(rest)) > best

    alone = {name for name in budgets if helps({name})}
    if alone:
        assert set(choice.binding) == alone
    elif helps(set(budgets)):
        assert len(choice.binding) > 1 and helps(set(choice.binding))
    else:
        assert choice.binding == ()


@settings(deadline=None)
@given(TABLES)
def test_the_front_is_what_nothing_beats(rows: list[tuple[int, int, int]]) -> None:
    table = scattered(rows)
    front = table.front("params")
    values = [(m.params, m.accuracy) for m in front]
    assert values == sorted(set(values)) and sorted(a for _, a in values) == [a for _, a in values]
    beaten = {
        (p, a / 4) for a, _, p in rows if any(q <= p and b >= a and (q, b) != (p, a) for b, _, q in rows)
    }  # fmt: skip
    assert set(values) == {(p, a / 4) for a, _, p in rows} - beaten


def test_front_by_name() -> None:
    rows = catalogue(member(2), member(1, latency_ms=0.9, latency_p95_ms=9.0), member(0))
    assert [m.label for m in rows.front()] == ["entry=2", "entry=1", "entry=0"]
    assert [m.label for m in rows.front("latency_ms")] == ["entry=2", "entry=0"]
    with pytest.raises(ValueError, match="'flops' is no cost of a member; give one of macs, params, bytes"):
        rows.front("flops")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no accuracy"):
        unmeasured().front()


# Showing and keeping ------------------------------------------------------------------------------------------------


def printed(table: Catalogue) -> list[str]:
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        console.print(table.table())
    return capture.get().splitlines()


def test_the_table_says_it_in_human_units() -> None:
    lines = printed(catalogue(machine="a [red]machine"))
    assert lines[1].split() == ["entry", "valid", "%", "test", "%", "MACs", "params", "size", "peak", "ms", "ms"]
    assert " ".join(lines[2].split()) == "2 92.60 7.40 7.84 k 7.85 k 31.4 kB 6.27 kB 0.250 0.300"
    assert lines[5].strip() == "latency: batch 1, threads 1, cpu; a [red]machine"
    lines = printed(catalogue(machine="a [red]machine", statistics="per-entry"))
    assert [line.strip() for line in lines[5:7]] == [
        "BatchNorm statistics: per-entry",
        "latency: batch 1, threads 1, cpu; a [red]machine",
    ]
    assert [line.split()[0] for line in printed(unmeasured())] == ["entry", "2", "1", "0"]
    assert printed(unmeasured())[0].split() == ["entry", "MACs", "params", "size", "peak"]


def test_the_table_fits_in_80_columns() -> None:
    wide = {"macs": 123_400_000, "params": 999_000_000, "bytes": 10**8, "peak_activation": 10**8, "score": 1.0}
    wide |= {"latency_ms": 0.001234, "latency_p95_ms": 123456.0, "test_score": 1.0}
    rows = [Subnet(entry=e, exit=x, width=w) for e in (0, 15) for x in (15, 16) for w in (1, 22)]
    lines = printed(catalogue(*(member(0, subnet=s, label=str(s), **wide) for s in rows)))
    assert lines[0].split() == ["latency", "p95"] and len(lines) > 2 + len(rows)
    assert lines[2].split()[:5] == ["0", "15", "1", "100.00", "100.00"]
    assert lines[2].split()[-2:] == ["0.00123", "123456"]
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)


def test_one_member_has_a_name_too() -> None:
    assert printed(unmeasured(member(0, label="full")))[1].split()[0] == "full"


@pytest.mark.parametrize(
    "table",
    [catalogue(), unmeasured(), catalogue(statistics="recalibrated")],
    ids=["measured", "unmeasured", "recalibrated"],
)
def test_json_gives_the_same_catalogue(table: Catalogue, tmp_path: Path) -> None:
    table.to_json(tmp_path / "catalogue.json")
    assert Catalogue.from_json(tmp_path / "catalogue.json") == table
    assert Catalogue.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    assert [path.name for path in tmp_path.iterdir()] == ["catalogue.json"]


def test_what_version_0_1_0_wrote_has_no_policy() -> None:
    data = catalogue().to_dict()
    del data["statistics"]
    assert Catalogue.from_dict(data) == catalogue() and catalogue().statistics is None


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", "null", "[" * 100_000, '{"members": 1}', "\x00", "9" * 5000])
def test_a_file_that_holds_no_catalogue(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=r"c\.json holds no catalogue"):
        Catalogue.from_json(tmp_path / "c.json")


def test_csv_has_plain_numbers(tmp_path: Path) -> None:
    catalogue().to_csv(tmp_path / "c.csv")
    with (tmp_path / "c.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["entry=2", "entry=1", "entry=0"]
    first = {"entry": "2", "exit": "1", "width": "1", "accuracy": "0.926", "macs": "7840", "latency_ms": "0.25"}
    assert rows[0] | first == rows[0]
    unmeasured().to_csv(tmp_path / "c.csv")
    assert (tmp_path / "c.csv").read_text().splitlines()[1] == "2,1,1,entry=2,,,7840,7850,31360,6272,3136,,"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(extra=1), "a catalogue is a mapping with input_shape, machine, .*and nothing else"),
        (lambda d: d["members"][0].pop("macs"), "a member of a catalogue is a mapping with entry"),
        (lambda d: d["members"][0].update(macs=1.5), r"macs of entry=2 is a whole number of 0 or more, not 1\.5"),
        (lambda d: d["members"][0].update(params=True), "params of entry=2 is a whole number of 0 or more, not True"),
        (lambda d: d["members"][0].update(bytes=2**63), "bytes of entry=2 is a whole number"),
        (lambda d: d["members"][0].update(score=97.5), "accuracy of entry=2 is None or a number from 0 to 1"),
        (lambda d: d["members"][0].update(latency_ms=math.nan), "latency_ms of entry=2 is None or a number"),
        (lambda d: d["members"][0].update(latency_ms=math.inf), "latency_ms of entry=2 is None or a number"),
        (lambda d: d["members"][0].update(latency_ms=None), "entry=2 has latency_ms and latency_p95_ms or neither"),
        (lambda d: d["members"][0].update(score=None), "the score of all members or of none"),
        (lambda d: d["members"][0].update(label="<script>"), "cannot read sub-network '<script>'"),
        (lambda d: d["members"][0].update(label="entry=1"), "label 'entry=1' does not name entry=2,exit=1,width=1"),
        (lambda d: d["members"][0].update(label=None), "has a label, not None"),
        (lambda d: d["members"][0].update(exit=None), "leaves exit open"),
        (lambda d: d["members"][0].update(entry=1, label="entry=1"), "one member or more, each once; this has 3"),
        (lambda d: d.update(members=[]), "one member or more"),
        (lambda d: d.update(members={}), "members of a catalogue are a list"),
        (lambda d: d.update(input_shape=[0]), r"input_shape \[0\] must be whole numbers above 0"),
        (lambda d: d.update(machine=None), "machine of a catalogue with latency cannot be None"),
        (lambda d: d.update(threads=-1), "threads of a catalogue with latency cannot be -1"),
        (lambda d: d.update(statistics="mine"), "statistics of a catalogue is one of shared, per-entry, .*not 'mine'"),
        (lambda d: d.update(statistics=[]), r"statistics of a catalogue is one of .* or None, not \[\]"),
        (lambda d: d.update(batch="1"), "batch of a catalogue with latency cannot be '1'"),
    ],
)
def test_a_strangers_catalogue_is_checked(change: Callable[[dict[str, Any]], None], message: str) -> None:
    data = copy.deepcopy(catalogue().to_dict())
    change(data)
    with pytest.raises(ValueError, match=message):
        Catalogue.from_dict(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@examples(few=30, many=1000)
@given(st.data())
def test_any_damage_is_a_value_error_or_harmless(draw: st.DataObject) -> None:
    data: dict[str, Any] = catalogue().to_dict()
    target: Any = draw.draw(st.sampled_from([data, *data["members"]]))
    target[draw.draw(st.sampled_from(sorted(target)))] = draw.draw(JSON)
    try:
        read = Catalogue.from_dict(data)
    except ValueError:
        return
    assert Catalogue.from_dict(read.to_dict()) == read
    assert printed(read) and read.choose().why and read.front()


def test_a_catalogue_is_a_sequence() -> None:
    rows = catalogue()
    assert len(rows) == 3 and rows[-1].label == "entry=0" and rows[:2] == rows.members[:2] and member(1) in rows
    assert hash(rows) == hash(catalogue())


def test_what_is_printed_of_a_catalogue_and_a_choice() -> None:
    known = catalogue(machine="a [red]\x1b[31mmachine")
    lines = repr(known).splitlines()
    assert lines[0].split() == ["latency", "p95"] and lines[1].split()[:3] == ["entry", "valid", "%"]
    assert [line.split()[:2] for line in lines[2:5]] == [["2", "92.60"], ["1", "98.43"], ["0", "98.90"]]
    assert str(known) == repr(known) and "\x1b" not in repr(known) and "[red]" in repr(known)
    shown = known._repr_html_()
    assert shown.count("<tr>") == 4 and "<td>98.43</td>" in shown and "[red]" in shown and "\x1b" not in shown
    assert "&lt;b&gt;" in catalogue(machine="<b>")._repr_html_()
    many = unmeasured(*(member(0, label=f"exit={i}", subnet=Subnet(entry=0, exit=i, width=1)) for i in range(100)))
    lines = repr(many).splitlines()
    assert [line.split()[0] for line in lines[30:33]] == ["29", "70", "71"] and "and 40 more between them" in lines[-1]
    assert repr(known.choose(max_macs=700_000)) == (
        "entry=1: 622 k MACs, 623 k parameters, 98.43 % on validation images\n"
        "2 of 3 members fit; max_macs binds: entry=0 (98.90 %) needs 1.24 M MACs"
    )
