"""Photos of mixed sizes and modes, from a folder to a server: what the catalogue says is what HTTP answers."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import telescopic as tl
from telescopic.cli import app
from telescopic.data import DataError, dividing
from telescopic.images import decode
from telescopic.run import Source
from telescopic.serve import application

SIZE = 24
COLOURS = {"blue": (112, 115, 128), "green": (112, 126, 115), "red": (128, 112, 112)}


def photo(colour: tuple[int, int, int], number: int) -> tuple[bytes, str]:
    """A file of the colour with noise: of another size, mode and format from number to number."""
    random = np.random.default_rng(number)
    width, height = (int(n) for n in random.integers(30, 70, 2))
    pixels = np.clip(np.array(colour) + random.normal(0, 90, (height, width, 3)), 0, 255).astype(np.uint8)
    image, file = Image.fromarray(pixels), io.BytesIO()
    kind, options = ("PNG", {}) if number % 3 else ("JPEG", {"quality": 85})
    how = number % 6
    if how == 0:  # lies on its side, and says so
        options["exif"] = Image.Exif()
        options["exif"][0x112] = 6
    elif how == 1:  # half of it is transparent
        image.putalpha(Image.fromarray(np.tile(np.linspace(120, 255, width), (height, 1)).astype(np.uint8)))
    elif how == 2:
        image = image.quantize(32)
    elif how == 4:
        kind, options = "WEBP", {"lossless": True}
    image.save(file, kind, **options)
    return file.getvalue(), {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}[kind]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside colours a class of grey values in 16 bits."""
    folder = tmp_path_factory.mktemp("photos")
    for part, numbers in (("train", range(18)), ("val", range(100, 106)), ("test", range(200, 212))):
        for place, (label, colour) in enumerate(COLOURS.items()):
            (folder / part / label).mkdir(parents=True)
            for number in numbers:
                content, suffix = photo(colour, 1000 * place + number)
                (folder / part / label / f"{number}.{suffix}").write_bytes(content)
        (folder / part / "dark").mkdir()
        for number in numbers:
            grey = np.random.default_rng(number).integers(0, 2**14, (40, 30 + number % 20)).astype(np.uint16)
            Image.fromarray(grey).save(folder / part / "dark" / f"{number}.png")
    return folder


def network(classes: int) -> tl.Nested:
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in ((3, 8), (8, 16))]
    heads = {i: tl.layers.pooled_head((c, 1, 1), classes) for i, c in enumerate((8, 16))}
    return tl.Nested(stages, exits=heads)


def files(folder: Path) -> Iterator[tuple[Path, str]]:
    for file in sorted(folder.glob("*/*")):
        yield file, file.parent.name


def test_the_catalogue_says_what_http_answers(photos: Path, tmp_path: Path) -> None:
    """File by file: what every member answers over HTTP, counted, is its accuracy on the test photos."""
    data = tl.data.folder(photos, size=SIZE)
    assert data.image_shape == (3, SIZE, SIZE) and data.classes == ("blue", "dark", "green", "red")
    assert [len(split) for split in data.splits] == [72, 24, 48]
    recipe = tl.Recipe(epochs=4, batch_size=16, learning_rate=0.05, preprocess=tl.Preprocess.fit(data.train))
    run = tmp_path / "run"
    tl.fit(network(4), data, recipe, out=run, cpu=True, progress=False, precision="fp32")
    catalogue = Source.open(str(run)).catalogue()
    assert 0.3 < catalogue[1].test_score < 1, "neither chance nor all, so that a difference would show"
    engine = tl.Engine(tl.pack(run / "model.safetensors", tmp_path / "pack", members="all"), cache=False)
    right = {member.label: 0 for member in engine.members}
    with TestClient(application(engine, slo_ms=60_000), base_url="http://localhost") as client:
        for file, label in files(photos / "test"):
            kind = {"jpg": "jpeg"}.get(file.suffix[1:], file.suffix[1:])
            for member in engine.members:
                answer = client.post(
                    "/predict",
                    params={"subnet": str(member.subnet)},
                    content=file.read_bytes(),
                    headers={"content-type": f"image/{kind}"},
                ).json()
                assert answer["member"]["subnet"] == str(member.subnet)
                right[member.label] += answer["predictions"][0]["class"] == label
    assert {row.label: round(row.test_score * 48) for row in catalogue} == right
    again = Source.open(str(run)).data()
    assert torch.equal(again.test.inputs, data.test.inputs), "it is read again at the size that it was learned at"


