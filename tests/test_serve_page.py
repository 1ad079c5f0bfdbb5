"""The page as people use it: in a browser, on a desk and on a phone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from torch import Tensor, nn

import telescopic as tl
from telescopic.images import decode
from telescopic.serve import application

from chromium import CHROMIUM, Browser, Page, chromium
from packs import small_pack

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the page is looked at in Chromium, which is not here")


@pytest.fixture(scope="module", params=["digits", "images"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, tl.Engine]]:
    """The address of a server, and its engine."""
    to = tmp_path_factory.mktemp("page") / "packed.telescope"
    folder = tl.pack("nsn-mnist", to) if request.param == "digits" else small_pack(to, (3, 8, 8))
    engine = tl.Engine(folder, cache=False)
    with serving(engine) as address:
        yield address, engine


@contextmanager
def serving(engine: tl.Engine) -> Iterator[str]:
    """The address of a server, for as long as a block takes."""
    config = uvicorn.Config(application(engine, slo_ms=500, max_batch=4), port=0, log_level="error", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, served: tuple[str, tl.Engine]) -> Iterator[Page]:
    with browser.page() as page:
        page.open(served[0])
        page.until("document.querySelectorAll('#rates button').length")
        yield page


class PageRead(nn.Module):
    """Two columns, of which each has a table of its own, and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.numbers = nn.Embedding(1, 8), nn.Embedding(3, 8), nn.Linear(4, 8)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        kinds = self.first(x["kinds"][:, 0]) + self.second(x["kinds"][:, 1])
        features: Tensor = kinds + self.numbers(x["numbers"]) * x["known"]
        return features


SEVERAL = {
    "kinds": torch.zeros(2, 2, dtype=torch.int64), "numbers": torch.ones(2, 4), "known": torch.ones(2, 1).bool(),
}  # fmt: skip


@pytest.mark.parametrize(("entries", "example"), [({0: nn.Linear(4, 8)}, torch.ones(2, 4)), ({0: PageRead()}, SEVERAL)])
def test_numbers_are_shown_as_numbers(
    entries: dict[int, nn.Module], example: Any, browser: Browser, tmp_path: Path
) -> None:
    """Of a network that tells no classes apart, and whose score is an error: the better of its members is above."""
    net = tl.Nested([nn.Linear(8, 8), nn.Linear(8, 8)], entries, {0: nn.Linear(8, 2), 1: nn.Linear(8, 2)}).eval()
    metric = tl.Metric("deviation", better="lower", unit="mm")
    catalogue = tl.measure(net, input_shape=example).scored(metric, (0.75, 0.5), (0.75, 0.5))
    engine = tl.Engine(
        tl.pack(net, tmp_path / "pack", members="all", catalogue=catalogue, samples=example), cache=False
    )
    with serving(engine) as address, browser.page() as page:
        page.open(address)
        page.until("document.querySelectorAll('#answer .big').length")
        shown = page.run("[...document.querySelectorAll('#answer .big')].map(p => Number(p.textContent))")
        sent = page.run("[body(3).type, body(3).size]")
        assert sent == ["application/x-npy", 128 + 3 * 4 * 4] if engine.input_shape == (4,) else "json" in sent[0]
        assert len(shown) == 2 and all(np.isfinite(shown)) and not page.run("document.querySelectorAll('.bar').length")
        assert page.run("[metric.textContent, against.textContent, accuracy.textContent]") == [
            "deviation", "Deviation against latency", "0.500 mm",
        ]  # fmt: skip
        heights = page.run("[...document.querySelectorAll('#front circle')].map(c => Number(c.getAttribute('cy')))")
        assert heights[1] < heights[0], "the axis points down"


