import csv
import io
import json
import math
import sys
import types
from pathlib import Path

import pytest
from rich.console import Console

from telescopic.train import Epoch, History
from telescopic.train.progress import Live, Plain, reporter, tensorboard

NAN = float("nan")


def epoch(number: int, validation: tuple[float, ...], test: tuple[float, ...], **values: float) -> Epoch:
    numbers = {"seconds": 2.0, "images_per_s": 1234.5, "learning_rate": 0.1, "loss": 1.5 / number, **values}
    return Epoch(epoch=number, losses=(0.75 / number, 0.25), validation=validation, test=test, **numbers)


def history(full: int = 1) -> History:
    rows = [((0.5, 0.7), (0.6, 0.9)), ((0.9, 0.8), (0.95, 0.85)), ((0.4, 0.8), (0.2, 0.3))]
    return History(("entry=1", "entry=0"), full, [epoch(i + 1, *row) for i, row in enumerate(rows)])


def test_best_is_the_first_epoch_in_which_the_full_network_was_best() -> None:
    assert history().best().epoch == 2, "epoch 3 only equals it"
    assert history().best("test").epoch == 1
    assert history(full=0).best("test").epoch == 2, "another member is the full one"


def test_without_validation_images_the_last_epoch_is_best() -> None:
    empty = History(("full",), 0, [epoch(i, (NAN,), (0.9 - i / 10,)) for i in (1, 2, 3)])
    assert empty.best().epoch == 3
    assert empty.best("test").epoch == 1
    with pytest.raises(ValueError, match="no epoch has finished yet"):
        History(("full",), 0).best()


def test_a_history_is_a_sequence_and_survives_json() -> None:
    seen = history()
    again = History.from_dict(json.loads(json.dumps(seen.to_dict())))
    assert list(again) == list(seen) and len(again) == 3
    assert (again.labels, again.full) == (("entry=1", "entry=0"), 1)
    assert again[-1] == seen.epochs[2] and seen[1:] == seen.epochs[1:]


def test_csv_holds_every_number(tmp_path: Path) -> None:
    history().to_csv(tmp_path / "log.csv")
    lines = list(csv.reader((tmp_path / "log.csv").read_text().splitlines()))
    assert lines[0] == ["epoch", "seconds", "images_per_s", "learning_rate", "loss"] + [
        f"entry={m}:{kind}" for m in (1, 0) for kind in ("train_loss", "validation", "test")
    ]
    assert lines[2] == ["2", "2", "1234.5", "0.1", "0.75", "0.375", "0.9", "0.95", "0.25", "0.8", "0.85"]
    assert len(lines) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"], "no temporary file stays"


def picture(view: Live) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    console.print(view)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_live_view() -> None:
    seen = history()
    view = Live(seen, epochs=10, num_batches=4)
    text = picture(view)
    assert "epoch 4 of 10" in text and "loss 0.5000" in text and "1,234 examples/s" in text and "best: epoch 2" in text
    assert "0:14 left" in text, "7 epochs of 2 seconds"
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip().startswith("entry=")}
    assert rows == {
        "entry=1": ["0.2500", "40.00", "%", "20.00", "%"],
        "entry=0": ["0.2500", "80.00", "%", "30.00", "%"],
    }
    view.batch(2)
    assert picture(view) != text, "the bar moves within an epoch"
    view.epoch()
    assert picture(view) == text


def test_live_view_before_the_first_epoch_and_after_the_last() -> None:
    assert "epoch 1 of 3" in picture(Live(History(("full",), 0), epochs=3, num_batches=4))
    assert "epoch 3 of 3" in picture(Live(history(), epochs=3, num_batches=4))


def test_live_view_of_many_members_shows_the_first_and_the_largest() -> None:
    numbers = tuple(m / 100 for m in range(30))
    one = Epoch(1, 1.0, 1.0, 0.1, 1.0, numbers, numbers, numbers)
    text = picture(Live(History([f"exit={m}" for m in range(30)], 29, [one]), epochs=2, num_batches=1))
    shown = [int(line.split()[0].removeprefix("exit=")) for line in text.splitlines() if "exit=" in line]
    assert shown == [0, 1, 2, 3, *range(22, 30)]


