import ast
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import telescopic as tl
from telescopic import cli
from telescopic.cli.training import _show
from telescopic.quantities import human, parse_quantity
from telescopic.run import Source


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `telescopic train nsn` on the user's own .npz: striped images, easy to tell apart."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    images = rng.integers(0, 100, (300, 6, 6)).astype(np.uint8)
    for label in range(3):
        images[labels == label, 2 * label] = 255
    np.savez(folder / "own.npz", images=images, labels=labels, classes=np.array(["top", "middle", "bottom"]))
    out = folder / "run"
    result = invoke("train", "nsn", "--data", str(folder / "own.npz"), "--out", str(out), "--epochs", "60")
    assert result.exit_code == 0, result.output
    assert f"telescopic choose {out}" in result.output
    return out


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of `telescopic train cnsn` on a few images, a sixteenth as wide as the paper's, and what it printed."""
    folder = tmp_path_factory.mktemp("cnsn")
    words = ("--data", images_32(folder, 3), "--out", str(folder / "run"), "--scale", "0.0625", "--epochs", "1")
    result = invoke("train", "cnsn", *words, "--weights", "sum", "--distillation", "0.25")
    assert result.exit_code == 0, result.output
    return folder / "run", result.output


def images_32(folder: Path, channels: int) -> str:
    """The path of 60 random images of 32 × 32 pixels."""
    rng = np.random.default_rng(channels)
    images = rng.integers(0, 256, (60, channels, 32, 32)).astype(np.uint8)
    np.savez(folder / f"{channels}.npz", images=images, labels=np.arange(60) % 4)
    return str(folder / f"{channels}.npz")


def invoke(*words: str):
    return CliRunner().invoke(cli.app, list(words))


def test_what_files_say_is_printed_harmlessly(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = json.loads((trained / "catalogue.json").read_text())
    evil = "\x1b]0;owned\x07\x1b[2J[red]a[/] :boom: \u202e\ud800"
    table |= {"machine": evil, "device": "cpu", "threads": 1, "batch": 1}
    for member in table["members"]:
        member |= {"latency_ms": 1.0, "latency_p95_ms": 1.0}
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "catalogue.json").write_text(json.dumps(table))
    for words in (("catalogue",), ("choose", "--max-latency-ms", "1"), ("report",)):
        monkeypatch.setattr("telescopic.catalogue.Catalogue.latency_is_from_here", lambda *_, **__: True)
        result = invoke(words[0], str(tmp_path / "run"), *words[1:])
        assert result.exit_code == 0, result.output
        assert result.output.replace("\n", "").isprintable()
        if words[0] == "catalogue":
            assert "\\x1b]0;owned" in result.output.replace("\n", "") and "[red]a[/] :boom:" in result.output
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "\x1b" not in page and "\u202e" not in page and "\\x1b]0;owned" in page
    table["members"][0]["label"] = "entry=0\x1b[2J"
    (tmp_path / "run" / "catalogue.json").write_text(json.dumps(table))
    error = fails(monkeypatch, capsys, "choose", str(tmp_path / "run"))
    assert "\x1b" not in error and "\\x1b[2J" in error


def test_commands_print_in_one_place() -> None:
    """Where control characters in what files say are spelt out."""
    for file in Path(cli.__file__).parent.glob("*.py"):
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)}
        assert file.name == "shown.py" or not calls & {"print", "Console().print", "typer.echo"}, file.name