def give_input(page: Page, engine: tl.Engine, tmp_path: Path) -> None:
    """Draw a one, or choose a file."""
    if engine.input_shape[0] == 1:
        x, y, side = page.run("(b => [b.x, b.y, b.width])(pad.getBoundingClientRect())")
        page.draw([(x + side / 2, y + side * part) for part in (0.2, 0.4, 0.6, 0.8)])
    else:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(tmp_path / "noise.png")
        choose(page, tmp_path / "noise.png")
    page.until("document.querySelectorAll('.bar').length")


def choose(page: Page, file: Path) -> None:
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    field = page.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=field, files=[str(file)])


@pytest.mark.parametrize("kind", ["png", "jpg", "gif"])
def test_an_image_is_what_the_file_is_to_a_folder(
    page: Page, served: tuple[str, tl.Engine], tmp_path: Path, kind: str
) -> None:
    engine, file = served[1], tmp_path / f"own.{kind}"
    exif = Image.Exif()
    exif[0x112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 4 if kind == "png" else 3), np.uint8)
    how = {} if kind == "gif" else {"exif": exif}  # the browser makes a PNG of a GIF, and the server the pixels
    Image.fromarray(pixels).save(file, **how)
    expected = engine.run(decode(file, channels=engine.input_shape[0], size=engine.input_shape[1:])[None]).logits[0]
    page.run("document.querySelector('#servers').click()")
    choose(page, file)
    page.until("image && document.querySelectorAll('.bar').length && !busy && !again")
    told = page.run("ask('', image).then(([status, told]) => told.probabilities[0])")
    raised = np.exp(expected - expected.max())
    assert np.abs(np.array(told) - raised / raised.sum()).max() < 1e-4 and page.errors == []


def test_the_budget_changes_who_answers(page: Page, served: tuple[str, tl.Engine], tmp_path: Path) -> None:
    engine = served[1]
    give_input(page, engine, tmp_path)
    front = {member.label for member in engine.front()}
    seen = []
    for place in (0, 1000):
        page.run(f"$('slider').value = {place}; $('slider').dispatchEvent(new Event('input'))")
        budget = page.run("budget()")
        expected = engine.within(budget).label
        page.until(f"!busy && !again && $('label').textContent === {expected!r}")
        heights = page.run("[...$('stages').querySelectorAll('i')].map(i => i.style.height)")
        seen.append((expected, page.run("$('macs').textContent"), heights))
        assert page.run("document.querySelector('circle[r=\"7\"]').dataset.label") == expected
    assert seen[0][0] in front and seen[0] != seen[1]  # another member, its multiply-adds and stages
    page.run("$('servers').click()")
    page.until("$('budget').textContent === 'due in 500 ms'")
    page.until(f"!busy && !again && $('label').textContent === {engine.front()[-1].label!r}")
    assert page.run("$('slider').disabled") is True
    if engine.input_shape[0] == 1:
        assert page.run("document.querySelector('.bar span').textContent") == "1"  # it reads what was drawn
    assert page.errors == []


def test_load_is_shown(page: Page, served: tuple[str, tl.Engine], tmp_path: Path) -> None:
    give_input(page, served[1], tmp_path)
    page.run("$('rates').children[1].click()")
    page.until("document.querySelectorAll('#chart rect').length >= 2")
    names = page.run("[...document.querySelectorAll('#chart title')].map(t => t.textContent)")
    assert any(name.startswith(f"{member.label}: ") for name in names for member in served[1].members)
    assert page.run("$('now').textContent").split()[1:3] == ["a", "second,"] and page.errors == []


def test_nothing_is_cut_off_on_a_phone(page: Page, served: tuple[str, tl.Engine], tmp_path: Path) -> None:
    page.open(served[0], width=390, height=844)
    page.until("document.querySelectorAll('#rates button').length")
    give_input(page, served[1], tmp_path)
    assert page.run("document.documentElement.scrollWidth") <= 390
    inside = (
        "[...document.querySelectorAll('button, .big, dd, section')].every(e => e.getBoundingClientRect().right <= 391)"
    )
    assert page.run(inside)
