"""Runs of a user's own networks: what `fit` leaves in a folder, who may write there, what the commands make of it."""

import errno
import json
import math
import os
import re
import resource
import runpy
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import telescopic as tl
from telescopic import architecture, cli
from telescopic.data import DataError, Dataset, Split
from telescopic.files import HeldError, WriteError, held
from telescopic.run import Source
from telescopic.shrink.family import add_filters_to_family
from telescopic.train import fit
from telescopic.train.keeper import BEST, LAST
from telescopic.train.result import CATALOGUE, MODEL

RECIPE = tl.Recipe(epochs=4, batch_size=20, learning_rate=0.05)
SHAPE = (1, 6, 6)
PROGRAM = """
import torch
from torch import nn
import telescopic as tl

class Scaled(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.features = features
        self.inner = nn.Linear(features, features)

    def forward(self, x):
        return x + self.inner(x).relu()

tl.register_layer(Scaled)

if __name__ == "__main__":
    generator = torch.Generator().manual_seed(0)
    split = tl.data.Split(torch.randint(256, (60, 1, 6, 6), generator=generator).byte(), torch.arange(60) % 3)
    data = tl.data.Dataset("noise", split, split, split, ("top", "middle", "bottom"), "made")
    first = nn.Sequential(nn.Flatten(), nn.Linear(36, 8))
    net = tl.nest([first, Scaled(8), Scaled(8), nn.Linear(8, 3)], input_shape=(1, 6, 6), entries=[1, 2], exits=[1])
    tl.fit(net, data, tl.Recipe(epochs=1), out="run", progress=False)
"""


class Scaled(nn.Module):
    """A block of the user's own."""

    def __init__(self, features: int, by: float = 0.5) -> None:
        super().__init__()
        self.features, self.by = features, by
        self.inner = nn.Linear(features, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.by * self.inner(x).relu()


def stripes(num: int = 120, validation: int = 30) -> Dataset:
    """One of three rows is white; that row is the class. Made of tensors, so its name leads nowhere."""
    images, labels = pictures(num + 60)
    split = Split(torch.from_numpy(images)[:, None], torch.from_numpy(labels))
    ends = (num - validation, num, num + 60)
    parts = [Split(split.images[a:b], split.labels[a:b]) for a, b in zip((0, *ends), ends, strict=False)]
    return Dataset("stripes", *parts, ("top", "middle", "bottom"), "made")


def pictures(num: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, num)
    images = rng.integers(0, 100, (num, 6, 6)).astype(np.uint8)
    images[np.arange(num), 2 * labels] = 255
    return images, labels


def blocks() -> tl.Nested:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Flatten(), nn.Linear(36, 8))
    return tl.nest([first, Scaled(8), Scaled(8), nn.Linear(8, 3)], input_shape=SHAPE, entries=[1, 2], exits=[1])


def layers() -> tl.Nested:
    torch.manual_seed(0)
    return tl.networks.mlp(36, (8, 8), 3)


def run(net: tl.Nested, out: Path, **options: Any) -> tl.History:
    options = {"data": stripes(), "recipe": RECIPE, "progress": False, "checkpoint_seconds": 0.0} | options
    return fit(net, options.pop("data"), options.pop("recipe"), out=out, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def registered() -> Iterator[None]:
    """Scaled is known for the time of a test."""
    tl.register_layer(Scaled)
    yield
    del architecture._LAYERS["Scaled"]


def invoke(*words: str) -> str:
    result = CliRunner().invoke(cli.app, list(words))
    if result.exit_code:
        raise result.exception or AssertionError(result.output)
    return result.output


# What a run leaves


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_catalogue_is_that_of_the_weights_kept(tmp_path: Path, keep: Any) -> None:
    net = layers()
    history = run(net, tmp_path, keep=keep, recipe=replace(RECIPE, epochs=6))
    bundle, measured = tl.Bundle.open(tmp_path / MODEL), tl.measure(net, stripes())
    assert bundle.catalogue == tl.Catalogue.from_json(tmp_path / CATALOGUE) == measured
    kept = history.best() if keep == "best" else history[-1]
    assert [member.accuracy for member in measured] == list(kept.validation)
    loaded = tl.load(tmp_path / MODEL).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in net.state_dict().items())
    facts = bundle.provenance
    assert (facts["epoch"], facts["epochs"], facts["seed"]) == (kept.epoch, 6, 0)
    assert (facts["data"], facts["validation_images"]) == ("stripes", 30)
    assert bundle.classes == ("top", "middle", "bottom") and bundle.input_shape == SHAPE
    assert bundle.preprocess == RECIPE.preprocess