def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Standard error of a command that must exit with 1 and without a traceback."""
    monkeypatch.setattr(sys, "argv", ["telescopic", *words])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    error = capsys.readouterr().err
    assert exit_.value.code == 1
    assert "error: " in error and "Traceback" not in error
    return error


def test_training_leaves_a_run_that_learned(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"last.safetensors", "best.safetensors", "model.safetensors", "log.csv", "catalogue.json"} <= names
    catalogue = tl.Catalogue.from_json(trained / "catalogue.json")
    assert [member.label for member in catalogue] == ["entry=2", "entry=1", "entry=0"]
    assert [member.macs for member in catalogue] == [36 * 3, 36 * 36 + 36 * 3, 2 * 36 * 36 + 36 * 3]
    assert min(member.test_accuracy or 0 for member in catalogue) > 0.9
    bundle = tl.Bundle.open(trained / "model.safetensors")
    assert bundle.classes == ("top", "middle", "bottom")
    assert bundle.provenance["seed"] == 0 and bundle.provenance["recipe"]["epochs"] == 60
    assert bundle.catalogue == catalogue


def test_a_run_knows_its_validation_images(trained: Path, tmp_path: Path) -> None:
    """They are no others if somebody measures later: images that were trained on would flatter."""
    words = ("--seed", "3", "--validation", "400", "--epochs", "1", "--out", str(tmp_path / "run"))
    assert invoke("train", "nsn", "--data", "digits", *words).exit_code == 0
    source = Source.open(str(tmp_path / "run"))
    wanted = tl.data.load("digits", validation=400, seed=3)
    assert len(source.data().validation) == 400
    assert torch.equal(source.data().validation.images, wanted.validation.images)
    other = source.bundle.provenance | {"data": "mnist"}
    vars(source)["bundle"] = replace(source.bundle, provenance=other)
    assert len(source.data("digits").validation) == 143, "of other data a tenth, as ever"
    assert len(Source.open(str(trained)).data().validation) > 0


def test_catalogue_shows_and_writes_every_member(trained: Path, tmp_path: Path) -> None:
    result = invoke("catalogue", str(trained), "--to", str(tmp_path / "table.csv"))
    assert result.exit_code == 0
    assert "1.40 k" in result.output  # MACs of entry=1
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 4


def test_latency_is_measured_once_and_kept(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("catalogue", str(trained), "--latency", "--threads", "1").exit_code == 0
    kept = Source.open(str(trained)).catalogue()
    assert kept.threads == 1 and all((member.latency_ms or 0) > 0 for member in kept)
    monkeypatch.setattr("telescopic.catalogue.measure_latency", lambda *a, **k: pytest.fail("measured again"))
    assert invoke("catalogue", str(trained), "--latency", "--threads", "1").exit_code == 0


WITHOUT_TORCH = """
import json, sys
from typer.testing import CliRunner
from telescopic import cli
for words in json.loads(sys.argv[1]):
    result = CliRunner().invoke(cli.app, words)
    print(json.dumps([result.exit_code, str(result.exception or result.output), "torch" in sys.modules]))
