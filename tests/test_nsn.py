"""NSN as the paper has it, and its experiments run small, on the digits."""

import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from telescopic.extract import extract
from telescopic.papers import nsn, reproduce
from telescopic.subnet import Subnet
from telescopic.train import CheckpointError, Epoch, History


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def linears(net: nn.Module) -> list[nn.Linear]:
    return [module for module in net.modules() if isinstance(module, nn.Linear)]


def test_sizes_of_the_papers_members() -> None:
    net = nsn.network()
    assert [parameters(extract(net, member)) for member in net.grid] == [7_850, 623_290, 1_238_730]
    assert parameters(net) == 1_238_730, "all members live in the full network's tensors"
    assert [member.entry for member in net.grid] == [2, 1, 0]
    assert net.all(torch.zeros(2, 1, 28, 28)).shape == (3, 2, 10)


@pytest.mark.parametrize(("num_hidden", "size"), [(0, 7_850), (1, 623_290), (2, 1_238_730)])
def test_references_are_ordinary_networks_of_the_same_sizes(num_hidden: int, size: int) -> None:
    net = nsn.network(num_hidden, reference=True)
    assert list(net.grid) == [Subnet(entry=0, exit=num_hidden - 1, width=1)]
    assert parameters(net) == size and len(linears(net)) == num_hidden + 1


def test_weights_are_xavier_uniform_and_biases_a_hundredth() -> None:
    torch.manual_seed(0)
    for linear in linears(nsn.network()):
        bound = math.sqrt(6 / (linear.in_features + linear.out_features))
        weight = linear.weight.detach()
        assert 0.99 * bound < float(weight.abs().max()) <= bound
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert torch.equal(linear.bias, torch.full_like(linear.bias, 0.01))


def test_dropout_by_how_many_layers_a_member_has_run() -> None:
    """Every hidden unit is made to fire, so that a zero can only be a dropped one."""
    assert [nsn.network(n, inputs=4).dropout for n in range(4)] == [(), (0.2,), (0.2, 0.5), (0.2, 0.5, 0.5)]
    net = nsn.network(inputs=500)
    for linear in linears(net):
        nn.init.uniform_(linear.weight)
    dropped: list[float] = []

    def look(module: nn.Module, inputs: tuple[Tensor]) -> None:
        dropped.append((inputs[0] == 0).double().mean().item())

    for module in (net.stages[1], net.exits["1"]):
        module.register_forward_pre_hook(look)
    torch.manual_seed(0)
    x = torch.rand(400, 500) + 0.1
    for member in net.grid:
        net(x, member)
    model0, model1, model2 = dropped[0], dropped[1:3], dropped[3:]
    assert model0 == 0
    assert model1 == pytest.approx([0.0, 0.2], abs=0.005), "its first layer reads pixels, which are never dropped"
    assert model2 == pytest.approx([0.2, 0.5], abs=0.005)
    net.eval()(x)
    assert dropped[5:] == [0, 0], "none in evaluation"


def test_the_recipe_is_the_papers() -> None:
    recipe = nsn.recipe()
    assert (recipe.epochs, recipe.batch_size, recipe.momentum, recipe.nesterov) == (600, 128, 0.9, False)
    rates = {epoch: recipe.rate(epoch) for epoch in (1, 200, 201, 400, 401, 600)}
    expected = {1: 0.03, 200: 0.03, 201: 0.01, 400: 0.01, 401: 0.01 / 3, 600: 0.01 / 3}
    assert rates == pytest.approx(expected, rel=1e-12), "Eq. 4's 0.3 is 0.03 in torch's momentum"
    assert recipe.mix == ((0.5, 0.0, 0.0), (0.5, 0.5, 0.0), (0.0, 0.5, 1.0))
    assert recipe.weights == (1.0, 1.0, 1.0) and recipe.distillation == 0
    assert [nsn.recipe(n).l2 for n in (1, 2, 3)] == [9e-6, 9e-5, 9e-5] and nsn.recipe(l2=0.0).l2 == 0
    assert torch.equal(recipe.preprocess(torch.full((1, 1, 1, 1), 51, dtype=torch.uint8)), torch.full((1,) * 4, 0.2))