def test_without_validation_images_there_is_no_accuracy_on_them(tmp_path: Path) -> None:
    history = run(layers(), tmp_path, data=stripes(validation=0))
    catalogue = tl.Catalogue.from_json(tmp_path / CATALOGUE)
    assert all(member.accuracy is None for member in catalogue) and math.isnan(history[-1].validation[0])
    assert [member.test_accuracy for member in catalogue] == list(history[-1].test)


def test_what_learned_its_widths_is_kept_as_an_ordinary_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = add_filters_to_family(layers(), torch.rand(2, *SHAPE))
    recipe = replace(RECIPE, optimizer="adam", learning_rate=0.02, shrink=tl.Shrink(penalty=0.3))
    run(net, tmp_path, keep="last", recipe=recipe)
    plain = tl.load(tmp_path / MODEL)
    kinds = {type(part).__name__ for part in plain.modules()}
    assert not kinds & {"Filter", "Filtered"} and isinstance(plain, tl.Nested)
    images = stripes().test.images / 255
    torch.testing.assert_close(plain(images), net(images))
    catalogue = tl.Catalogue.from_json(tmp_path / CATALOGUE)
    assert [member.macs for member in catalogue] == [member.macs for member in tl.measure(plain, stripes())]
    assert catalogue[-1].macs < tl.measure(layers(), stripes())[-1].macs


def test_a_run_that_goes_on_replaces_both_and_one_that_is_over_leaves_them(tmp_path: Path) -> None:
    run(layers(), tmp_path)
    Source.open(str(tmp_path)).timed()
    timed = (tmp_path / CATALOGUE).read_text()
    assert tl.Catalogue.from_json(tmp_path / CATALOGUE)[0].latency_ms is not None
    run(layers(), tmp_path, resume=True)
    assert (tmp_path / CATALOGUE).read_text() == timed
    (tmp_path / MODEL).unlink()
    run(layers(), tmp_path, resume=True)
    assert tl.Bundle.open(tmp_path / MODEL).provenance["epochs"] == 4
    run(layers(), tmp_path, resume=True, keep="last", recipe=replace(RECIPE, epochs=5))
    assert tl.Bundle.open(tmp_path / MODEL).provenance["epoch"] == 5
    assert tl.Catalogue.from_json(tmp_path / CATALOGUE)[0].latency_ms is None, "of other weights"