"""


def test_choosing_does_not_load_torch(trained: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    content = (trained / "model.safetensors").read_bytes()
    place = content.index(b"middle")  # the name of a class: the form of the header stays as it is
    damaged.write_bytes(content[:place] + b"M" + content[place + 1 :])
    commands = [
        ["--help"],
        ["choose", "--help"],
        ["choose", "nsn-mnist", "--max-macs", "700k"],
        ["choose", "doubly-nested-cifar10", "--max-params", "100k", "--min-accuracy", "0.1"],
        ["choose", str(trained), "--max-macs", "1.5k"],
        ["catalogue", "nsn-mnist"],
        ["catalogue", str(trained), "--to", str(tmp_path / "table.csv")],
        ["choose", "nsn-mnist", "--max-macs", "5"],
        ["choose", str(damaged)],
    ]
    words = [sys.executable, "-c", WITHOUT_TORCH, json.dumps(commands)]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    told = [json.loads(line) for line in run.stdout.splitlines()]
    assert [code for code, _, _ in told] == [0] * 7 + [1] * 2, told
    assert not any(loaded for _, _, loaded in told)
    outputs = [output for _, output, _ in told]
    assert outputs[2].startswith("entry=1: ") and outputs[4] == invoke(*commands[4]).output
    assert "nearest is entry=2" in outputs[7] and "damaged: what it says" in outputs[8]


def test_choose_keeps_the_budget_and_says_why(trained: Path) -> None:
    result = invoke("choose", str(trained), "--max-macs", "1.5k")
    assert result.exit_code == 0
    assert result.output.startswith(("entry=1:", "entry=2:"))
    assert "2 of 3 members fit" in result.output
    assert f"telescopic extract {trained} --subnet entry=" in result.output


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".safetensors"])
def test_extract_writes_a_file_that_answers_as_the_network(trained: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"small{suffix}"
    result = invoke("extract", str(trained), "--subnet", "entry=1", "--to", str(path))
    assert result.exit_code == 0, result.output
    assert "own.npz" in result.output  # compared on real images
    card = json.loads((tmp_path / f"small{suffix}.json").read_text())
    assert card["subnet"] == "entry=1,exit=1,width=1" and card["catalogue"]["macs"] == 36 * 36 + 36 * 3
    if suffix == ".safetensors":
        x = torch.rand(4, 1, 6, 6)
        net = Source.open(str(trained)).network()
        assert torch.equal(tl.load(path)(x), net(x, tl.Subnet(entry=1)))


def test_extract_with_folded_preprocessing_takes_pixels(trained: Path, tmp_path: Path) -> None:
    import onnxruntime

    path = tmp_path / "pixels.onnx"
    assert invoke("extract", str(trained), "--max-macs", "200", "--fold", "--to", str(path)).exit_code == 0
    pixels = torch.randint(256, (5, 1, 6, 6)).to(torch.uint8)
    session = onnxruntime.InferenceSession(path)
    (logits,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    expected = Source.open(str(trained)).network()(pixels.float() / 255, tl.Subnet(entry=2))
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_report_is_written_into_the_run(trained: Path) -> None:
    result = invoke("report", str(trained))
    assert result.exit_code == 0
    page = (trained / "report.html").read_text()
    assert "entry=1" in page and f"telescopic extract {trained}" in page


def test_cnsn_is_trained_as_told(convolutional: tuple[Path, str]) -> None:
    run, _ = convolutional
    net, bundle = Source.open(str(run)).network(), tl.Bundle.open(run / "model.safetensors")
    assert [net.grid.label(member) for member in net.grid] == ["entry=7", "entry=2", "entry=0"]
    assert (bundle.catalogue and bundle.catalogue.statistics) == net.statistics == "per-entry"
    recipe = bundle.provenance["recipe"]
    told = tl.papers.cnsn.short_recipe(epochs=1).to_dict() | {"weights": (1.0, 1.0, 1.0), "distillation": 0.25}
    fitted = tl.data.Preprocess.fit(tl.data.load(run.parent / "3.npz").train)
    assert recipe == json.loads(json.dumps(told | {"preprocess": {"mean": fitted.mean, "std": fitted.std}}))
    assert bundle.preprocess == fitted and len(fitted.mean) == 3 and bundle.provenance["method"] == "cnsn"


def test_cnsn_says_what_one_file_saves(convolutional: tuple[Path, str]) -> None:
    run, output = convolutional
    net, table = Source.open(str(run)).network(), Source.open(str(run)).catalogue()
    file = (run / "model.safetensors").stat().st_size
    alone = [sum(tensor.nbytes for tensor in tl.extract(net, member).state_dict().values()) for member in net.grid]
    beyond = human(file - alone[2], "B")
    assert f"Storage: {human(file, 'B')} for all 3 members in one file; {human(sum(alone), 'B')} if each" in output
    assert f"{human(alone[2], 'B')} for the largest alone.\nThe {beyond} beyond" in output
    assert "adapters, their BatchNorm statistics, and a header" in output
    # The sentence is true: the rest is a header, and 8 bytes for its length.
    adapters = sum(tensor.nbytes for entry in ("2", "7") for tensor in net.entries[entry].state_dict().values())
    statistics = sum(buffer.nbytes for buffer in net.twins.buffers())
    length = int.from_bytes((run / "model.safetensors").read_bytes()[:8], "little")
    assert file == alone[2] + adapters + statistics + length + 8
    assert output.index("BatchNorm statistics: per-entry") < output.index("Storage:") < output.index("Next:")
    budget = output.split("--max-macs ")[1].split()[0]
    assert table.choose(max_macs=parse_quantity(budget)).num_fitting == 1


def test_cnsn_with_grey_images_the_papers_recipe_and_stems(tmp_path: Path) -> None:
    words = ["train", "cnsn", "--data", images_32(tmp_path, 1), "--out", str(tmp_path / "run"), "--scale", "0.0625"]
    words += ["--recipe", "paper", "--epochs", "1", "--adapter", "stem", "--statistics", "recalibrated"]
    words += ["--entries", "7", "--weights", "0.25,0.5", "--validation", "0"]
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    net = Source.open(str(tmp_path / "run")).network()
    assert net.statistics == "recalibrated" and list(net.entries) == ["0", "7"]
    shapes = [tuple(part.weight.shape) for part in net.entries["7"].modules() if isinstance(part, torch.nn.Conv2d)]
    assert shapes == [(4, 1, 3, 3), (8, 4, 3, 3), (16, 8, 3, 3)]
    recipe = tl.Bundle.open(tmp_path / "run" / "model.safetensors").provenance["recipe"]
    assert (recipe["batch_size"], recipe["weights"], recipe["schedule"]) == (32, [0.25, 0.5], "steps")
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    again = invoke(*words, "--resume")
    assert again.exit_code == 0 and again.stdout == result.stdout
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data", "digits"), "digits are 8 × 8 pixels, and VGG-16 takes 32 × 32 or more: pad them"),
        (("--entries", "2;7"), "--entries takes whole numbers such as 2,7, not '2;7'"),
        (("--entries", "2,99"), "entry 99 is outside this network of 14 blocks: give 0 to 13"),
        (("--weights", "most"), "--weights takes mean, sum, or a number for each member such as 0.2,0.3,0.5"),
        (("--weights", "0.5,0.5"), "3 members need as many loss weights"),
        (("--recipe", "long"), "recipe is one of paper, short, not 'long'"),
        (("--adapter", "stems"), "adapter is one of step-down, stem, not 'stems'"),
        (("--statistics", "mine"), "statistics is one of shared, per-entry, recalibrated, not 'mine'"),
    ],
)
def test_cnsn_refuses_in_one_line(words, message, tmp_path, monkeypatch, capsys) -> None:
    own = ("--data", images_32(tmp_path, 3), "--scale", "0.0625", "--out", str(tmp_path / "run"))
    error = fails(monkeypatch, capsys, "train", "cnsn", *own, *words)
    assert message in error and error.rpartition("error: ")[2].count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_doubly_nested_is_trained_as_told(tmp_path: Path) -> None:
    words = [
        "train",
        "doubly-nested",
        "--data",
        images_32(tmp_path, 3),
        "--out",
        str(tmp_path / "run"),
        "--epochs",
        "1",
    ]
    words += ["--groups", "3", "--channels", "2,3", "--blocks", "1", "--way", "drawn-macs"]
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    net = Source.open(str(tmp_path / "run")).network()
    assert (net.grid.exits, net.grid.widths) == ((-1, 0, 1), (1, 2, 3))
    bundle = tl.Bundle.open(tmp_path / "run" / "model.safetensors")
    recipe = bundle.provenance["recipe"]
    assert (recipe["drawn"], recipe["distillation"], recipe["epochs"]) == (4, 0, 1)
    assert tuple(recipe["weights"]) == tl.papers.doubly_nested.weights(net, macs=1)
    assert bundle.provenance["method"] == "doubly-nested" and len(bundle.catalogue or ()) == 9
    assert all(member.label in invoke("choose", str(tmp_path / "run")).output for member in [bundle.catalogue.choose()])
    again = invoke(*words, "--resume")
    assert again.exit_code == 0 and again.stdout == result.stdout


def test_doubly_nested_is_trained_in_the_best_way_on_the_aligned_network(tmp_path: Path) -> None:
    words = ("train", "doubly-nested", "--data", images_32(tmp_path, 3), "--out", str(tmp_path / "run"))
    assert invoke(*words, "--epochs", "1").exit_code == 0
    bundle = tl.Bundle.open(tmp_path / "run" / "model.safetensors")
    assert (bundle.grid.exits, bundle.grid.widths) == (tuple(range(-1, 6)), (1, 2))
    best = tl.papers.doubly_nested.WAYS[tl.papers.doubly_nested.BEST_WAY]
    recipe = bundle.provenance["recipe"]
    assert {name: recipe[name] for name in ("balanced", "drawn", "distillation", "fit_heads")} == {
        "balanced": best.balanced, "drawn": best.drawn, "distillation": best.distillation, "fit_heads": best.fit_heads
    }  # fmt: skip
    net = Source.open(str(tmp_path / "run")).network()
    shares = tl.papers.doubly_nested.weights(net, **tl.papers.doubly_nested.LAMBDAS[best.weights])
    assert tuple(recipe["weights"]) == pytest.approx(shares)


def test_of_many_members_the_front_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run = str(tmp_path / "run")
    small = ("--groups", "13", "--channels", "1,1,1", "--blocks", "1", "--way", "uniform", "--epochs", "1")
    result = invoke("train", "doubly-nested", "--data", images_32(tmp_path, 1), "--out", run, *small)
    assert result.exit_code == 0, result.output
    table = Source.open(run).catalogue()
    front, shown = table.front(), result.stdout.splitlines()
    assert len(table) == 52 and shown[0].split()[:2] == ["exit", "width"]
    rows = [tuple(map(int, line.split()[:2])) for line in shown[1 : 1 + len(front)]]
    assert rows == [(member.subnet.exit, member.subnet.width) for member in front]
    assert f"These {len(front)} of 52 members are more accurate" in result.stdout
    assert f"All of them:  telescopic catalogue {run}" in result.stdout
    every = invoke("catalogue", run).stdout.splitlines()
    better = tuple(replace(m, score=(m.subnet.width or 0) / 20) for m in table)
    _show(replace(table, members=better), Path(run))  # the narrowest that costs least, and one for each wider one
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:14]] == [["-1", str(width)] for width in range(1, 14)]
    assert lines[15].startswith("These 13 of 52 members")
    assert len(every) == 53 and max(map(len, every)) <= 80 and not any("…" in line for line in every)


def test_without_validation_images_there_is_no_front(tmp_path: Path) -> None:
    small = ("--groups", "26", "--channels", "1", "--blocks", "1", "--epochs", "1", "--validation", "0")
    words = ("train", "doubly-nested", "--data", images_32(tmp_path, 1), "--out", str(tmp_path / "run"), *small)
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1 + 52 + 2 and "more accurate" not in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--way", "most"), "way is one of uniform, depth-only, depth-width, macs, "),
        (("--way", "alone"), "not 'alone'"),
        (("--network", "wide"), "network is one of aligned, paper, not 'wide'"),
        (("--channels", "1;2"), "--channels takes whole numbers such as 1,2,4, not '1;2'"),
        (("--channels", "2,1"), "groups of (2, 1) channels cannot be padded to fewer"),
    ],
)
def test_doubly_nested_refuses_in_one_line(words, message, tmp_path, monkeypatch, capsys) -> None:
    own = ("--data", images_32(tmp_path, 3), "--out", str(tmp_path / "run"))
    error = fails(monkeypatch, capsys, "train", "doubly-nested", *own, *words)
    assert message in error and error.rpartition("error: ")[2].count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_extract_with_folded_batchnorm(convolutional: tuple[Path, str], tmp_path: Path) -> None:
    path = tmp_path / "folded.safetensors"
    result = invoke("extract", str(convolutional[0]), "--subnet", "entry=2", "--fold-bn", "--to", str(path))
    assert result.exit_code == 0, result.output
    member, folded = tl.extract(Source.open(str(convolutional[0])).network(), tl.Subnet(entry=2)), tl.load(path)
    kinds = {type(layer) for layer in folded.modules()}
    assert torch.nn.BatchNorm2d not in kinds and torch.nn.Identity not in kinds
    images = tl.data.load(convolutional[0].parent / "3.npz").test.images[:64]
    x = tl.Bundle.open(path).preprocess(images)  # type: ignore[misc]
    torch.testing.assert_close(folded(x), member(x), rtol=1e-4, atol=1e-5)
    apart = json.loads((tmp_path / "folded.safetensors.json").read_text())["fold_bn"]["max_difference"]
    assert apart == (folded(x) - member(x)).abs().max().item() and apart < 1e-4
    assert f"gives the network's logits to within {apart:.1e} on 12 test examples" in result.output


def test_errors_are_one_line_and_name_the_remedy(trained, tmp_path, monkeypatch, capsys) -> None:
    assert "nearest is entry=2" in fails(monkeypatch, capsys, "choose", str(trained), "--max-macs", "5")
    assert "700k" in fails(monkeypatch, capsys, "choose", str(trained), "--max-macs", "many")
    assert "nearest is" in fails(
        monkeypatch, capsys, "extract", str(trained), "--subnet", "entry=7", "--to", str(tmp_path / "a.onnx")
    )
    error = fails(monkeypatch, capsys, "extract", str(trained), "--subnet", "entry=1", "--to", str(tmp_path / "a.txt"))
    assert ".onnx" in error and not list(tmp_path.iterdir())
    both = ("--subnet", "entry=1", "--max-macs", "5k")
    assert "not both" in fails(monkeypatch, capsys, "extract", str(trained), *both, "--to", str(tmp_path / "a.onnx"))
    assert "nsn-mnist" in fails(monkeypatch, capsys, "choose", "no-such-family")
    assert "is not the folder of a run" in fails(monkeypatch, capsys, "catalogue", str(tmp_path))
    own = str(trained.parent / "own.npz")
    again = ("train", "nsn", "--data", own, "--out", str(trained), "--epochs", "60")
    before = (trained / "last.safetensors").read_bytes()
    assert "already holds a run" in fails(monkeypatch, capsys, *again)
    assert "seed" in fails(monkeypatch, capsys, *again, "--resume", "--seed", "1")
    assert (trained / "last.safetensors").read_bytes() == before
    assert "precision" in fails(monkeypatch, capsys, "train", "nsn", "--precision", "fp8")
    assert "did you mean mnist" in fails(monkeypatch, capsys, "data", "get", "mnst")
    assert "no experiment 'model9'; there are model0-1-2" in (
        fails(monkeypatch, capsys, "reproduce", "nsn", "--only", "model9")
    )
    assert "alone-7-stem" in fails(monkeypatch, capsys, "reproduce", "cnsn", "--only", "alone-9")
    assert "paper, short" in fails(monkeypatch, capsys, "reproduce", "cnsn", "--recipe", "long")
    own = ("reproduce", "doubly-nested", "--out", str(tmp_path / "none"), "--data", own)
    assert "has no experiment 'loud'; there are uniform" in fails(monkeypatch, capsys, *own, "--only", "loud")
    assert "16 widths" in fails(monkeypatch, capsys, *own, "--groups", "16", "--only", "alone", "--only", "dense-w17")
    assert "run that first" in fails(monkeypatch, capsys, *own, "--only", "sliced-w4")


def test_an_unfinished_run_says_how_to_finish_it(tmp_path, monkeypatch, capsys) -> None:
    data = tl.data.load("digits")

    def stop(history: tl.History) -> None:
        if len(history) == 2:
            raise KeyboardInterrupt

    net = tl.networks.mlp(64, [64], 10)
    with pytest.raises(KeyboardInterrupt):
        tl.fit(net, data, tl.Recipe(epochs=3), out=tmp_path, progress=False, checkpoint_seconds=0, on_epoch=stop)
    error = fails(monkeypatch, capsys, "catalogue", str(tmp_path))
    assert "stopped after 2 of 3 epochs" in error and "--resume" in error


def test_reproduce_trains_shows_and_does_not_train_again(tmp_path: Path) -> None:
    words = ("reproduce", "nsn", "--out", str(tmp_path), "--data", "digits", "--epochs", "2", "--only", "ref-model0")
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    assert "0.9241" in result.output and "(epoch 2)" in result.output
    before = (tmp_path / "ref-model0" / "last.safetensors").stat().st_mtime_ns
    shown = invoke(*words, "--show").output
    assert shown == invoke(*words).output and result.output.endswith(shown)
    assert (tmp_path / "ref-model0" / "last.safetensors").stat().st_mtime_ns == before


def test_reproduce_cnsn_trains_and_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tl.data.load(images_32(tmp_path, 3))
    monkeypatch.setattr("telescopic.papers.reproduce.load", lambda *_, **__: own)
    words = ("reproduce", "cnsn", "--out", str(tmp_path / "out"), "--scale", "0.0625", "--recipe", "short")
    only = ("--epochs", "1", "--only", "joint", "--only", "alone-7")
    result = invoke(*words, *only)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"joint", "alone-7"}
    assert "0.9267" in result.output and "scale 0.0625, short recipe, 1 epochs" in " ".join(result.output.split())
    assert result.output.endswith(invoke(*words, "--show").output)
    assert invoke(*words, "--epochs", "1", "--only", "alone-7", "--seed", "1").exit_code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"joint", "alone-7", "alone-7-seed1"}
    assert "Seeds: joint 1, alone-7 2" in " ".join(invoke(*words, "--show").output.split())


def test_reproduce_doubly_nested_trains_and_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ("reproduce", "doubly-nested", "--out", str(tmp_path / "out"), "--data", images_32(tmp_path, 3))
    words += ("--groups", "2", "--channels", "1,2", "--blocks", "1", "--epochs", "1")
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    ways = {"uniform", tl.papers.doubly_nested.BEST_WAY, "depth-only", "alone", "dense"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == ways | {
        "dense-w1",
        "sliced-w1",
    }
    assert all(title in result.output for title in ("Ways to train all members", "Figure 4", "Figure 5"))
    assert result.output.endswith(invoke(*words, "--show").output)
    assert max(map(len, invoke(*words, "--show").output.splitlines())) <= 80


def test_a_shipped_family_works_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TELESCOPIC_DATA", raising=False)
    result = invoke("choose", "nsn-mnist", "--max-macs", "700k")
    assert result.exit_code == 0 and result.output.startswith("entry=1: 622 k MACs, 623 k parameters")
    assert tl.load("nsn-mnist", tl.Subnet(entry=2))(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    result = invoke("extract", "nsn-mnist", "--max-macs", "700k", "--to", "small.onnx")
    assert result.exit_code == 0 and "because mnist is not on this machine" in result.output


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["reproduce", "--help"]])
def test_help_answers_without_torch(words: list[str]) -> None:
    code = (
        f"import sys; from telescopic import cli; sys.argv[1:] = {words}\n"
        "try: cli.main()\n"
        "finally: print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and result.stdout.rstrip().endswith("False"), result.stderr


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of `telescopic train shrinknet`, and what it printed."""
    out = tmp_path_factory.mktemp("shrink") / "run"
    words = ("--data", "digits", "--out", str(out), "--penalty", "0.2", "--network", "mlp", "--widths", "30,20,10")
    result = invoke("train", "shrinknet", *words, "--epochs", "40", "--collect", "20")
    assert result.exit_code == 0, result.output
    return out, result.output