def test_the_rate_falls_after_each_third_of_any_run() -> None:
    assert nsn.recipe(epochs=60).milestones == (20, 40)
    assert [nsn.recipe(epochs=3).rate(epoch) for epoch in (1, 2, 3)] == pytest.approx([0.03, 0.01, 0.01 / 3])
    assert nsn.recipe(epochs=2).milestones == ()


def test_reference_recipes() -> None:
    """Eq. 3's momentum is torch's own, so the rate is not divided by ten."""
    recipes = [nsn.reference_recipe(n) for n in (0, 1, 2, 3)]
    assert [recipe.l2 for recipe in recipes] == [9e-5, 5e-6, 1e-5, 1e-5]
    assert [recipe.learning_rate for recipe in recipes] == [0.3, 0.3, 0.1, 0.1]
    assert all(recipe.mix is None and recipe.milestones == (200, 400) for recipe in recipes)
    assert nsn.reference_recipe(2, learning_rate=0.01).rate(201) == pytest.approx(0.01 / 3)


def test_experiments() -> None:
    built = {name: nsn.experiment(name, epochs=6, inputs=9, classes=4) for name in nsn.EXPERIMENTS}
    sizes = {name: [parameters(extract(net, member)) for member in net.grid] for name, (net, _) in built.items()}
    assert sizes == {
        "model0-1-2": [40, 130, 220],
        "model0-1": [40, 130],
        "ref-model2": [220],
        "ref-model1": [130],
        "ref-model0": [40],
        "joint": [40, 130, 220],
        "distilled": [40, 130, 220],
    }
    main, joint, distilled = (built[name][1] for name in ("model0-1-2", "joint", "distilled"))
    assert main == nsn.recipe(2, epochs=6) and built["model0-1"][1] == nsn.recipe(1, epochs=6)
    assert built["ref-model1"][1] == nsn.reference_recipe(1, epochs=6)
    assert joint.mix is None and joint.distillation == 0 and distilled.mix is None and distilled.distillation == 0.5
    assert joint.learning_rate == main.learning_rate and joint.weights == main.weights and joint.l2 == main.l2
    with pytest.raises(ValueError, match="NSN has no experiment 'model3'; there are model0-1-2, model0-1, ref-model2"):
        nsn.experiment("model3")


def test_the_three_protocols() -> None:
    def epoch(number: int, validation: float, test: float) -> Epoch:
        return Epoch(number, 1.0, 1.0, 0.1, 1.0, (1.0, 1.0), (0.0, validation), (0.5, test))

    history = History(("a", "b"), 1, [epoch(1, 0.7, 0.9), epoch(2, 0.8, 0.6), epoch(3, 0.6, 0.7)])
    assert reproduce.protocols(history) == {
        "best_test": {"epoch": 1, "test": (0.5, 0.9)},
        "validation": {"epoch": 2, "test": (0.5, 0.6)},
        "last": {"epoch": 3, "test": (0.5, 0.7)},
    }


NAMES = ("model0-1-2", "ref-model0", "joint")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nsn")
    reproduce.reproduce(nsn.PAPER, out, only=NAMES, data="digits", epochs=2, progress=False)
    return out


def rows(out: Path) -> dict[str, list[list[str]]]:
    """Every table's title with its rows of cells, as printed."""
    found = {}
    for table in reproduce.tables(nsn.PAPER, out):
        assert isinstance(table.title, str)
        found[table.title] = list(zip(*(list(column.cells) for column in table.columns), strict=True))
    return {title: [list(row) for row in cells] for title, cells in found.items()}  # type: ignore[arg-type]


def test_summaries_say_how_they_came_about(ran: Path) -> None:
    summary = json.loads((ran / "model0-1-2" / "summary.json").read_text())
    assert summary["models"] == ["model0", "model1", "model2"]
    assert (summary["data"], summary["seed"], summary["epochs"], summary["train_images"]) == ("digits", 0, 2, 1294)
    assert summary["recipe"] == json.loads(json.dumps(nsn.recipe(epochs=2).to_dict()))
    assert set(summary["versions"]) == {"telescopic", "torch", "python"} and summary["threads"] >= 1
    assert list(summary["curve"]) == ["1"] and len(summary["curve"]["1"]) == 3
    assert set(reproduce.summaries(ran)) == set(NAMES)


