import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import telescopic as tl
from telescopic import cli
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


def invoke(*words: str):
    return CliRunner().invoke(cli.app, list(words))


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


def test_catalogue_shows_and_writes_every_member(trained: Path, tmp_path: Path) -> None:
    result = invoke("catalogue", str(trained), "--to", str(tmp_path / "table.csv"))
    assert result.exit_code == 0
    assert "1.40 k" in result.output  # MACs of entry=1
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 4


def test_latency_is_measured_once_and_kept(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("catalogue", str(trained), "--latency", "--threads", "1").exit_code == 0
    kept = Source.open(str(trained)).catalogue()
    assert kept.threads == 1 and all((member.latency_ms or 0) > 0 for member in kept)
    monkeypatch.setattr("telescopic.run.measure_latency", lambda *a, **k: pytest.fail("measured again"))
    assert invoke("catalogue", str(trained), "--latency", "--threads", "1").exit_code == 0


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
    assert "--only" in fails(monkeypatch, capsys, "reproduce", "nsn", "--only", "model9")


def test_an_unfinished_run_says_how_to_finish_it(tmp_path, monkeypatch, capsys) -> None:
    data = tl.data.load("digits")

    def stop(history: tl.History) -> None:
        if len(history) == 2:
            raise KeyboardInterrupt

    net = tl.networks.mlp(64, [64], 10)
    with pytest.raises(KeyboardInterrupt):
        tl.fit(net, data, tl.Recipe(epochs=3), out=tmp_path, progress=False, checkpoint_seconds=0, on_epoch=stop)
    error = fails(monkeypatch, capsys, "catalogue", str(tmp_path))
    assert "stopped after 2 epochs" in error and "--resume" in error


def test_reproduce_trains_shows_and_does_not_train_again(tmp_path: Path) -> None:
    words = ("reproduce", "nsn", "--out", str(tmp_path), "--data", "digits", "--epochs", "2", "--only", "ref-model0")
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    assert "0.9241" in result.output and "(epoch 2)" in result.output
    before = (tmp_path / "ref-model0" / "last.safetensors").stat().st_mtime_ns
    shown = invoke(*words, "--show").output
    assert shown == invoke(*words).output and result.output.endswith(shown)
    assert (tmp_path / "ref-model0" / "last.safetensors").stat().st_mtime_ns == before


def test_a_shipped_family_works_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = invoke("choose", "nsn-mnist", "--max-macs", "700k")
    assert result.exit_code == 0 and result.output.startswith("entry=1: 622 k MACs, 623 k parameters")
    assert tl.load("nsn-mnist", tl.Subnet(entry=2))(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    result = invoke("extract", "nsn-mnist", "--max-macs", "700k", "--to", "small.onnx")
    assert result.exit_code == 0 and "because mnist is not on this machine" in result.output


def test_help_answers_without_torch() -> None:
    code = (
        "import sys; from telescopic import cli; sys.argv[1:] = ['--help']\n"
        "try: cli.main()\n"
        "finally: print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and result.stdout.rstrip().endswith("False"), result.stderr