def test_train_shrinknet_leaves_an_ordinary_network(shrunk: tuple[Path, str]) -> None:
    out, printed = shrunk
    history = Source.open(str(out)).history()
    assert history is not None and len(history) == 40
    left = history[-1].widths
    assert sum(left) < 55
    for name, width in zip(history.filters, left, strict=True):
        assert f"{name} {width}" in printed
    assert f"channels {' '.join(map(str, left))} " in printed and "as fast as the first epoch" in printed
    assert "removing channels took" in printed
    net = Source.open(str(out)).network()
    linears = [part for part in net.modules() if isinstance(part, torch.nn.Linear)]
    assert tuple(part.out_features for part in linears) == (*left, 10), "as it was after the last epoch"
    assert not any(type(part).__module__.startswith("telescopic") for part in tl.extract(net).modules())
    bundle = tl.Bundle.open(out / "model.safetensors")
    assert bundle.provenance["epoch"] == 40 and bundle.provenance["recipe"]["shrink"]["collect"] == 20
    assert bundle.catalogue is not None and bundle.catalogue[0].test_accuracy == pytest.approx(history[-1].test[0])
    assert Source.open(str(out)).facts()["penalty"] == "0.2"
    header, *rows = (out / "log.csv").read_text().splitlines()
    assert header.endswith("compacting," + ",".join(f"{name}:channels" for name in history.filters))
    assert rows[-1].endswith(",".join(map(str, left)))