def test_the_tables_have_the_papers_figures_and_ours(ran: Path) -> None:
    tables = rows(ran)
    paper = {title: [(row[0], row[1]) for row in tables[title]] for title in tables if title.startswith("Table")}
    assert paper == {
        "Table 1: references": [("ref-model2", "0.9886"), ("ref-model1", "0.9882"), ("ref-model0", "0.9241")],
        "Table 2: model0-1": [("model1", "0.9857"), ("model0", "0.9253")],
        "Table 3: model0-1-2": [("model2", "0.9890"), ("model1", "0.9843"), ("model0", "0.9260")],
    }
    ours = json.loads((ran / "model0-1-2" / "summary.json").read_text())["protocols"]
    for row, place in zip(tables["Table 3: model0-1-2"], (2, 1, 0), strict=True):
        cells = [f"{p['test'][place]:.4f} (epoch {p['epoch']})" for p in ours.values()]
        assert row[2:] == cells and list(ours) == ["best_test", "validation", "last"]
    assert rows(ran)["Table 1: references"][0][2:] == ["–"] * 3 and "–" not in tables["Table 1: references"][2]
    assert tables["Table 2: model0-1"][0][2:] == ["–"] * 3
    curve = tables["model0-1-2 while training: test accuracy of model0 / 1 / 2"]
    assert curve[0][:2] == ["1", "0.9035 / 0.9373 / 0.9488"] and curve[0][2].count("/") == 2
    assert [row[0] for row in curve] == ["1", "11", "51", "202", "600"] and curve[4][2] == "–"
    assert [row[:2] for row in tables["Ways to share gradients, last epoch"]] == [["model0-1-2", "2"], ["joint", "2"]]


def test_the_tables_can_be_printed(ran: Path) -> None:
    console = Console(width=160)
    with console.capture() as captured:
        for table in reproduce.tables(nsn.PAPER, ran):
            console.print(table)
    assert "0.9260" in captured.get() and "chosen on validation" in captured.get()


def test_tables_of_nothing_have_the_papers_figures_alone(tmp_path: Path) -> None:
    tables = rows(tmp_path)
    assert list(tables) == ["Table 1: references", "Table 2: model0-1", "Table 3: model0-1-2"]
    assert tables["Table 3: model0-1-2"][0] == ["model2", "0.9890", "–", "–", "–"]


def test_what_is_done_is_not_done_again(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "fit", lambda *args, **options: pytest.fail("trained again"))
    reproduce.reproduce(nsn.PAPER, ran, only=NAMES, data="digits", epochs=2, progress=False)


def test_a_stopped_experiment_goes_on(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(Exception):
        pass

    def stop(history: History) -> None:
        raise Stopped

    fit = reproduce.fit
    monkeypatch.setattr(reproduce, "fit", lambda *args, **options: fit(*args, on_epoch=stop, **options))
    with pytest.raises(Stopped):
        reproduce.reproduce(nsn.PAPER, tmp_path, only=["model0-1-2"], data="digits", epochs=2, progress=False)
    assert not reproduce.summaries(tmp_path)
    monkeypatch.setattr(reproduce, "fit", fit)
    reproduce.reproduce(nsn.PAPER, tmp_path, only=["model0-1-2"], data="digits", epochs=2, progress=False)
    one, other = (reproduce.summaries(folder)["model0-1-2"]["protocols"] for folder in (ran, tmp_path))
    assert one == other


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "trained with seed = 0, not 1"),
        ({"precision": "bf16"}, "trained with precision = fp32, not bf16"),
        ({"epochs": 3}, r"milestones"),
    ],
)
def test_a_folder_of_other_settings_is_refused(ran: Path, changed: dict[str, object], message: str) -> None:
    settings = {"data": "digits", "epochs": 2, "progress": False} | changed
    with pytest.raises(CheckpointError, match=message):
        reproduce.reproduce(nsn.PAPER, ran, only=["ref-model0"], **settings)  # type: ignore[arg-type]


def test_an_unknown_experiment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="NSN has no experiment 'model7'"):
        reproduce.reproduce(nsn.PAPER, tmp_path, only=["model7"], data="digits", epochs=1, progress=False)