def test_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 5.0, 21.0, 21.0, 22.0])
    monkeypatch.setattr("telescopic.train.progress.time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    seen = history()
    plain = Plain(growing := History(seen.labels, 1), epochs=4)
    for one in [*seen, epoch(4, (0.1, 0.1), (0.1, 0.125), seconds=4000.0)]:
        growing.epochs.append(one)
        plain.epoch()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/4", "3/4", "4/4"], "epoch 2 came 5 s after a line"
    assert lines[0] == "epoch 1/4  loss 1.5000  test: entry=1 60.00 %  entry=0 90.00 %  1,234 examples/s  0:06 left"


def test_time_left_in_hours(capsys: pytest.CaptureFixture[str]) -> None:
    Plain(History(("a", "b"), 0, [epoch(1, (1, 1), (1, 1), seconds=60.0)]), epochs=63).epoch()
    assert capsys.readouterr().err.endswith("1:02:00 left\n")


def test_plain_lines_of_many_members_say_how_many_more(capsys: pytest.CaptureFixture[str]) -> None:
    many = (0.5,) * 11
    Plain(History([f"m{i}" for i in range(11)], 0, [Epoch(1, 1.0, 1.0, 0.1, 1.0, many, many, many)]), 1).epoch()
    err = capsys.readouterr().err
    assert "m7 50.00 %  and 3 more  1 examples/s" in err and "m8" not in err
    Plain(History([f"m{i}" for i in range(11)], 10, [Epoch(1, 1.0, 1.0, 0.1, 1.0, many, many, many)]), 1).epoch()
    err = capsys.readouterr().err
    assert "m6 50.00 %  m10 50.00 %  and 3 more" in err and "m7" not in err, "the full one is among them"


def test_a_history_is_readable() -> None:
    lines = repr(history()).splitlines()
    assert lines[0] == "3 epochs, loss 0.5000; best: epoch 2; members after epoch 3:"
    assert lines[1].split() == ["member", "training", "loss", "validation", "test"]
    assert lines[3].split() == ["entry=0", "0.2500", "80.00", "%", "30.00", "%"] and len(lines) == 4
    assert "<th>training loss</th>" in history()._repr_html_() and "<td>80.00 %</td>" in history()._repr_html_()
    empty = History(("full",), 0)
    assert repr(empty) == empty._repr_html_() == "no epoch of 1 members"


def test_scalars_for_loggers() -> None:
    found = history().scalars()
    assert list(found)[:3] == ["loss", "learning_rate", "images_per_s"] and len(found) == 9
    assert (found["validation/entry=0"], found["losses/entry=0"], found["loss"]) == (0.8, 0.25, 0.5)
    assert shrinking().scalars()["channels/layer1"] == 7


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_is_shown_where(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = history()
    with reporter(seen, 3, 1, None) as plain:
        assert type(plain) is Plain
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    with reporter(seen, 3, 1, False) as silent:
        silent.batch(1)
        silent.epoch()
    assert screen.getvalue() == ""
    with reporter(seen, 3, 1, True) as live:
        assert type(live) is Live
    assert "entry=1" in screen.getvalue() and "best: epoch 2" in screen.getvalue()


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tensorboard(tmp_path / "none")(history())
    assert not list(tmp_path.iterdir()), "nothing happens where TensorBoard is not installed"
    seen: dict[str, tuple[float, int]] = {}

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "board")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            seen[name] = value, step

        def flush(self) -> None:
            seen["flushed"] = 1, 0

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "tensorboard" or None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    tensorboard(tmp_path / "board")(history())
    assert seen["loss"] == (0.5, 3) and seen["validation/entry=0"] == (0.8, 3) and seen["test/entry=1"] == (0.2, 3)
    assert math.isclose(seen["losses/entry=1"][0], 0.25) and len(seen) == 3 + 6 + 1


def shrinking(layers: int = 2) -> History:
    """Of a network that learns its widths, and becomes twice as fast."""
    rows = [
        epoch(
            i, (0.5, 0.5), (0.5, 0.5), images_per_s=500.0 * i, widths=(2000 // i, *[7] * (layers - 1)), compacting=0.25
        )  # type: ignore[arg-type]
        for i in (1, 2)
    ]
    return History(("a", "b"), 1, rows, [f"layer{i}" for i in range(layers)])


def test_widths_are_shown_live_and_in_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    text = picture(Live(shrinking(), epochs=3, num_batches=4))
    assert "channels 1,000 7   2.0× as fast as the first epoch" in text
    Plain(shrinking(), epochs=2).epoch()
    assert capsys.readouterr().err.endswith("0:00 left  channels 1,000 7   2.0× as fast as the first epoch\n")
    Plain(shrinking(13), epochs=2).epoch()
    assert "channels 1,000 7 7 7 7 7 … 7 7 7 7 7   2.0×" in capsys.readouterr().err


def test_widths_survive_json_and_stand_in_the_log(tmp_path: Path) -> None:
    seen = shrinking()
    again = History.from_dict(json.loads(json.dumps(seen.to_dict())))
    assert list(again) == list(seen) and again.filters == ("layer0", "layer1")
    older = {key: value for key, value in history().to_dict().items() if key != "filters"}
    for row in older["epochs"]:
        del row["widths"], row["compacting"]
    assert list(History.from_dict(older)) == list(history()), "written before there were any"
    seen.to_csv(tmp_path / "log.csv")
    lines = list(csv.reader((tmp_path / "log.csv").read_text().splitlines()))
    assert lines[0][-3:] == ["compacting", "layer0:channels", "layer1:channels"] and lines[2][-3:] == [
        "0.25",
        "1000",
        "7",
    ]