def test_a_report_shows_how_the_widths_fell(shrunk: tuple[Path, str], tmp_path: Path) -> None:
    result = invoke("report", str(shrunk[0]), "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.html").read_text()
    assert "channels left in each layer" in page and "stages.2.0" in page and "training loss" in page
    assert {path.name for path in (tmp_path / "plots").glob("training-widths.*")} == {
        "training-widths.svg",
        "training-widths.png",
    }
    assert "Dashed: epoch" not in page, "no epoch was chosen: the last one was kept"


def test_train_shrinknet_goes_on(shrunk: tuple[Path, str]) -> None:
    words = ("--data", "digits", "--out", str(shrunk[0]), "--penalty", "0.2", "--network", "mlp")
    again = invoke(
        "train", "shrinknet", *words, "--widths", "30,20,10", "--epochs", "40", "--collect", "20", "--resume"
    )
    assert again.exit_code == 0 and again.stdout in shrunk[1]
    other = invoke("train", "shrinknet", *words, "--widths", "30,20,10", "--epochs", "40", "--resume")
    assert "was trained with shrink = " in str(other.exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--by", "watts"), "by is one of channels, params, macs, not 'watts'"),
        (("--method", "magic"), "method is one of gradient, proximal, random, not 'magic'"),
        (("--collect", "often"), "collect is epoch, a number of steps or None, not 'often'"),
        (("--collect", "never", "--method", "random"), "say when, with collect="),
        (("--network", "vgg"), "network is one of one-layer, mlp, lenet, resnet20, not 'vgg'"),
        (("--widths", "many"), "--widths takes whole numbers such as 500,500,500, not 'many'"),
        (("--network", "lenet", "--data", "digits"), "images of 8 × 8 pixels are too small"),
    ],
)
def test_what_train_shrinknet_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert message in fails(monkeypatch, capsys, "train", "shrinknet", *words)


