"""What a network learns to do is a value: its loss, its score, and how the full network teaches, checked by hand."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import f1_score, r2_score
from torch import Tensor, nn
from torch.nn import functional

from telescopic import data, tasks
from telescopic.bundle import Bundle
from telescopic.catalogue import BudgetError, Catalogue, measure
from telescopic.data import Augment, DataError, Dataset, Preprocess, Split
from telescopic.metric import ACCURACY, Metric
from telescopic.nested import Nested
from telescopic.networks import causal_resnet
from telescopic.report.heatmaps import heatmaps
from telescopic.report.page import write_report
from telescopic.subnet import Subnet
from telescopic.tasks import Task
from telescopic.train import CheckpointError, Epoch, History, Objective, Recipe, evaluate, fit
from telescopic.train.checkpoint import read_facts

RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=0.05)
MAE = Task(
    loss=lambda outputs, targets: (outputs - targets).abs().mean(-1),
    score=lambda outputs, targets: (outputs - targets).abs().mean(-1),
    metric=Metric("MAE", better="lower", unit="mm"),
    name="absolute error",
)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(inputs: int = 5, outputs: int = 2) -> Nested:
    """Two members: one that reads the first stage, and one that reads both."""
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Linear(inputs, 12), nn.Tanh()), nn.Sequential(nn.Linear(12, 12), nn.Tanh())]
    return Nested(stages, exits={0: nn.Linear(12, outputs), 1: nn.Linear(12, outputs)})


def table(num: int = 120) -> Dataset:
    """Two numbers that depend on five."""
    x = numbers(num, 5)
    y = torch.stack([x[:, 0] + 0.5 * x[:, 1], x[:, 2] * x[:, 3]], 1) + 0.05 * numbers(num, 2, seed=1)
    return data.of(x, y)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, check_dtype=False)


# ---------------------------------------------------------------------------------------------------- the tasks by hand


def test_classification_weighs_classes() -> None:
    outputs, y = numbers(3, 6, 4), torch.tensor([0, 1, 2, 3, 1, 1])
    plain, weighted = tasks.classification(), tasks.classification(class_weights=(1, 3, 0, 2))
    expected = torch.stack([functional.cross_entropy(one, y, reduction="none") for one in outputs])
    close(plain.loss(outputs, y), expected)
    close(weighted.loss(outputs, y), expected * torch.tensor([1.0, 3, 0, 2])[y])
    close(plain.total(plain.sums(outputs, y), 6), (outputs.argmax(2) == y).double().mean(1))
    with pytest.raises(ValueError, match="class_weights are 0 or more, not all 0"):
        tasks.classification(class_weights=(0, 0))
    with pytest.raises(ValueError, match="4 classes need as many class_weights, not 2"):
        tasks.classification(class_weights=(1, 2)).check(outputs, [y])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, (1.0, 3.0, 0.5, 2.0)])
def test_losses_of_classes_are_torchs_own(smoothing: float, weights: tuple[float, ...] | None) -> None:
    own = nn.CrossEntropyLoss(None if weights is None else torch.tensor(weights), label_smoothing=smoothing)
    own.reduction = "sum"
    given: dict[str, Any] = {"label_smoothing": smoothing, "class_weights": weights}
    task, outputs, y = tasks.classification(**given), numbers(2, 6, 4), torch.tensor([0, 1, 2, 3, 1, 1])
    close(task.loss(outputs, y).sum(1), torch.stack([own(one, y) for one in outputs]))
    each, outputs, y = tasks.tokens(**given), numbers(2, 3, 5, 4), torch.randint(4, (3, 5))
    y[0, 3:] = -100
    for m in range(2):
        expected = [own(outputs[m, i], y[i]) / (y[i] != -100).sum() for i in range(3)]
        close(each.loss(outputs, y)[m], torch.stack(expected))
    known = ({"label_smoothing": 0.2} if smoothing else {}) | ({"class_weights": weights} if weights else {})
    assert each.settings == task.settings == known
    with pytest.raises(ValueError, match=r"label_smoothing of a task lies in 0 to 1, not 1\.5"):
        tasks.tokens(label_smoothing=1.5)
    with pytest.raises(ValueError, match="4 classes need as many class_weights, not 2"):
        tasks.tokens(class_weights=(1, 2)).check(outputs[:, :2], [y])


def test_what_is_taught_is_what_torch_calls_so() -> None:
    def divergence(kind: Any, given: Tensor, learned: Tensor) -> Tensor:
        return torch.distributions.kl_divergence(kind(logits=given.expand_as(learned)), kind(logits=learned))

    categorical, bernoulli = torch.distributions.Categorical, torch.distributions.Bernoulli
    outputs, teacher = numbers(3, 4, 6), numbers(1, 4, 6, seed=1)
    pairs = [(tasks.classification(), divergence(categorical, teacher, outputs))]
    pairs += [(tasks.multilabel(), divergence(bernoulli, teacher, outputs).mean(2))]
    pairs += [(tasks.regression(), functional.mse_loss(outputs, teacher.expand(3, 4, 6), reduction="none").mean(2))]
    for task, expected in pairs:
        assert task.teach is not None
        close(task.teach(outputs, teacher), expected)
    outputs, teacher, teach = numbers(3, 4, 5, 6), numbers(1, 4, 5, 6, seed=1), tasks.tokens().teach
    assert teach is not None
    close(teach(outputs, teacher), divergence(categorical, teacher, outputs).mean(2))


def test_what_is_ignored_does_not_count() -> None:
    task, outputs, y = tasks.tokens(), numbers(2, 3, 5, 4), torch.randint(4, (3, 5))
    y[0, 3:], y[1] = -100, -100  # the second example has no position that counts
    losses = task.loss(outputs, y)
    for m in range(2):
        close(losses[m, 0], functional.cross_entropy(outputs[m, 0, :3], y[0, :3]))
        close(losses[m, 2], functional.cross_entropy(outputs[m, 2], y[2]))
    assert losses[:, 1].tolist() == [0, 0]
    counts = y != -100
    right = (outputs.argmax(-1) == y) & counts
    close(task.total(task.sums(outputs, y), 3), right.sum((1, 2)).double() / counts.sum())
    changed = outputs.clone()
    changed[:, 1] += 7 * numbers(2, 5, 4, seed=3)
    assert torch.equal(task.loss(changed, y), losses) and torch.equal(task.sums(changed, y), task.sums(outputs, y))
    task.check(outputs[:, :2], [y])
    with pytest.raises(ValueError, match="targets go from 0 to 9, and the network's scores"):
        task.check(outputs[:, :2], [torch.tensor([[9, -100, 0, 0, 0]])])
    with pytest.raises(ValueError, match=r"\[batch, positions, classes\], and this one \[2, 5, 4\]"):
        task.check(outputs[:, :2], [y[:, :4]])


def test_regression_scores_as_scikit_learn_does() -> None:
    task, y = tasks.regression(), 100 + numbers(50, 3).double() * torch.tensor([1.0, 5.0, 0.1])
    outputs = y + 0.3 * numbers(4, 50, 3, seed=1).double()
    close(task.loss(outputs, y), (outputs - y).square().mean(2))
    parts = [task.sums(outputs[:, part], y[part]) for part in (slice(20), slice(20, 50))]
    expected = [r2_score(y.numpy(), one.numpy()) for one in outputs]
    found = task.total(parts[0] + parts[1], 50)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)
    mean = y.mean(0).expand(1, 50, 3)
    assert task.total(task.sums(mean, y), 50).item() == pytest.approx(0, abs=1e-9), "chance, as the metric says"
    constant = torch.cat((y[:, :1], torch.ones(50, 1)), 1)
    assert task.total(task.sums(constant[None], constant), 50).item() == 1, "of a constant there is nothing to explain"


def test_a_column_of_targets_is_no_row() -> None:
    """`[batch]` against `[batch, 1]` would be broadcast to `[batch, batch]`, which learns nothing, in silence."""
    task, outputs, y = tasks.regression(), numbers(2, 7, 1), numbers(7)
    task.check(outputs[:, :2], [y])
    close(task.loss(outputs, y), (outputs[..., 0] - y).square())
    assert task.sums(outputs, y).shape == (2, 3)
    for targets in (numbers(7, 2), torch.arange(7)):
        with pytest.raises(ValueError, match="as many numbers as a target has"):
            task.check(outputs[:, :2], [targets])


def test_multilabel_scores_as_scikit_learn_does() -> None:
    task, outputs, y = tasks.multilabel(), numbers(3, 40, 6), torch.rand(40, 6) < 0.3
    expected = [
        functional.binary_cross_entropy_with_logits(one, y.float(), reduction="none").mean(1) for one in outputs
    ]
    close(task.loss(outputs, y), torch.stack(expected))
    f1 = [f1_score(y.numpy(), (one > 0).numpy(), average="micro") for one in outputs]
    close(task.total(task.sums(outputs, y), 40), torch.tensor(f1))
    assert task.total(task.sums(torch.full((1, 40, 6), -1.0), y), 40).item() == 0
    task.check(outputs[:, :2], [y, y.long(), y.float()])
    with pytest.raises(ValueError, match="labels are 0 or 1, and these go from 0 to 2"):
        task.check(outputs[:, :2], [2 * y.long()])
    with pytest.raises(ValueError, match=r"a score for each label, and this one \[2, 6\] .* targets bool \[40, 5\]"):
        task.check(outputs[:, :2], [y[:, :5]])


@pytest.mark.parametrize("name", list(tasks.NAMED))
def test_who_answers_as_the_full_network_has_nothing_to_learn(name: str) -> None:
    shape = (3, 4, 5, 6) if name == "tokens" else (3, 4, 6)
    outputs, task = numbers(*shape).requires_grad_(), tasks.NAMED[name]
    assert task.teach is not None
    far = task.teach(outputs, outputs[2:].detach())
    assert far.shape == (3, 4) and far[2].abs().max() < 1e-6 and (far[:2] > 0).all()
    (grad,) = torch.autograd.grad(far.sum(), outputs)
    assert grad[2].abs().max() < 1e-6 and grad[0].abs().max() > 0.01


def test_squared_error_is_taught_the_same_at_any_temperature() -> None:
    net, x, y = network(), numbers(8, 5), numbers(8, 2, seed=1)
    found = [
        Objective(net, replace(RECIPE, distillation=0.5, temperature=t), tasks.regression())(x, y)[0].item()
        for t in (1.0, 4.0)
    ]
    with torch.no_grad():
        outputs = net.all(x)
    own = (outputs - y).square().mean(2).sum(1)
    small = 0.5 * own[0] + 0.5 * (outputs[0] - outputs[1]).square().mean(1).sum()
    assert found == pytest.approx([((small + own[1]) / 2).item()] * 2, rel=1e-5)


# ----------------------------------------------------------------------------------------------- training and measuring


def test_a_table_of_numbers_is_learned_and_measured(tmp_path: Path) -> None:
    net, given = network(), table()
    recipe = replace(RECIPE, epochs=40, optimizer="adam", learning_rate=0.02, preprocess=Preprocess.fit(given.train))
    history = fit(net, given, recipe, task=tasks.regression(), out=tmp_path / "run", cpu=True, progress=False)
    x = recipe.preprocess(given.validation.inputs)
    for m, member in enumerate(net.grid):
        expected = r2_score(given.validation.targets.numpy(), net(x, member).detach().numpy())
        assert history.best().validation[m] == pytest.approx(expected, abs=1e-6)
    assert history.best().validation[1] > 0.6 and history.metric.name == "R2"
    catalogue = measure(net, given, preprocess=recipe.preprocess, task=tasks.regression())
    kept = Catalogue.from_json(tmp_path / "run" / "catalogue.json")
    assert [m.score for m in kept] == pytest.approx([m.score for m in catalogue]) and kept.metric == catalogue.metric
    with (tmp_path / "run" / "catalogue.csv").open() as file:
        assert next(file).startswith("entry,exit,width,label,R2,test_R2,macs")
    bundle = Bundle.open(tmp_path / "run" / "model.safetensors")
    assert bundle.catalogue is not None and bundle.catalogue.metric.name == "R2"
    assert bundle.provenance["task"] == {"name": "regression"}
    with pytest.raises(ValueError, match="exit=0 has no accuracy, for its score is R2"):
        _ = catalogue[0].accuracy
    choice = catalogue.choose(max_macs=catalogue[0].macs)
    assert choice.subnet == net.grid[0] and f"exit=1 (R2 {catalogue[1].score:.4g})" in choice.why
    with pytest.raises(BudgetError, match=r"fits min_score 0\.9999; nearest is exit=1, which has R2 0"):
        catalogue.choose(min_score=0.9999)
    for name in ("min_accuracy", "max_score"):
        with pytest.raises(ValueError, match=f"is R2, .*higher is the better: give min_score, not {name}"):
            catalogue.choose(**{name: 0.5})  # type: ignore[arg-type]


def test_a_report_of_an_error_and_of_scores_below_0(tmp_path: Path) -> None:
    net = network()
    priced = measure(net, input_shape=(5,))
    catalogue = priced.scored(MAE.metric, [2.5, 0.75], [2.25, 0.5])
    epoch = Epoch(1, 1.0, 100.0, 0.1, 1.0, (1.0, 2.0), (2.5, 0.75), (2.25, 0.5))
    history = History(["exit=0", "exit=1"], 1, [epoch, replace(epoch, epoch=2)], metric=MAE.metric)
    page = write_report(tmp_path, net, catalogue, history=history, title="mine", source="x").read_text()
    assert (
        "MAE 0.5 mm to 2.25 mm on the test examples" in page and "%" not in page.split("<table")[1].split("</table")[0]
    )
    assert {path.stem for path in (tmp_path / "plots").iterdir()} >= {"score-macs", "training-score", "training-loss"}
    assert "validation MAE" in (tmp_path / "plots" / "score-macs.svg").read_text()
    assert "the best MAE within each budget" in page and 'data-key="score">validation MAE' in page
    shown = Console(width=80, file=io.StringIO())
    shown.print(catalogue.table())
    assert (
        isinstance(shown.file, io.StringIO) and "MAE mm" in shown.file.getvalue() and " 0.75 " in shown.file.getvalue()
    )
    wide = causal_resnet(2, (1,), blocks=1)
    scores = [0.5 - 0.4 * i for i in range(len(wide.grid))]
    below = measure(wide, input_shape=(3, 8, 8)).scored(tasks.regression().metric, scores, scores)
    maps = {plot.name: plot for plot in heatmaps(wide.grid, below)}
    assert (
        maps["grid-score"].title == "validation R2"
        and f"{wide.grid.label(wide.grid[2])}: -0.3" in maps["grid-score"].svg
    )


def test_an_interrupted_run_of_any_task_goes_on(tmp_path: Path) -> None:
    whole, parts = network(), network()
    given = table()
    options: dict[str, Any] = {"task": tasks.regression(), "cpu": True, "progress": False, "keep": "last"}
    fit(whole, given, replace(RECIPE, epochs=4), **options)
    fit(parts, given, replace(RECIPE, epochs=2), out=tmp_path, **options)
    history = fit(network(), given, replace(RECIPE, epochs=4), out=tmp_path, resume=True, **options)
    assert len(history) == 4 and history.metric.name == "R2"
    resumed = network()
    fit(resumed, given, replace(RECIPE, epochs=4), out=tmp_path, resume=True, **options)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert read_facts(tmp_path / "last.safetensors")["task"] == {"name": "regression"}
    with pytest.raises(CheckpointError, match=r"trained with task = {'name': 'regression'}, not {'name': 'absolute"):
        fit(network(), given, replace(RECIPE, epochs=5), out=tmp_path, resume=True, **options | {"task": MAE})


def test_of_an_error_the_lowest_is_the_best(tmp_path: Path) -> None:
    net, given = network(), table()
    recipe = replace(RECIPE, epochs=6, optimizer="adam", learning_rate=0.02)
    history = fit(net, given, recipe, task=MAE, cpu=True, progress=False)
    errors = [epoch.validation[1] for epoch in history]
    assert history.best().validation[1] == min(errors) and errors[0] > min(errors)
    catalogue = measure(net, given, task=MAE)
    x, y = given.validation.inputs, given.validation.targets
    expected = [(net(x, member) - y).abs().mean().item() for member in net.grid]
    assert [m.score for m in catalogue] == pytest.approx(expected, rel=1e-5) and errors.index(min(errors)) >= 1
    better = [replace(catalogue[0], score=0.9), replace(catalogue[1], score=0.4)]
    ranked = replace(catalogue, members=tuple(better))
    assert ranked.choose().label == "exit=1" and "the best of 2 members" in ranked.choose().why
    assert [m.label for m in ranked.front()] == ["exit=0", "exit=1"]
    worse = replace(catalogue, members=(replace(better[0], score=0.3), better[1]))
    assert [m.label for m in worse.front()] == ["exit=0"] and worse.choose().label == "exit=0"
    with pytest.raises(BudgetError, match=r"fits max_score 0.2 mm; nearest is exit=0, which has MAE 0.3 mm"):
        worse.choose(max_score=0.2)
    with pytest.raises(ValueError, match=r"MAE, of which the lower is the better: give max_score, not min_score"):
        worse.choose(min_score=0.2)
    worse.to_json(tmp_path / "catalogue.json")
    assert Catalogue.from_json(tmp_path / "catalogue.json") == worse


def test_tokens_are_learned_by_an_embedding() -> None:
    torch.manual_seed(0)
    words = torch.randint(6, (90, 4))
    targets = torch.where(torch.rand(90, 4) < 0.2, -100, (words + 1) % 6)

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.table(x)

    stages = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Sequential(nn.Linear(8, 8), nn.Tanh())]
    net = Nested(stages, entries={0: Reads()}, exits={0: nn.Linear(8, 6), 1: nn.Linear(8, 6)})
    recipe = Recipe(epochs=15, batch_size=16, optimizer="adam", learning_rate=0.03)
    history = fit(net, data.of(words, targets), recipe, task=tasks.tokens(), cpu=True, progress=False)
    assert history[-1].test == (1.0, 1.0) and history.metric == ACCURACY


def test_ones_own_loop_takes_the_objective() -> None:
    net, given = network(), table()
    objective, sgd = Objective(net, RECIPE, tasks.regression()), torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(150):
        loss, each = objective(given.train.inputs, given.train.targets)
        assert each.shape == (2,) and not each.requires_grad
        sgd.zero_grad()
        (loss / len(given.train)).backward()
        sgd.step()
    scores = evaluate(net, [given.train], Preprocess(), task=tasks.regression())
    assert scores[0, 1] > 0.5


def test_scores_of_ones_own() -> None:
    net, x = network(), numbers(20, 5)
    net.train()
    seen = []

    def spread(net: Nested) -> dict[Any, Any]:
        seen.append((net.training, torch.is_grad_enabled()))
        return {Subnet(exit=e): net(x, Subnet(exit=e)).std() for e in (1, 0)}  # in any order, and any kind of number

    catalogue = measure(net, evaluate=spread, metric=Metric("spread", better="lower"), input_shape=(5,))
    assert seen == [(False, False)] and net.training
    expected = [net(x, member).std().item() for member in net.grid]
    assert [m.score for m in catalogue] == pytest.approx(expected) and catalogue[0].test_score is None
    assert catalogue.choose().score == min(m.score or 0.0 for m in catalogue)
    unnamed = measure(net, evaluate=lambda net: {m: np.float32(m.exit) for m in net.grid}, input_shape=(5,))
    assert unnamed.metric == Metric("score") and unnamed.choose(min_score=0.5).label == "exit=1"

    def refused(scores: Any, reason: str, **more: Any) -> None:
        with pytest.raises(ValueError, match=reason):
            measure(net, evaluate=lambda net: scores, **{"input_shape": (5,), **more})

    small, full = net.grid
    refused({small: 1.0}, "evaluate returned no score for exit=1: it needs every member's")
    refused({small: 1.0, full: 2.0, Subnet(): 2.0}, "returned 3 scores for 2 members: some of them twice")
    refused({small: 1.0, full: 2.0, Subnet(exit=2): 3.0}, "there is no member exit=2.*nearest is entry=0,exit=1")
    refused({small: 1.0, full: math.nan}, "score of exit=1 is .* a finite number, not nan")
    refused({small: 1.0, full: 93.0}, "accuracy of exit=1 is .* from 0 to 1, not 93.0", metric=ACCURACY)
    refused({small: torch.ones(2), full: 1.0}, r"score of exit=0 is one number, not tensor\(\[1., 1.\]\)")
    refused([1.0, 2.0], "a score for each member, {member: score}, not list")
    refused({}, "from data or from evaluate, not from both", data=table())
    with pytest.raises(ValueError, match="metric says what the scores of evaluate= mean"):
        measure(net, table(), metric=ACCURACY)


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (Task(loss=lambda o, y: (o - y).square().mean()), r"loss gives one number for 2 members and two .* \[2, 2\]"),
        (Task(loss=lambda o, y: (o - y).square().mean((0, 2))), r"loss gives \[2\] for 2 members"),
        (Task(loss=lambda o, y: (o - y).square()), r"loss gives \[2, 2, 2\] for 2 members"),
        (
            replace(MAE, score=lambda o, y: (o - y).square().mean()),
            r"score gives one number for 2 members and two examples",
        ),
        (tasks.classification(), r"labels are classes, int64 \[n\], not float32 \[\d+, 2\]"),
        (tasks.tokens(), r"scores \[batch, positions, classes\], and this one \[2, 2\]"),
        (tasks.multilabel(), "labels are 0 or 1, and these go from"),
    ],
)
def test_a_task_that_does_not_fit_is_refused_before_anything_is_done(task: Task, reason: str) -> None:
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match=reason):
        fit(net, table(), RECIPE, task=task, cpu=True, progress=False)
    with pytest.raises(ValueError, match=reason):
        measure(net, table(), task=task)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_recipes_that_a_task_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"write telescopic.tasks.classification\(label_smoothing=0.1\)"):
        fit(network(), table(), replace(RECIPE, label_smoothing=0.1), task=tasks.regression(), cpu=True)
    with pytest.raises(ValueError, match=r"distillation 0.5, but the task does not say .* give it teach="):
        Objective(network(), replace(RECIPE, distillation=0.5), MAE)
    with pytest.raises(ValueError, match="a score has a name and a better direction"):
        Task(loss=MAE.loss, score=MAE.loss)
    with pytest.raises(ValueError, match="Augment takes images"):
        fit(network(), table(), replace(RECIPE, augment=Augment(pad=1)), task=tasks.regression(), cpu=True)
    same = table()
    constant = replace(same, train=Split(same.train.inputs, torch.ones_like(same.train.targets)))
    with pytest.raises(ValueError, match=r"all training examples of own are of target \[1.0, 1.0\]"):
        fit(network(), constant, RECIPE, task=tasks.regression(), cpu=True)


def test_metrics_that_cannot_be_meant() -> None:
    for wrong in ({"name": ""}, {"name": "a\nb"}, {"name": "x" * 41}, {"name": "a", "better": "more"}):
        with pytest.raises(ValueError, match="metric"):
            Metric(**wrong)  # type: ignore[arg-type]
    for chance in (2, math.nan, "a", True):
        with pytest.raises(ValueError, match="chance is None or a number from 0 to 1"):
            Metric("F1", unit="%", chance=chance)  # type: ignore[arg-type]
    assert Metric.from_dict(json.loads(json.dumps(MAE.metric.to_dict()))) == MAE.metric
    with pytest.raises(ValueError, match="a metric is a mapping"):
        Metric.from_dict({"name": "a"})
    assert (MAE.metric.text(0.25), ACCURACY.text(0.25), Metric("R2").text(-3.0)) == ("0.25 mm", "25.00 %", "-3")


def test_a_score_that_is_not_finite_is_no_score() -> None:
    catalogue = measure(network(), input_shape=(5,))
    with pytest.warns(UserWarning, match="no validation R2 is kept: it is not finite for exit=0"):
        found = catalogue.scored(tasks.regression().metric, [-math.inf, 0.5], [0.1, 0.2])
    assert [m.score for m in found] == [None, None] and [m.test_score for m in found] == [0.1, 0.2]
    mixed = (catalogue[0], replace(catalogue[1], metric=MAE.metric))
    with pytest.raises(ValueError, match="several metrics"):
        replace(catalogue, members=mixed)


def test_what_was_written_before_there_were_tasks_is_read() -> None:
    catalogue = measure(network(), input_shape=(5,)).scored(ACCURACY, [0.5, 0.75], [0.25, 0.5])
    old = {name: value for name, value in catalogue.to_dict().items() if name != "metric"}
    names = {"score": "accuracy", "test_score": "test_accuracy"}
    old["members"] = [{names.get(name, name): value for name, value in row.items()} for row in old["members"]]
    assert Catalogue.from_dict(json.loads(json.dumps(old))) == catalogue and catalogue[1].accuracy == 0.75
    seen = History(["a"], 0, metric=MAE.metric).to_dict()
    assert History.from_dict(seen).metric == MAE.metric
    del seen["metric"]
    assert History.from_dict(seen).metric == ACCURACY


# ---------------------------------------------------------------------------------------------------- data of one's own


def test_data_of_tensors_and_arrays() -> None:
    x, y = np.arange(60.0).reshape(30, 2), np.arange(30) % 3
    found = data.of(x, y, validation=4, classes=("a", "b", "c"))
    assert [len(split) for split in found.splits] == [20, 4, 6] and found.input_shape == (2,)
    together = torch.cat([split.inputs for split in found.splits])
    assert together.dtype == torch.float32 and sorted(together[:, 0].tolist()) == x[:, 0].tolist()
    for split in found.splits:
        assert torch.equal(split.targets, (split.inputs[:, 0] / 2).long() % 3), "each keeps its own"
    assert sorted(found.test.targets.tolist()) == [0, 0, 1, 1, 2, 2], "classes in proportion"
    other = data.of(x, y, validation=4, seed=1)
    assert not torch.equal(other.test.inputs, found.test.inputs)
    own = data.of(x, y, validation=(x[:3], y[:3]), test=(x[3:5], y[3:5]))
    assert [len(split) for split in own.splits] == [30, 3, 2] and torch.equal(own.test.targets, torch.tensor([0, 1]))
    with pytest.raises(DataError, match="there are 30 inputs and 29 targets"):
        data.of(x, y[:29])
    with pytest.raises(DataError, match="own has 30 examples left: it cannot give 30 of them for the test"):
        data.of(x, y, test=30)
    with pytest.raises(DataError, match=r"inputs: expected numbers \[n, ...\], found <U1 \[1\]"):
        data.of(["a"], [1])


def test_data_say_what_they_are() -> None:
    assert repr(table().test) == "Split(inputs float32 [24, 5], targets float32 [24, 2])"
    assert "train=Split(inputs float32 [87, 5], targets float32 [87, 2])" in repr(table())


def test_images_are_asked_for_where_they_are_needed() -> None:
    with pytest.raises(DataError, match=r"own has inputs \(5,\), and images are"):
        _ = table().image_shape
