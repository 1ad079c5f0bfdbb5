"""Packs of networks with several inputs, or one of another type, behind HTTP: the same answers as the engine's."""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from torch import Tensor, nn

import telescopic as tl
from telescopic.documents import examples
from telescopic.engine.given import Given, taken
from telescopic.engine.manifest import Manifest, PackError
from telescopic.packing.bounds import bounds
from telescopic.serve import application
from telescopic.serve.worker import Refused, Worker

HERE, MOST = "http://localhost", 4
JSON, NPZ = {"content-type": "application/json"}, {"content-type": "application/x-npz"}


class ServedRead(nn.Module):
    """Words, a mask, kinds of which each column has a table of its own, and numbers, in one sum."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.first, self.second = nn.Embedding(9, 6), nn.Embedding(3, 6), nn.Embedding(5, 6)
        self.numbers = nn.Linear(2, 6)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        words = (self.words(x["ids"]) * x["mask"][..., None]).sum(1)
        kinds = self.first(x["kinds"][:, 0]) + self.second(x["kinds"][:, 1])
        result: Tensor = words + kinds + self.numbers(x["numbers"])
        return result


def given(batch: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(batch)
    return {
        "ids": draw.integers(0, 9, (batch, 7)),
        "mask": draw.random((batch, 7)) < 0.7,
        "kinds": np.stack([draw.integers(0, 3, batch), draw.integers(0, 5, batch)], 1),
        "numbers": draw.standard_normal((batch, 2), np.float32),
    }


def block() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> tl.Engine:
    torch.manual_seed(0)
    net = tl.Nested([block(), block()], {0: ServedRead()}, {0: nn.Linear(6, 3), 1: nn.Linear(6, 3)}).eval()
    samples = {name: torch.from_numpy(array) for name, array in given(3).items()}
    folder = tmp_path_factory.mktemp("packs") / "several.telescope"
    preprocess = tl.Preprocess()
    tl.pack(net, folder, input_shape=samples, samples=samples, members="all", preprocess=preprocess)
    return tl.Engine(folder, cache=False)


@pytest.fixture(scope="module")
def client(engine: tl.Engine) -> Iterator[TestClient]:
    with TestClient(application(engine, slo_ms=60_000, max_batch=MOST), base_url=HERE) as client:
        yield client


def plain(inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: array.tolist() for name, array in inputs.items()}


def npz(inputs: dict[str, np.ndarray], save: Any = np.savez) -> bytes:
    file = io.BytesIO()
    save(file, **inputs)
    return file.getvalue()


def shares(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def test_each_way_to_say_it_is_answered_as_the_engine_answers(client: TestClient, engine: tl.Engine) -> None:
    small, full = engine.members
    for batch in (1, MOST):
        x = given(batch)
        for member in (small, full):
            asked = f"/predict?subnet={member.subnet}"
            wanted = shares(engine.run(x, subnet=member.subnet).logits)
            for told in (
                client.post(asked, json={"inputs": plain(x)}),
                client.post(asked, content=npz(x), headers=NPZ),
                client.post(asked, content=npz(x | {"ids": x["ids"].astype(np.int16)}), headers=NPZ),
            ):
                assert told.status_code == 200, told.text
                np.testing.assert_allclose(told.json()["probabilities"], wanted, atol=2e-6)
    one = {name: array[0] for name, array in given(1).items()}  # needs no batch
    told = client.post("/predict", json={"inputs": plain(one)}).json()
    np.testing.assert_allclose(told["probabilities"], shares(engine.run(given(1)).logits), atol=2e-6)
    bytes_ = np.array([[7, 255]], np.uint8)  # among several, bytes are fractions of 255
    x = given(1) | {"numbers": (bytes_ / np.float32(255)).astype(np.float32)}
    rest = {name: values for name, values in plain(x).items() if name != "numbers"}
    told = client.post("/predict", json={"inputs": rest, "pixels": {"numbers": bytes_.tolist()}}).json()
    np.testing.assert_allclose(told["probabilities"], shares(engine.run(x).logits), atol=2e-6)
    *_, last = engine.anytime(given(2))
    np.testing.assert_allclose(last.logits, engine.run(given(2)).logits, atol=1e-6)


def test_long_json_is_read_elsewhere_to_the_same(client: TestClient, engine: tl.Engine) -> None:
    x = given(2)
    text = json.dumps({"inputs": plain(x)}) + " " * 70_000
    told = client.post("/predict", content=text, headers=JSON).json()
    np.testing.assert_allclose(told["probabilities"], shares(engine.run(x).logits), atol=2e-6)
    refused = client.post("/predict", content=text.replace("true", "1"), headers=JSON)
    assert refused.status_code == 422 and "mask: inputs are true or false" in refused.text


def changed(**change: Any) -> dict[str, Any]:
    return {"inputs": {name: one for name, one in (plain(given(2)) | change).items() if one is not None}}


WRONG: dict[str, tuple[Any, str]] = {
    "a list": ({"inputs": [[1]]}, "inputs: this network takes ids, mask, kinds, numbers, by name in an object"),
    "none": ({"quality": 1}, "takes ids, mask, kinds, numbers, each once, not nothing"),
    "missing": (changed(mask=None), "takes ids, mask, kinds, numbers, each once, not ids, kinds, numbers"),
    "unknown": (changed(more=[1]), "each once, not ids, mask, kinds, numbers, more"),
    "twice": (changed() | {"pixels": {"numbers": [[1, 2]]}}, "each once, not ids, .*, numbers, numbers"),
    "no numbers": (changed(ids=[["a"] * 7] * 2), r"ids: inputs are whole numbers \(int64\)"),
    "fractions": (changed(ids=[[0.5] * 7] * 2), r"ids: inputs are whole numbers \(int64\)"),
    "truth for numbers": (changed(ids=[[True] * 7] * 2), r"ids: inputs are whole numbers \(int64\)"),
    "numbers for truth": (changed(mask=[[1] * 7] * 2), "mask: inputs are true or false"),
    "too large": (changed(ids=[[2**63] * 7] * 2), "ids: inputs are numbers that int64 holds"),
    "negative": (changed(ids=[[0] * 7, [0, 0, -1] + [0] * 4]), r"ids: the number at \[1, 2\] is -1, .* takes 0 to 8 "),
    "beyond": (changed(ids=[[9] * 7] * 2), r"ids: the number at \[0, 0\] is 9, and the network takes 0 to 8 there"),
    "in its column": (changed(kinds=[[0, 4], [3, 0]]), r"kinds: the number at \[1, 0\] is 3, .* takes 0 to 2 there"),
    "shape": (changed(ids=[[1] * 6] * 2), r"ids: inputs have shape \[batch, 7\]"),
    "not as many": (changed(ids=[[1] * 7]), "as many examples each, and these {'ids': 1, 'mask': 2"),
    "too many": (changed(ids=[[1] * 7] * (MOST + 1)), "at most 4 examples, not 5"),
    "ragged": (changed(ids=[[1] * 7, [1]]), "ids: all examples"),
    "null": (changed(ids="null"), "ids: inputs: it is no list"),
    "very many": ({"inputs": {"ids": [0] * 500}}, "more values than 4 examples of shape .* have"),
    "texts": ({"inputs": {f"{n}": [] for n in range(50)}}, "more texts than a request has"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_by_name(client: TestClient, case: str) -> None:
    body, reason = WRONG[case]
    told = client.post("/predict", json=body)
    assert told.status_code == 422 and re.search(reason, told.json()["error"]), told.text


def listed(archive: bytes, size: int) -> bytes:
    """An archive that says another length of its list."""
    return archive[:-10] + size.to_bytes(4, "little") + archive[-6:]


def zipped(name: str, content: bytes, times: int = 1) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(times):
            archive.writestr(name.format(number), content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (npz(given(2), np.savez_compressed), "compressed: send what numpy.savez writes"),
        (npz({"ids": given(2)["ids"]}), "takes ids, mask, kinds, numbers, each once, not ids"),
        (npz(given(2) | {"mask": given(2)["mask"].astype(np.int8)}), "mask: it is bool, not int8"),
        (npz(given(2) | {"ids": np.full((2, 7), -1)}), "ids: the number at .* is -1"),
        (npz(given(2) | {"ids": np.full((2, 7), 2**40)}), "ids: the number at .* is 1099511627776"),
        (npz(given(2) | {"ids": np.array([None], object)}), "no array of numbers"),
        (npz(given(2))[:-1], "no archive of numpy.savez"),
        (npz(given(2))[:300] + b"x" + npz(given(2))[301:], "no archive|no array"),
        (listed(npz(given(2)), 2**31), "no archive of numpy.savez"),
        (zipped("{}", b"", 1000), "no archive of numpy.savez"),
        (b"PK", "no archive of numpy.savez"),
        (b"PK" + bytes(200), "no archive of numpy.savez"),
        (b"\x93NUMPY\x01\x00", "this network takes ids, mask, kinds, numbers: send what numpy.savez writes"),
        (b"", "this network takes ids"),
    ],
)
def test_archives_of_strangers(client: TestClient, body: bytes, reason: str) -> None:
    told = client.post("/predict", content=body, headers=NPZ)
    assert told.status_code == 422 and re.search(reason, told.json()["error"]), told.text


def test_what_it_says_of_itself(client: TestClient, engine: tl.Engine) -> None:
    about = client.get("/members").json()["inputs"]
    assert about["ids"] == {"type": "int64", "shape": [7], "below": 9}
    assert about["kinds"] == {"type": "int64", "shape": [2], "below": [3, 5]}
    assert about["numbers"] == {"type": "float32", "shape": [2], "below": None}
    post = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert "ids int64 [batch, 7], mask bool [batch, 7]" in post["description"]
    assert "image/png" not in post["requestBody"]["content"]
    text = (engine.path / "README.md").read_text()
    assert "ids int64 `[batch, 7]` from 0 to 8, mask bool `[batch, 7]`, kinds int64 `[batch, 2]`, numbers" in text


def test_requests_of_several_share_a_pass(engine: tl.Engine) -> None:
    worker, x = Worker(engine, slo_ms=60_000, max_batch=MOST), given(MOST)
    parts = [{name: array[some] for name, array in x.items()} for some in (slice(0, 1), slice(1, 3), slice(3, 4))]
    worker._open = True  # and no thread: all of them wait
    worker._thread = object()  # type: ignore[assignment]
    jobs = [worker.submit(engine.prepared(part), turns=True, member=engine.members[1]) for part in parts]
    run = worker._waiting.take(0.0)
    assert run is not None and run.examples == MOST
    worker._run(run)
    answers = np.concatenate([job.answer.result(0).logits for job in jobs])
    np.testing.assert_allclose(answers, engine.run(x).logits, atol=1e-6)


def fails(monkeypatch: pytest.MonkeyPatch, bad: dict[str, np.ndarray]) -> list[int]:
    """Have the engine refuse a pass with some words in it, as it does where nobody knew a bound; sizes of passes."""
    passes, own = list[int](), tl.Engine.run

    def run(self: tl.Engine, x: Any, **wish: Any) -> Any:
        passes.append(len(x["ids"]))
        if any((row == bad["ids"][0]).all() for row in x["ids"]):
            raise RuntimeError("an index is out of bounds\nand more")
        return own(self, x, **wish)

    monkeypatch.setattr(tl.Engine, "run", run)
    return passes


@pytest.mark.parametrize("bad", [0, 5, 31])
def test_one_that_fails_does_not_fail_those_beside_it(
    engine: tl.Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, bad: int
) -> None:
    worker = Worker(engine, slo_ms=60_000, max_batch=32)
    worker._open, worker._thread = True, object()  # type: ignore[assignment]
    good, own = given(1), engine.run(given(1)).logits
    monkeypatch.setattr("telescopic.serve.worker._SHORT_MS", 1e9)  # here, in turns
    for _ in range(2):
        with monkeypatch.context() as broken:
            passes = fails(broken, given(2))
            xs = [given(2) if each == bad else good for each in range(32)]
            xs = [{name: array[:1] for name, array in x.items()} for x in xs]
            jobs = [worker.submit(engine.prepared(x), turns=True, member=engine.members[1]) for x in xs]
            while worker.turn():
                assert len(passes) < 64 and passes[-1] >= 1
        assert len(passes) == 12 and passes[0] == 32, passes  # 1 + 2 log2 32, and one that shows who is to blame
        for each, job in enumerate(jobs):
            if each == bad:
                with pytest.raises(Refused, match=r"cannot compute this: an index is out of bounds$"):
                    job.answer.result(0)
            else:
                np.testing.assert_allclose(job.answer.result(0).logits, own, atol=1e-6)
    assert [record.getMessage().count("out of bounds") for record in caplog.records] == [1], "a line, not one for each"


def test_a_turn_is_one_pass(engine: tl.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, passes = Worker(engine, slo_ms=60_000, max_batch=MOST), fails(monkeypatch, given(2))
    worker._open, worker._thread = True, object()  # type: ignore[assignment]
    monkeypatch.setattr("telescopic.serve.worker._SHORT_MS", 1e9)
    for _ in range(2):
        worker.submit(engine.prepared({name: array[:1] for name, array in given(2).items()}), turns=True)
    assert [worker.turn(), worker.turn(), worker.turn()] == [True, True, False] and passes == [2, 1, 1, 1, 1]


def test_what_the_network_itself_refuses_is_422_and_counted(engine: tl.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with TestClient(application(engine, slo_ms=60_000, max_batch=MOST), base_url=HERE) as client:
        fails(monkeypatch, given(2))
        told = client.post("/predict", json={"inputs": plain(given(2))})
        assert told.status_code == 422 and told.json()["error"].endswith("an index is out of bounds"), told.text
        assert client.post("/predict", json={"inputs": plain(given(1))}).status_code == 200
        assert 'telescopic_requests_total{code="422"} 1.0' in client.get("/metrics").text


# ------------------------------------------------------------------------------------------------- bounds of numbers


def test_the_engine_refuses_what_torch_refuses(engine: tl.Engine) -> None:
    x = given(2)
    for name, place, value, reason in (
        ("ids", (0, 3), -1, r"ids: the number at \[0, 3\] is -1, and the network takes 0 to 8 there"),
        ("ids", (1, 0), 9, r"ids: the number at \[1, 0\] is 9"),
        ("kinds", (1, 1), 5, r"kinds: the number at \[1, 1\] is 5, and the network takes 0 to 4 there"),
        ("kinds", (0, 0), 4, r"kinds: the number at \[0, 0\] is 4, and the network takes 0 to 2 there"),
    ):
        wrong = x[name].copy()
        wrong[place] = value
        for ask in (engine.run, engine.anytime, engine.prepared):
            with pytest.raises(ValueError, match=reason):
                ask(x | {name: wrong})
    prepared = engine.prepared(x)  # may be given again
    assert engine.prepared(prepared)["ids"] is prepared["ids"]


LOOKUPS: dict[str, tuple[Any, Any]] = {
    "each": (lambda own, x: own.a(x).sum(1), 7),
    "as another type": (lambda own, x: own.a(x.int()).sum(1), 7),
    "moved": (lambda own, x: own.a(x.flip(1).T).sum(0), 7),
    "by columns": (lambda own, x: own.a(x[:, 0]) + own.b(x[:, 1]), (7, 5, 0)),
    "in both": (lambda own, x: own.a(x).sum(1) + own.b(x).sum(1), 5),
    "in a bag": (lambda own, x: own.bag(x), 6),
    "as one of so many": (lambda own, x: nn.functional.one_hot(x, 8).float().sum(1), 8),
    "functional": (lambda own, x: nn.functional.embedding(x, own.a.weight).sum(1), 7),
    "negative ones are something else": (lambda own, x: own.a(x.clamp(min=0)).sum(1), None),
    "-100 is no word": (lambda own, x: own.a(x.masked_fill(x == -100, 0)).sum(1), None),
    "255 is no word": (lambda own, x: own.a(x.masked_fill(x == 255, 0)).sum(1), None),
    "not the number itself": (lambda own, x: own.a(x + 1).sum(1), None),
    "from the end, as torch does": (lambda own, x: own.a.weight[x].sum(1), None),
    "not looked up": (lambda own, x: x.float(), None),
    "places are": (lambda own, x: own.a(torch.arange(3)).sum(0) + x.float(), None),
}


class Table(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.a, self.b, self.bag = nn.Embedding(7, 3), nn.Embedding(5, 3), nn.EmbeddingBag(6, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function(self, x)
        return result


@pytest.mark.parametrize(
    ("case", "dtype"), [*((case, torch.int64) for case in LOOKUPS), ("each", torch.int32), ("by columns", torch.int32)]
)
def test_bounds_are_found_where_torch_has_them(case: str, dtype: torch.dtype) -> None:
    function, wanted = LOOKUPS[case]
    net = tl.Nested([nn.Identity()], {0: Table(function)}, {0: nn.Identity()}).eval()
    found = bounds(net, [net.grid.full], torch.ones(2, 3, dtype=dtype))
    assert found == ({} if wanted is None else {"input": wanted})


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        result: Tensor = self.table(torch.where(x["mask"] > 0, x["ids"], 0)).sum(1)
        return result


@pytest.mark.parametrize("kind", [torch.bool, torch.int64])
def test_what_is_looked_up_by_some_masks_only_has_no_bound(kind: torch.dtype) -> None:
    net = tl.Nested([nn.Linear(4, 4)], {0: Masked()}, {0: nn.Linear(4, 2)}).eval()
    x = {"ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "mask": torch.ones(2, 3, dtype=kind)}
    assert bounds(net, [net.grid.full], x) == {}
    x["ids"][0, 2], x["mask"][0, 2] = -100, 0
    assert bounds(net, [net.grid.full], x) == {}


def test_bounds_hold_for_every_sample() -> None:
    net = tl.Nested([nn.Identity()], {0: Table(_by_its_sign)}, {0: nn.Identity()}).eval()
    x = {"ids": torch.ones(2, 3, dtype=torch.int64), "sign": torch.tensor([[1.0], [-1.0]])}
    assert bounds(net, [net.grid.full], x) == {}


def _by_its_sign(own: Any, x: Any) -> Tensor:
    found: Tensor = own.a(torch.where(x["sign"] > 0, x["ids"], 0)).sum(1)
    return found


def test_truth_is_true_whatever_byte_says_so(engine: tl.Engine) -> None:
    x = given(2)
    bytes_of = x["mask"].view(np.uint8) * np.uint8(2)
    wanted = engine.run(x).logits
    assert np.array_equal(engine.run(x | {"mask": bytes_of.view(np.bool_)}).logits, wanted)


def test_a_tuple_of_the_one_input_is_taken() -> None:
    inputs = {"input": Given((3,), np.dtype(np.int64))}
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    for x in (ids, (ids,), (ids[0], ids[1])):
        assert np.array_equal(taken(x, inputs), ids)
    assert np.array_equal(taken((ids[0],), inputs), ids[:1])


@pytest.mark.parametrize("said", ['{"a": [[1]], "a": [[2]]}', '{"a": [[1]], "\\u0061" : [[2]]}'])
def test_a_name_twice_is_refused(said: str) -> None:
    inputs = {"a": ("uint8", 1)}
    for text in (f'{{"inputs": {said}}}', f'{{"inputs": {{"a": [[1]]}}, "more": {said}}}'):
        with pytest.raises(ValueError, match="two values of one name"):
            examples(text.encode(), inputs, 4)
    once = '{"inputs": {"a": [[1]]}, "more": [{"a\\": b": "a"}, {"c": ["d"]}]}'
    for text in (once, once.replace("more", "pixels").replace('[{"a\\": b": "a"}, {"c": ["d"]}]', "null")):
        assert examples(text.encode(), inputs, 4)[0]["a"].tolist() == [[1]]
    assert examples(b'{"inputs": [[1]], "more": [[{"a": 1}]]}', inputs, 4)[0]["a"].tolist() == [[1]]


@pytest.mark.parametrize("number", [300, -1, 2**70])
def test_bytes_are_0_to_255(number: int) -> None:
    with pytest.raises(ValueError, match="uint8 holds"):
        examples(json.dumps({"inputs": [[number]]}).encode(), {"a": ("uint8", 1)}, 4)


def test_long_examples_have_no_bounds() -> None:
    net = tl.Nested([nn.Identity()], {0: Table(lambda own, x: own.a(x).sum(1))}, {0: nn.Identity()}).eval()
    assert bounds(net, [net.grid.full], torch.ones(1, 2**16 + 1, dtype=torch.int64)) == {}


def test_bounds_are_of_all_packed_members() -> None:
    ways = {0: Table(lambda own, x: own.a(x).sum(1)), 1: Table(lambda own, x: own.b(x).sum(1))}
    net = tl.Nested([nn.Linear(3, 3)], ways, {0: nn.Identity()}).eval()
    x = torch.ones(2, 3, dtype=torch.int64)
    assert bounds(net, [*net.grid], x) == {"input": 5}
    assert bounds(net, [net.grid.full], x) == {"input": 7}


def test_what_a_manifest_says_of_bounds_is_not_believed(engine: tl.Engine) -> None:
    text = (engine.path / "manifest.json").read_text()
    data = json.loads(text)
    assert data["below"] == {"input.ids": 9, "input.kinds": [3, 5]}
    for below, reason in (
        ({"input.ids": -1}, "no whole number"),
        ({"input.ids": 0}, "is no input of whole numbers that have a bound"),
        ({"input.mask": 2}, "is no input of whole numbers"),
        ({"input.numbers": 2}, "is no input of whole numbers"),
        ({"elsewhere": 2}, "is no input of whole numbers"),
        ({"input.kinds": [3]}, "has 2 numbers, and bounds of 1"),
        ({"input.kinds": "3"}, "no whole number"),
        (["input.ids"], "is no dict"),
    ):
        with pytest.raises(PackError, match=reason):
            Manifest.from_json(json.dumps(data | {"below": below}))
    del data["below"]  # as packs of before
    assert Manifest.from_json(json.dumps(data)).below == {}