def test_what_does_not_fit_into_memory_is_decoded_once_into_a_file(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tl.data.folder(photos / "train", size=SIZE)
    decoded: list[Any] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(dividing, "_free", lambda: 10_000)
    monkeypatch.setattr(dividing, "_CHUNK", 5)
    monkeypatch.setattr(tl.images, "decode", lambda *a, **o: (decoded.append(a[0]), decode(*a, **o))[1])
    made = tl.data.folder(photos / "train", size=SIZE, workers=3)
    assert (tmp_path / "telescopic" / "decoded").is_dir()
    for split, other in zip(made.splits, expected.splits, strict=True):
        assert torch.equal(split.inputs, other.inputs) and torch.equal(split.targets, other.targets)
    assert len(decoded) == len(set(decoded)) == 72
    assert tl.Preprocess.fit(made.train) == tl.Preprocess.fit(expected.train)
    recipe = tl.Recipe(epochs=2, batch_size=16, learning_rate=0.05)
    nets = [network(4), network(4)]
    for net, data in zip(nets, (made, expected), strict=True):
        tl.fit(net, data, recipe, cpu=True, progress=False, precision="fp32", keep="last")
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    assert len(decoded) == 72, "once, whatever the number of epochs"
    assert not [*tmp_path.rglob("*.*")], "the file has no name, and goes with the data"


def test_all_that_is_wrong_is_said_at_once(photos: Path, tmp_path: Path) -> None:
    good, _ = photo((200, 0, 0), 3)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(good)
    (tmp_path / "a" / "2.png").write_bytes(good[:100])
    (tmp_path / "a" / "3.jpg").write_bytes(b"no image")
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match=r"1 problem\n.*b: a class without images") as error:
        tl.data.folder(tmp_path, size=SIZE)
    (tmp_path / "b" / "1.png").write_bytes(good)
    with pytest.raises(DataError, match="2 problems") as error:
        tl.data.folder(tmp_path, size=SIZE)
    assert re.search(r"2\.png", str(error.value)) and re.search(r"3\.jpg: is no image", str(error.value))
    with pytest.raises(DataError, match="no such folder"):
        tl.data.folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="size is the height and width for a folder"):
        tl.data.folder(tmp_path, size=0)
    with pytest.raises(DataError, match=r"and there are \d+ sizes in all; resize"):
        tl.data.folder(photos)


def test_the_command_line_takes_a_size(photos: Path, tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["data", "show", str(photos), "--size", "16"])
    assert told.exit_code == 0 and "inputs: uint8 [72, 3, 16, 16]" in told.output, told.output
    code = tmp_path / "mine.py"
    code.write_text(
        "import telescopic as tl\nfrom torch import nn\n\n\ndef family(data):\n"
        "    stages = [nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())]\n"
        "    return tl.Nested(stages, exits={0: tl.layers.pooled_head((8, 1, 1), len(data.classes))})\n"
    )
    out = tmp_path / "run"
    how = ["--data", str(photos), "--size", "16", "--epochs", "1", "--out", str(out), "--precision", "fp32"]
    done = CliRunner().invoke(app, ["train", f"{code}:family", *how])
    assert done.exit_code == 0, done.output
    assert Source.open(str(out)).bundle.input_shape == (3, 16, 16)
