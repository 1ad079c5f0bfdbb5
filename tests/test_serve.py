import asyncio
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from torch import nn

import telescopic as tl
from telescopic import cli
from telescopic.engine.timings import Timing, Timings
from telescopic.serve import application, listening, run_on
from telescopic.serve.connections import ARRIVED
from telescopic.serve.worker import Closed, Refused, Worker
from telescopic.subnet import Subnet

from packs import MEMBERS, small_pack

SHAPE = (1, 6, 5)
SMALL, MIDDLE, LARGE = MEMBERS
HERE = "http://localhost"
NPY = {"content-type": "application/x-npy"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_pack(tmp_path_factory.mktemp("packs") / "small.telescope", SHAPE)


@pytest.fixture(scope="module")
def engine(folder: Path) -> tl.Engine:
    """One that believes its members to take 1, 2 and 4 ms for any batch, so that nothing depends on this machine."""
    engine = tl.Engine(folder, cache=False)
    rows = [
        Timing(subnet, batch, 1, ms, ms)
        for batch in (1, 2, 4, 8)
        for subnet, ms in zip(MEMBERS, (1.0, 2.0, 4.0), strict=True)
    ]
    engine._timings = Timings(rows)
    return engine


@pytest.fixture(scope="module")
def client(engine: tl.Engine) -> Iterator[TestClient]:
    with TestClient(application(engine, slo_ms=60_000, max_batch=8, max_body=100_000), base_url=HERE) as client:
        yield client


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, *SHAPE), np.uint8)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def shares(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def test_all_ways_to_say_the_same(client: TestClient, engine: tl.Engine, pixels: np.ndarray) -> None:
    prepared = engine.prepared(pixels)
    expected = shares(engine.run(pixels).logits)
    for body in (
        {"json": {"pixels": pixels.tolist()}},
        {"json": {"inputs": prepared.tolist()}},
        {"content": npy(pixels), "headers": NPY},
        {"content": npy(np.asfortranarray(prepared)), "headers": {"content-type": "application/octet-stream"}},
    ):
        response = client.post("/predict", **body)
        told = response.json()
        assert response.status_code == 200, told
        assert np.abs(np.array(told["probabilities"]) - expected).max() < 2e-6
        best = expected.argmax(1)
        assert [p["class"] for p in told["predictions"]] == [("ant", "bee", "cat")[i] for i in best]
        assert [p["index"] for p in told["predictions"]] == best.tolist()
        assert told["member"]["subnet"] == str(LARGE) and told["member"]["accuracy"] == 0.9 and told["late"] is False
    one = client.post("/predict", json={"pixels": pixels[0].tolist()}).json()  # one example needs no batch
    assert np.abs(np.array(one["probabilities"]) - expected[:1]).max() < 2e-6


LABELS, ERROR = tl.tasks.multilabel().metric, tl.Metric("error", better="lower", unit="mm")


@pytest.mark.parametrize(("metric", "task"), [(LABELS, "multilabel"), (ERROR, None), (tl.Metric("R2"), "regression")])
def test_answers_follow_the_task(metric: tl.Metric, task: str | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = tl.Nested([nn.Linear(4, 8), nn.Linear(8, 8)], exits={0: nn.Linear(8, 3), 1: nn.Linear(8, 3)}).eval()
    nn.init.uniform_(net.stages[0].weight, 1, 2)  # so that large numbers overflow
    scores = (0.25, 0.5)
    catalogue = tl.measure(net, input_shape=(4,)).scored(metric, scores, scores)
    tl.save(net, tmp_path / "net", catalogue, provenance={"task": {"name": task}} if task else {})
    tl.pack(tmp_path / "net", tmp_path / "pack", members="all")
    engine = tl.Engine(tmp_path / "pack", cache=False)
    assert engine.task == (task or "one's own"), "what has another score than accuracy has not learned classes"
    best = engine.members[0 if metric is ERROR else 1]
    assert engine.of_quality(1) is best and engine.within(1000) is best and engine.front()[-1] is best
    x = np.random.default_rng(0).standard_normal((5, 4), np.float32)
    with TestClient(application(engine, slo_ms=60_000, max_batch=8), base_url=HERE) as client:
        told = client.post("/predict", json={"inputs": x.tolist(), "quality": 1}).json()
        about = client.get("/members").json()
        lost = client.post("/predict", json={"inputs": [[3e38] * 4]})
    said, outputs = engine.classes or ("0", "1", "2"), engine.run(x, subnet=best.subnet).logits
    assert told["member"]["label"] == best.label and told["member"]["score"] == best.score
    assert about["metric"] == metric.to_dict() and [row["test_score"] for row in about["members"]] == [*scores]
    assert lost.status_code == 422 and "no finite answer" in lost.json()["error"]
    if task == "multilabel":
        expected = 1 / (1 + np.exp(-outputs))
        assert np.abs(np.array(told["probabilities"]) - expected).max() < 2e-6
        labels = [{p["class"] for p in row} for row in told["predictions"]]
        assert labels == [{said[i] for i in range(3) if row[i] > 0} for row in outputs] and "outputs" not in told
    else:
        np.testing.assert_allclose(told["outputs"], outputs, rtol=1e-6)
        assert "predictions" not in told and "probabilities" not in told


def test_images_of_any_size_and_kind(client: TestClient, engine: tl.Engine) -> None:
    middle = np.zeros((60, 90, 3), np.uint8)
    middle[:, 10:80] = 255  # wider than the network's 6 × 5: the middle 50 columns are its picture
    for kind, tolerance in (("PNG", 1e-5), ("WEBP", 0.02), ("JPEG", 0.02)):
        file = io.BytesIO()
        Image.fromarray(middle).save(file, kind)
        told = client.post(
            "/predict", content=file.getvalue(), headers={"content-type": f"image/{kind.lower()}"}
        ).json()
        expected = shares(engine.run(np.full((1, *SHAPE), 255, np.uint8)).logits)
        assert np.abs(np.array(told["probabilities"]) - expected).max() < tolerance, kind


@pytest.mark.parametrize(
    ("wish", "member"),
    [
        ({}, LARGE),
        ({"quality": 0}, SMALL),
        ({"quality": 0.5}, MIDDLE),
        ({"max_latency_ms": 3.9}, MIDDLE),
        ({"max_latency_ms": 0.0001}, SMALL),
        ({"subnet": "exit=0"}, MIDDLE),
        ({"deadline_ms": 0.001}, SMALL),
    ],
)
def test_wishes(client: TestClient, pixels: np.ndarray, wish: dict, member: Subnet) -> None:
    for query, body in (({}, wish), (wish, {})):
        told = client.post("/predict", params=query, json={"pixels": pixels.tolist(), **body}).json()
        assert told["member"]["subnet"] == str(member)
        too_long = told["computed_ms"] > wish.get("max_latency_ms", float("inf"))  # 0.0001 cannot be met
        assert told["late"] is ("deadline_ms" in wish or too_long)


BAD = {
    "nothing": ({}, 422, "either inputs or pixels"),
    "both": ({"inputs": [0], "pixels": [0]}, 422, "either inputs or pixels"),
    "shape": ({"pixels": [[1, 2]]}, 422, r"inputs have shape \[batch, 1, 6, 5\]"),
    "empty": ({"inputs": []}, 422, "inputs have shape"),
    "ragged": ({"inputs": [[1, 2], [3]]}, 422, "of one length"),
    "text": ({"inputs": [[["1"]]]}, 422, "inputs are numbers"),
    "bools": ({"inputs": [True]}, 422, "inputs are numbers"),
    "fractions": ({"pixels": [0.5]}, 422, "whole numbers from 0 to 255"),
    "256": ({"pixels": [256]}, 422, "whole numbers from 0 to 255"),
    "huge": ({"inputs": [10**400]}, 422, "inputs are numbers|valid"),
    "overflows": ({"inputs": [[[1e300] * 5] * 6]}, 422, "NaN or infinity"),
    "unknown": ({"pixels": [0], "budget": 1}, 422, "budget: Extra inputs"),
    "two wishes": ({"pixels": [0], "quality": 1, "subnet": "exit=0"}, 422, "not quality and subnet"),
    "deadline": ({"pixels": [0], "deadline_ms": 0}, 422, "deadline_ms: .*greater than 0"),
    "quality": ({"pixels": [0], "quality": 2}, 422, "quality: .*less than or equal to 1"),
    "a list": ([1], 422, "the request: .*object|dictionary"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_json_is_refused_with_a_reason(client: TestClient, case: str) -> None:
    body, status, reason = BAD[case]
    if isinstance(body, dict) and body.get("pixels") == [0]:
        body = body | {"pixels": [[[0] * 5] * 6]}
    response = client.post("/predict", json=body)
    assert response.status_code == status
    assert re.search(reason, response.json()["error"]), response.json()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("body", "kind", "status", "reason"),
    [
        (b"{", "application/json", 422, "JSON"),
        (b"\xff\xfe", "application/json", 422, "JSON"),
        (b"[" * 50_000, "application/json", 422, "more values than 8 examples"),
        (b"[" * 250, "application/json", 422, "JSON: recursion limit"),
        (b'{"inputs": NaN}', "application/json", 422, "it is no JSON"),
        (b'{"inputs": [[[NaN]]]}', "application/json", 422, "it is no JSON"),
        (b"x", "text/plain", 415, "not 'text/plain'"),
        (b"", "application/x-npy", 422, "no array of numbers in the format of numpy.save"),
        (npy(np.zeros((1, *SHAPE), np.float64)), "application/x-npy", 422, "float32 or uint8 pixels, not float64"),
        (npy(np.full((1, *SHAPE), np.nan, np.float32)), "application/x-npy", 422, "NaN or infinity"),
        (npy(np.zeros((9, *SHAPE), np.float32)), "application/x-npy", 422, "at most 8 examples, not 9"),
        (npy(np.array([None], object)), "application/x-npy", 422, "no array of numbers"),
        (
            header("{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,)}"),
            "application/x-npy",
            422,
            "fit",
        ),
        (header("{'descr': '|u1', 'fortran_order': False, 'shape': (-8,)}"), "application/x-npy", 422, "no array"),
        (header("{'descr': '|u1', 'fortran_order': False, 'shape': (1}\n"), "application/x-npy", 422, "no array"),
        (header("__import__('os')"), "application/x-npy", 422, "no array"),
        (b"\x89PNG\r\n", "image/png", 422, "the image is no PNG image"),
        (b"0" * 100_001, "image/png", 413, "at most 100,000 bytes"),
    ],
)
def test_bad_bodies_are_refused_with_a_reason(
    client: TestClient, body: bytes, kind: str, status: int, reason: str
) -> None:
    response = client.post("/predict", content=body, headers={"content-type": kind})
    assert response.status_code == status and re.search(reason, response.json()["error"]), response.text


def test_what_else_it_answers(client: TestClient) -> None:
    assert client.get("/health").json() == {
        "status": "ok",
        "members": 3,
        "waiting": 0,
        "max_waiting": 1024,
        "max_batch": 8,
        "slowdown": pytest.approx(client.get("/health").json()["slowdown"]),
    }
    about = client.get("/members").json()
    assert about["input_shape"] == list(SHAPE) and about["classes"] == ["ant", "bee", "cat"] and about["takes_pixels"]
    assert [(row["subnet"], row["accuracy"], row["median_ms"]) for row in about["members"]] == [
        (str(subnet), accuracy, ms) for (subnet, accuracy), ms in zip(MEMBERS.items(), (1.0, 2.0, 4.0), strict=True)
    ]
    assert client.get("/nowhere").json() == {"error": "Not Found"} and client.get("/predict").status_code == 405
    post = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
    guide = (Path(__file__).parents[1] / "docs/serving.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d, ]+) \|", guide, re.M)
    assert sorted(post["responses"]) == sorted(["200", *", ".join(rows).split(", ")])
    kinds = post["requestBody"]["content"]
    assert kinds["application/json"]["schema"]["properties"].keys() >= {"inputs", "pixels", "deadline_ms", "quality"}
    page = client.get("/")
    assert "default-src 'none'; script-src 'self';" in page.headers["content-security-policy"]
    parts = page.text + client.get("/page.js").text + client.get("/page.css").text
    found = re.findall(r"(?:src|href)\s*=\s*[\"']?(?!#)([^\"' >]*)|url\(|https?://(?!www.w3.org/2000/svg)", parts)
    assert sorted(found) == ["page.css", "page.js"] and not re.search("<script>|<style>|[ ]on[a-z]+=|style=", page.text)


def test_counts(engine: tl.Engine, pixels: np.ndarray) -> None:
    with TestClient(application(engine, slo_ms=60_000, max_batch=8), base_url=HERE) as client:
        for _ in range(3):
            client.post("/predict", json={"pixels": pixels.tolist(), "subnet": "exit=-1"})
        client.post("/predict", json={"pixels": pixels.tolist(), "deadline_ms": 0.0001})
        client.post("/predict", json={})
        client.post("/predict", params={"quality": 7}, json={"pixels": pixels.tolist()})
        text, load = client.get("/metrics").text, client.get("/load").json()
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    label = next(m.label for m in engine.members if m.subnet == SMALL)
    assert found['telescopic_requests_total{code="200"}'] == "4.0"
    assert found['telescopic_requests_total{code="422"}'] == "2.0"
    assert found[f'telescopic_examples_total{{member="{label}"}}'] == "8.0"
    assert found["telescopic_late_total"] == "1.0" and found["telescopic_waiting_examples"] == "0.0"
    assert found["telescopic_request_seconds_count"] == "4.0" and found["telescopic_pass_seconds_count"] == "4.0"
    assert sum(second["members"].get(label, 0) for second in load["seconds"]) == 8
    assert sum(second["late"] for second in load["seconds"]) == 1


def test_mounted_in_another_application(engine: tl.Engine, pixels: np.ndarray) -> None:
    # Whose server tells only itself of start and end.
    outer = FastAPI()
    outer.mount("/family", application(engine, slo_ms=60_000, max_batch=8))
    with TestClient(outer, base_url=HERE) as client:
        assert len(client.post("/family/predict", json={"pixels": pixels.tolist()}).json()["predictions"]) == 2
        assert client.get("/family/").status_code == 200


class Gate:
    """Holds an engine's passes up until it is opened."""

    def __init__(self, engine: tl.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.passes, run = threading.Event(), [], engine.run

        def held(x: np.ndarray, **wish: Subnet) -> tl.Prediction:
            self.passes.append((len(x), wish["subnet"]))
            assert self.open.wait(30)
            return run(x, **wish)

        monkeypatch.setattr(engine, "run", held)

    def wait_for(self, number: int) -> None:
        end = time.monotonic() + 20
        while len(self.passes) < number:
            assert time.monotonic() < end
            time.sleep(0.001)


def test_what_waits_is_answered_together(engine: tl.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, x = Gate(engine, monkeypatch), np.random.default_rng(1).standard_normal((7, *SHAPE), np.float32)
    told = []
    worker = Worker(engine, slo_ms=60_000, max_batch=8, told=lambda *run: told.append(run))
    worker.start()
    first = worker.submit(x[:1])
    gate.wait_for(1)
    others = [worker.submit(x[:2]), worker.submit(x[2:5]), worker.submit(x[5:])]
    assert worker.state["waiting"] == 7
    gate.open.set()
    answers = [job.answer.result(30) for job in others]
    monkeypatch.undo()
    assert gate.passes == [(1, LARGE), (7, LARGE)] and first.answer.result().examples == 1
    expected = engine.run(x).logits  # each gets its own rows
    assert np.abs(np.concatenate([answer.logits for answer in answers]) - expected).max() < 1e-5
    assert all(answer.examples == 7 and answer.waited > 0 and answer.ran > 0 for answer in answers)
    worker.close()
    assert [(run.examples, late) for run, _, late in told] == [(1, 0), (7, 0)]
    with pytest.raises(Closed):
        worker.submit(x[:1])


def test_closing_answers_what_was_taken_in(engine: tl.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, x = Gate(engine, monkeypatch), np.zeros((8, *SHAPE), np.float32)
    worker = Worker(engine, slo_ms=60_000, max_batch=8)
    worker.start()
    jobs = [worker.submit(x) for _ in range(4)]
    closing = threading.Thread(target=worker.close)
    closing.start()
    gate.open.set()
    closing.join(30)
    assert not closing.is_alive() and all(job.answer.done() and job.answer.exception() is None for job in jobs)


def test_a_pass_that_fails_is_told_and_the_next_one_runs(engine: tl.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, x = Worker(engine, slo_ms=60_000, max_batch=8), np.ones((1, *SHAPE), np.float32)
    run = engine.run
    worker.start()
    with monkeypatch.context() as broken:
        broken.setattr(engine, "run", lambda x, subnet: 1 // 0 if x.any() else run(x, subnet=subnet))
        with pytest.raises(Refused, match="by zero") as told:
            worker.submit(x).answer.result(30)
        assert isinstance(told.value.__cause__, ZeroDivisionError)
        assert worker.submit(np.zeros_like(x)).answer.result(30).logits.shape == (1, 3)
    assert worker.submit(x).answer.result(30).logits.shape == (1, 3)
    worker.close()


def test_what_fails_whatever_is_asked_is_the_servers_own_fault(
    engine: tl.Engine, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = []

    def failing(x: np.ndarray, subnet: Subnet) -> None:
        tried.append((len(x), bool(x.any()), subnet))
        raise MemoryError("no room")

    with TestClient(application(engine, slo_ms=60_000, max_batch=8), base_url=HERE) as client:
        monkeypatch.setattr(engine, "run", failing)
        told = client.post("/predict", content=npy(pixels), headers=NPY)
        assert told.status_code == 500 and "fails whatever is asked: the server's log says why" in told.json()["error"]
        assert tried == [(2, True, LARGE), (2, False, LARGE)]
        assert "no room, even zeros" in caplog.text and "MemoryError" in caplog.text
        monkeypatch.undo()
        assert client.post("/predict", content=npy(pixels), headers=NPY).status_code == 200


def test_closing_ends_in_time_whatever_runs(engine: tl.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, worker = Gate(engine, monkeypatch), Worker(engine, slo_ms=60_000, max_batch=8)
    job = worker.submit(np.zeros((1, *SHAPE), np.float32))
    gate.wait_for(1)
    worker.close(0.1)
    assert not job.answer.done()
    gate.open.set()
    job.answer.result(30)


def test_a_full_queue_is_503_and_says_when_to_come_again(engine: tl.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, body = Gate(engine, monkeypatch), npy(np.zeros((8, *SHAPE), np.float32))
    app = application(engine, slo_ms=60_000, max_batch=8, max_waiting=8)
    with TestClient(app, base_url=HERE) as client, ThreadPoolExecutor(2) as pool:
        taken = [pool.submit(client.post, "/predict", content=body, headers=NPY)]
        gate.wait_for(1)
        taken.append(pool.submit(client.post, "/predict", content=body, headers=NPY))
        while client.get("/health").json()["waiting"] < 8:
            time.sleep(0.001)
        refused = client.post("/predict", content=body, headers=NPY)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert "8 examples wait already, of at most 8" in refused.json()["error"]
        assert client.get("/load").json()["seconds"][-1]["refused"] == 1
        gate.open.set()
        assert [each.result(30).status_code for each in taken] == [200, 200]


def test_a_wait_outside_counts_and_a_refusal_by_the_head_too(engine: tl.Engine, pixels: np.ndarray) -> None:
    app, waited = application(engine, slo_ms=60_000, max_batch=8), 25.0

    async def late(scope: dict, receive: object, send: object) -> None:
        await app(scope | {ARRIVED: time.perf_counter() - waited}, receive, send)  # type: ignore[arg-type]

    async def refused() -> list[bool]:
        return [app.state.refuses(b"/predict", time.perf_counter() - waited) for waited in (10, 20, 10)]

    with TestClient(late, base_url=HERE) as client:
        told = client.post("/predict", content=npy(pixels), headers=NPY)
        assert told.status_code == 200 and told.json()["waited_ms"] >= 1000 * waited
        assert asyncio.run(refused()) == [False, True, False]
        assert client.get("/load").json()["seconds"][-1]["refused"] == 1
        assert 'telescopic_requests_total{code="503"} 1.0' in client.get("/metrics").text


def test_an_answer_that_is_no_number_is_no_answer(
    client: TestClient, engine: tl.Engine, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = engine.run
    monkeypatch.setattr(engine, "run", lambda x, subnet: replace(run(x, subnet=subnet), logits=np.full((2, 3), np.inf)))
    response = client.post("/predict", content=npy(pixels), headers=NPY)
    assert response.status_code == 422 and "has no finite answer to this" in response.json()["error"]


def test_what_was_not_measured_here_is_measured_before_serving(folder: Path) -> None:
    cases, engine = [], tl.Engine(folder, cache=False)
    Worker(engine, slo_ms=20, max_batch=3, progress=lambda done, of: cases.append((done, of)))
    assert cases == [(1, 3), (2, 3), (3, 3)] and {row.batch for row in engine.timings} == {1, 2, 3}
    Worker(engine, slo_ms=20, max_batch=2, progress=lambda done, of: cases.append((done, of)))
    assert len(cases) == 3
    for bad in ({"slo_ms": 0}, {"slo_ms": 20, "max_batch": 0}):
        with pytest.raises(ValueError, match=r"objective is above 0|a pass has 1 example"):
            Worker(engine, **bad)


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """`telescopic serve` as a user runs it, and its address."""
    command = [sys.executable, "-m", "telescopic", "serve", str(folder), "--port", "0", "--slo-ms", "20000"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        line = run.stdout.readline()
        try:
            assert "3 members on http://127.0.0.1:" in line, (line, run.stderr.read() if run.stderr else "")
            yield run, line.split()[3].rstrip(",")
        finally:
            run.kill()


def test_served_to_the_end(server: tuple[subprocess.Popen, str], pixels: np.ndarray) -> None:
    process, address = server
    body = json.dumps({"pixels": pixels.tolist()}).encode()
    with urllib.request.urlopen(
        urllib.request.Request(f"{address}/predict", body, {"content-type": "application/json"}), timeout=30
    ) as response:
        assert len(json.load(response)["predictions"]) == 2
    with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=30) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        slow.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body[:10])
        with urllib.request.urlopen(f"{address}/health", timeout=30) as response:  # it has come as far as this one
            assert json.load(response)["status"] == "ok"
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"{address}/health", timeout=30)
        slow.sendall(body[10:])
        assert slow.makefile("rb").readline().split()[1] == b"200"
    assert process.wait(30) in (0, -signal.SIGTERM)
    assert process.stderr is not None and "Traceback" not in process.stderr.read()


def test_a_package_that_is_missing_is_named_with_the_remedy(folder: Path) -> None:
    code = "import sys; sys.modules['fastapi'] = None; from telescopic.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", str(folder), "--port", "0"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.startswith("error: fastapi is not installed: pip install ")
    assert "Traceback" not in run.stderr and {"fastapi", "uvicorn"} <= set(run.stderr.split())


def failing(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What `telescopic serve` says on standard output and standard error when it ends at once with 1."""
    monkeypatch.setattr(sys, "argv", ["telescopic", "serve", *words])
    with pytest.raises(SystemExit, match=r"^1$"):
        cli.main()
    told = capsys.readouterr()
    return told.out, told.err


def test_no_pack_is_said_before_anything_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, error = failing([str(tmp_path), "--port", "0"], monkeypatch, capsys)
    assert "is no pack: it has no manifest.json" in error and "http" not in out


def test_answers_are_sent_at_once() -> None:
    # Without the protocol asyncio leaves Nagle's algorithm on, and every answer but the first comes 40 ms late.
    with listening("127.0.0.1", 0) as taken:
        assert taken.proto == socket.IPPROTO_TCP


def test_a_port_that_is_taken_is_said_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("telescopic.engine.Engine", lambda *args, **options: pytest.fail("the pack was opened before"))
    with listening("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        _, error = failing([str(folder), "--port", port], monkeypatch, capsys)
    assert f"cannot listen on 127.0.0.1, port {port}: " in error and "Name another with --port" in error


def test_the_server_does_not_close_connections_before_a_load_balancer_would(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: seen.append(self.config))
    with listening("127.0.0.1", 0) as taken:
        run_on(taken, FastAPI())
    assert seen[0].timeout_keep_alive > 60