def test_search_shrinknet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    monkeypatch.setattr(tl.papers.shrinknets, "NETWORKS", {"mlp": ((), (12, 10, 8))})
    storage = ("--data", "digits", "--epochs", "1", "--storage", str(tmp_path / "x.journal"))
    nothing = invoke("search", "shrinknet", *storage, "--show")
    assert nothing.exit_code == 0 and "has no models of mlp on digits trained for 1 epochs in fp32" in nothing.output
    result = invoke("search", "shrinknet", *storage, "--models", "2", "--kind", "shrinknets", "--kind", "fixed-l2")
    assert result.exit_code == 0, result.output
    assert "digits-mlp-shrinknets-1: 2 of 2 models" in result.output and "fixed widths, L2" in result.output
    names = {"models-mlp-digits.csv", "figure2-mlp-digits.svg", "sizes-mlp-digits.svg"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    assert len((tmp_path / "models-mlp-digits.csv").read_text().splitlines()) == 5
    shown = invoke("search", "shrinknet", *storage, "--show")
    assert shown.stdout.strip() and shown.stdout in result.output
    coarse = invoke("search", "shrinknet", *storage, "--models", "1", "--precision", "bf16")
    assert coarse.exit_code == 0 and "digits-mlp-shrinknets-1-bf16: 1 of 1 models" in coarse.output
    assert "mlp on digits, 1 epochs, bf16" in coarse.stdout and "mlp on digits, 1 epochs, fp32" in shown.stdout
    error = fails(monkeypatch, capsys, "search", "shrinknet", *storage, "--kind", "big")
    assert "kind is one of fixed, fixed-l2, shrinknets, not 'big'" in error


def test_reproduce_shrinknets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    words = ("reproduce", "shrinknets", "--data", "digits", "--epochs", "2", "--out", str(tmp_path))
    result = invoke(*words, "--units", "20", "--only", "1e-2", "--only", "1e-2-masked")
    assert result.exit_code == 0, result.output
    assert "Figure 1: hidden units left on digits" in result.stdout and "1e-2-masked" in result.stdout
    for name in ("figure1-units-digits", "figure1-loss-digits"):
        assert str(tmp_path / f"{name}.svg") in result.stdout.replace("\n", "") and (tmp_path / f"{name}.png").exists()
    monkeypatch.setattr(tl.papers.shrinknets, "NETWORKS", {"mlp": ((), (12, 10, 8))})
    second = invoke(*words, "--figure", "2", "--models", "1", "--precision", "bf16")
    assert second.exit_code == 0, second.output
    assert all(name in second.stdout for name in ("fixed widths", "fixed widths, L2", "ShrinkNets"))
    assert (tmp_path / "figure2-mlp-digits.svg").exists() and (tmp_path / "search.db").exists()
    assert "digits-mlp-shrinknets-2-bf16: 1 of 1" in second.output
    assert "--figure is one of 1, 2, not '3'" in fails(monkeypatch, capsys, *words, "--figure", "3")
    assert "give λ such as 1e-3" in fails(monkeypatch, capsys, *words, "--only", "small")