def test_a_killed_end_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the last checkpoint and the bundle; the message says what is missing."""
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("telescopic.train.result.save", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        run(layers(), tmp_path)
    with pytest.raises(tl.BundleError, match=f"has trained all of its 4 epochs, but has no {MODEL} yet: .*--resume"):
        Source.open(str(tmp_path))
    run(layers(), tmp_path, resume=True, on_epoch=lambda history: pytest.fail("trained"))
    assert len(Source.open(str(tmp_path)).catalogue()) == 3


def test_a_block_that_no_file_can_hold_is_told_before_training_and_mended_after(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    told = []

    def look(history: tl.History) -> None:
        told.append(len(caught))

    with pytest.warns(UserWarning, match=r"Scaled, .*register_layer\(Scaled\).*resume=True") as caught:
        run(blocks(), tmp_path, on_epoch=look)
    assert told == [1] * 4
    assert "entry" in invoke("catalogue", str(tmp_path)) and "member" in invoke("choose", str(tmp_path))
    with pytest.raises(tl.BundleError, match="saved without architecture"):
        invoke("report", str(tmp_path))
    request.getfixturevalue("registered")
    run(blocks(), tmp_path, resume=True, on_epoch=lambda history: pytest.fail("trained"))
    assert isinstance(tl.load(tmp_path / MODEL), tl.Nested)


def test_a_network_that_cannot_be_priced_is_trained_all_the_same(tmp_path: Path) -> None:
    class Reading(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (1 if x.sum().item() > 0 else 2)

    net = tl.Nested([nn.Sequential(nn.Flatten(), nn.Linear(36, 8)), Reading()], exits={1: nn.Linear(8, 3)})
    with pytest.warns(UserWarning, match=f"will have no {MODEL} .* because its forward pass reads values"):
        history = run(net, tmp_path)
    assert len(history) == 4 and names(tmp_path) == [BEST, LAST, "log.csv"]


# Whose folder it is


def test_a_second_training_is_refused_and_told_who_has_the_folder(tmp_path: Path) -> None:
    seen = []

    def another(history: tl.History) -> None:
        net = layers()
        for resume in (False, True):
            with pytest.raises(HeldError, match=rf"{tmp_path} is being written by process {os.getpid()} on ") as caught:
                run(net, tmp_path, resume=resume, on_epoch=lambda history: pytest.fail("trained"))
            seen.append(str(caught.value))
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), layers().parameters(), strict=True))

    run(layers(), tmp_path, on_epoch=another)
    assert len(seen) == 8 and "since 20" in seen[0] and ".lock" not in names(tmp_path)


def test_the_folder_is_free_after_every_end(tmp_path: Path) -> None:
    def stop(history: tl.History) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(layers(), tmp_path, on_epoch=stop)
    with pytest.raises(ValueError, match="already holds a run"):
        run(layers(), tmp_path)
    with pytest.raises(tl.CheckpointError, match="seed"):
        run(layers(), tmp_path, resume=True, seed=1)
    assert len(run(layers(), tmp_path, resume=True)) == 4


def test_a_folder_that_another_run_has_made_anew_is_left_to_it(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def lose(history: tl.History) -> None:
        shutil.rmtree(out)
        out.mkdir()
        other = held(out / ".lock", out)
        other.__enter__()
        others.append(other)

    others: list[Any] = []
    with pytest.raises(WriteError, match=rf"cannot write {out / LAST}: its folder was removed .* another run has made"):
        run(layers(), out, on_epoch=lose)
    assert names(out) == [".lock"]
    others[0].__exit__(None, None, None)


def test_two_exports_to_one_file_do_not_mix_it_with_the_others_card(tmp_path: Path) -> None:
    path, member = tmp_path / "member.safetensors", tl.extract(layers().eval())
    with held(tmp_path / ".member.safetensors.lock", path):
        with pytest.raises(tl.ExportError, match=rf"member.safetensors is being written by process {os.getpid()} on"):
            tl.export(member, path, torch.rand(2, 36))
        assert not path.exists()
    tl.export(member, path, torch.rand(2, 36))
    assert names(tmp_path) == ["member.safetensors", "member.safetensors.json"]


# What cannot be written


def test_a_full_disk_ends_a_run_with_one_error_and_its_last_checkpoint_whole(tmp_path: Path) -> None:
    """As a limit on the size of files, from the second epoch on: the log is shorter."""
    net, whole = layers(), layers()
    run(whole, tmp_path / "whole", keep="last")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(history: tl.History) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))

    try:
        with pytest.raises(WriteError) as caught:
            run(net, tmp_path / "run", keep="last", on_epoch=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    last = tmp_path / "run" / LAST
    assert str(caught.value).startswith(
        f"cannot write {last}: {os.strerror(errno.EFBIG)}; {last} is a whole checkpoint"
    )
    assert "resume=True (--resume)" in str(caught.value) and caught.value.errno == errno.EFBIG
    assert not [name for name in names(tmp_path / "run") if name.startswith(".")]
    net = layers()
    run(net, tmp_path / "run", keep="last", resume=True)
    for name in (LAST, BEST, MODEL):
        one, other = load_file(tmp_path / "run" / name), load_file(tmp_path / "whole" / name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(WriteError) as caught:
        run(layers(), out, on_epoch=lambda history: shutil.rmtree(out))
    assert str(caught.value) == f"cannot write {out / LAST}: its folder is gone"


def test_what_is_no_place_for_a_run_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    long = tmp_path / ("n" * 300)
    for out, why in (
        (tmp_path / "plain", "a file has its name"),
        (tmp_path / "plain" / "run", os.strerror(errno.ENOTDIR)),
        (long, os.strerror(errno.ENAMETOOLONG)),
    ):
        with pytest.raises(WriteError) as caught:
            run(layers(), out, on_epoch=lambda history: pytest.fail("trained"))
        assert str(caught.value) == f"cannot write {out}: {why}"


@pytest.mark.skipif(sys.platform != "linux", reason="there it has a folder that not even root can write")
def test_a_folder_that_may_not_be_written_is_said() -> None:
    with pytest.raises(WriteError, match="cannot write /sys/telescopic: "):
        run(layers(), Path("/sys/telescopic"), on_epoch=lambda history: pytest.fail("trained"))
    with pytest.raises(WriteError, match="cannot write /sys: "):
        run(layers(), Path("/sys"), on_epoch=lambda history: pytest.fail("trained"))


# What the commands make of it


def test_from_a_file_of_ones_own_to_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block in one's own program, trained by it; then the command line alone, to which the block is unknown."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynet.py").write_text(PROGRAM)
    runpy.run_path("mynet.py", run_name="__main__")
    architecture._LAYERS.pop("Scaled")
    assert invoke("catalogue", "run", "--to", "table.csv").count("%") >= 2
    assert "Take it out" in invoke("choose", "run", "--max-macs", "1k")
    for command in (
        ("report", "run"),
        ("extract", "run", "--subnet", "entry=2", "--to", "member.onnx"),
        ("pack", "run", "--to", "p.telescope"),
        ("catalogue", "run", "--latency"),
    ):
        with pytest.raises(ValueError, match=r"'Scaled', a class unknown here: .*--import FILE\.py"):
            invoke(*command)
    assert names(tmp_path) == ["mynet.py", "run", "table.csv"]
    monkeypatch.setattr(sys, "path", [*sys.path])
    try:
        assert invoke("report", "run", "--import", "mynet.py") == f"{Path('run') / 'report.html'}\n"
        assert "ms" in invoke("catalogue", "run", "--latency", "--import", "mynet")
        for suffix in ("onnx", "pt2", "safetensors"):
            told = invoke("extract", "run", "--max-macs", "500", "--to", f"member.{suffix}", "--import", "mynet.py")
            assert "64 random images, because noise is not on this machine" in told
        assert "members" in invoke("pack", "run", "--members", "all", "--to", "p.telescope", "--import", "mynet.py")
        net = Source.open("run").network()
    finally:
        architecture._LAYERS.pop("Scaled", None)
        sys.modules.pop("mynet", None)
    with pytest.raises(DataError, match=r"run learned 'noise': unknown data set .*; or name the data with --data"):
        invoke("anytime", "run", "--deadline-ms", "5")
    command = [sys.executable, "-m", "telescopic", "serve", "p.telescope", "--port", "0", "--slo-ms", "20000"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            address = re.search(r"http://\S+:\d+", server.stdout.readline())
            assert address is not None
            x = stripes().test.images[:1] / 255
            body = json.dumps({"inputs": x.tolist()}).encode()
            asked = urllib.request.Request(
                f"{address[0]}/predict", data=body, headers={"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(asked, timeout=60) as answered:
                answer = json.load(answered)
        finally:
            server.terminate()
    wanted = net(x, tl.Subnet.parse(answer["member"]["subnet"])).softmax(1)
    torch.testing.assert_close(torch.tensor(answer["probabilities"]), wanted, rtol=0, atol=1e-5)
    assert answer["predictions"][0]["class"] == ("top", "middle", "bottom")[int(wanted.argmax())]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.py", None, "--import none.py: there is no such file"),
        ("no.such.module", None, "--import no.such.module: ModuleNotFoundError: No module named 'no'"),
        ("broken.py", "x = 1\nx.y", r"--import broken.py: AttributeError: 'int' object .*broken.py, line 2"),
        ("json.py", "", "--import json.py: another module is called json"),
    ],
)
def test_code_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        invoke("choose", "nsn-mnist", "--import", name)


def test_a_file_that_imports_another_one_is_as_python_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both may be named, in any order: each runs once."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "once_a.py").write_text("import once_b\nonce_b.runs.append('a')")
    (tmp_path / "once_b.py").write_text("runs = []")
    files = [word for name in "aba" for word in ("--import", str(tmp_path / f"once_{name}.py"))]
    invoke("choose", "nsn-mnist", *files)
    assert sys.modules.pop("once_b").runs == ["a"]
    sys.modules.pop("once_a")


def test_data_of_ones_own_are_found_again_or_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = pictures(120)
    np.savez("own.npz", images=images, labels=labels)
    for number, (divided, seed) in enumerate(((3, 3), (0, 3), (0, 0))):
        data = tl.data.load("own.npz", validation=20, seed=divided)
        run(layers(), Path(f"run{number}"), data=data, seed=seed)
        again = Source.open(f"run{number}").data()
        assert torch.equal(again.train.images, data.train.images) and torch.equal(again.test.images, data.test.images)
        assert torch.equal(again.validation.images, data.validation.images)
    run(layers(), Path("run"), data=tl.data.load("own.npz", validation=20, seed=4), seed=3)
    with pytest.raises(DataError, match=r"other images now, or they were divided in another way; or name .* --data"):
        Source.open("run").data()
    images[0, 0, 0] ^= 1
    np.savez("own.npz", images=images, labels=labels)
    with pytest.raises(DataError, match=r"run0 learned 'own.npz': the file own.npz has other images now"):
        Source.open("run0").data()
    assert len(Source.open("run").data("own.npz").train) == 76
    Path("own.npz").unlink()
    with pytest.raises(DataError, match=r"run learned 'own.npz': own.npz: no such file .* --data"):
        Source.open("run").data()


def test_the_command_makes_a_run_longer_with_its_own_milestones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NSN's are thirds of all epochs: 2 and 4 of 6. Of 9 they would be 3 and 6, which is another past."""
    monkeypatch.chdir(tmp_path)
    images, labels = pictures(60)
    np.savez("own.npz", images=images, labels=labels)
    words = ("train", "nsn", "--data", "own.npz", "--out", "run")
    invoke(*words, "--epochs", "6")
    result = CliRunner().invoke(cli.app, [*words, "--epochs", "9", "--resume"])
    assert result.exit_code == 0 and "goes on with the milestones it began with: (2, 4)" in result.output
    history = Source.open("run").history()
    assert history is not None and len(history) == 9
    rates = [history[0].learning_rate / epoch.learning_rate for epoch in history]
    assert rates == pytest.approx([1, 1, 3, 3, *[9] * 5])
