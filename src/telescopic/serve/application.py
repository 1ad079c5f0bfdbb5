"""The web application: an engine behind HTTP."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from importlib.resources import files
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from telescopic import decoder
from telescopic.engine.engine import Engine
from telescopic.engine.given import Inputs, size_of
from telescopic.limits import Limits
from telescopic.serve.admission import Admission
from telescopic.serve.bodies import IMAGES, JSON, BodyError, Takes, kind_of, read, wishes, with_predict
from telescopic.serve.connections import ARRIVED, CLOSING
from telescopic.serve.decoders import Decoders
from telescopic.serve.door import App, Door, Receive, Scope, Send, respond
from telescopic.serve.records import Records
from telescopic.serve.waiting import Job, Served, UnansweredError
from telescopic.serve.worker import Worker
from telescopic.shapes import several
from telescopic.subnet import Subnet

_SLOW = "the body is slow"
_TURN = 0.01  # seconds of passes without a look at who asks
_SMALL = 2**16  # bytes of a body that is read at once; others are read while something else goes on
_PAGE_RULES = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data: blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_PAGE = {"/": "text/html", "/page.js": "text/javascript", "/page.css": "text/css"}


def application(
    engine: Engine,
    *,
    slo_ms: float,
    max_batch: int = 32,
    max_waiting: int | None = None,
    max_body: int | None = None,
    allow_hosts: Collection[str] = (),
    allow_origins: Collection[str] = (),
    token: str | None = None,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FastAPI:
    """An ASGI application. When it is shut down it answers what it has taken in, and takes nothing more.

    Args:
        engine: what runs the members; what was not measured of it on this machine is measured now.
        slo_ms: milliseconds within which an answer is due, if a request says nothing else.
        max_batch: most examples in a pass, and in a request.
        max_waiting: most examples that wait. By default as many as the fastest member answers within the objective.
        max_body: most bytes of a request's body; by default what `limits` say.
        allow_hosts: names by which it may be called, beside addresses and localhost; `*` is any.
        allow_origins: other sites whose pages may ask, such as `https://example.org`.
        token: what requests must bear; None if nothing.
        limits: all other bounds.
        progress: called with the number of cases measured, and of all.

    Raises:
        ValueError: if a bound is below 1, or fewer may wait than run in a pass.
    """
    limits = limits or Limits()
    worker = Worker(
        engine,
        slo_ms=slo_ms,
        max_batch=max_batch,
        max_waiting=max_waiting,
        told=lambda run, seconds, late: records.passed(run, seconds, late),
        progress=progress,
    )
    records, decoders = Records(lambda: worker.state), Decoders(limits)
    predict = _Predict(worker, records, decoders, limits, max_body or limits.body)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        decoders.start()
        yield
        await run_in_threadpool(worker.close, CLOSING)
        await run_in_threadpool(decoders.close)

    # FastAPI's own pages load scripts from elsewhere; ours loads nothing.
    app = FastAPI(title="telescopic", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.refuses = Admission(worker, lambda seconds: records.answered(503, seconds)).refuses
    app.add_middleware(_First, predict=predict)
    app.add_middleware(Door, hosts=allow_hosts, origins=allow_origins, token=token)
    app.router.routes.append(Route("/predict", predict, methods=["POST"]))
    described = app.openapi
    app.openapi = lambda: with_predict(described(), predict.takes)  # type: ignore[method-assign]

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return _json({"error": str(error.detail)}, error.status_code, error.headers)

    @app.get("/health")
    async def health() -> Response:
        """Whether it answers, and how much waits."""
        return _json({"status": "ok", "members": len(engine.members), **worker.state})

    @app.get("/members")
    async def members() -> Response:
        """What there is to choose from, and what it takes on this machine."""
        return _json(_about(worker))

    @app.get("/load")
    async def load() -> Response:
        """What each of the last seconds was like."""
        present, seconds = records.seconds()
        return _json({"second": present, "seconds": seconds, **worker.state})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counts for Prometheus."""
        return Response(records.prometheus(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, kind in _PAGE.items():
        app.router.routes.append(Route(path, _page(path[1:] or "page.html", kind), include_in_schema=False))
    return app


class _First:
    """Hands predictions on by the shortest way; what else is asked goes through the framework's."""

    def __init__(self, app: App, predict: App) -> None:
        self._app, self._predict = app, predict

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        first = scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith("/predict")
        if first and scope["path"] == scope.get("root_path", "") + "/predict":
            await self._predict(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class _Predict:
    """Answers `POST /predict`. An ASGI application, for a network may take less time than a framework's way to it."""

    def __init__(self, worker: Worker, records: Records, decoders: Decoders, limits: Limits, max_body: int) -> None:
        engine = worker.engine
        self._engine, self._worker, self._records, self._decoders = engine, worker, records, decoders
        self._limits, self._max_body, self._bodies = limits, max_body, 0
        self._turning = False
        self.takes = Takes(several(engine.input_shape), engine.takes_pixels, worker.max_batch)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. Wishes may be in the query, or in a JSON body beside the inputs."""
        began = scope.get(ARRIVED, time.perf_counter())
        headers: list[tuple[bytes, bytes]] = []
        try:
            status, answer = 200, await self._predicted(scope, receive, began)
        except UnansweredError as error:
            status, answer = error.status, {"error": str(error)}
            if error.retry_after is not None:
                headers = [(b"retry-after", b"%d" % error.retry_after)]
        self._records.answered(status, time.perf_counter() - began)
        if status != 499:
            await respond(send, status, answer, *headers)

    async def _predicted(self, scope: Scope, receive: Receive, arrived: float) -> dict[str, Any]:
        engine, worker = self._engine, self._worker
        found = dict(scope["headers"])
        kind = kind_of(found.get(b"content-type", b"").decode("latin-1"), self.takes)
        asked = wishes(scope["query_string"])
        lag = time.perf_counter() - arrived
        with self._room() as take:
            body = await self._body(found, receive, take)
            x, more = await self._read(body, kind)
            asked = asked.together(wishes(more))
            try:
                member = None
                if asked.subnet is not None:
                    member = engine.member(Subnet.parse(asked.subnet))
                elif asked.quality is not None:
                    member = engine.of_quality(asked.quality, size_of(x))
                elif asked.max_latency_ms is not None:
                    member = engine.within(asked.max_latency_ms, size_of(x))
                longest = asked.max_latency_ms
                job = worker.submit(
                    x, deadline_ms=asked.deadline_ms, member=member, longest_ms=longest, turns=True, lag=lag
                )
            except ValueError as error:
                raise BodyError(422, str(error)) from error
            del body
        return _answer(await self._served(job), engine)

    async def _served(self, job: Job) -> Served:
        """What becomes of a request; whoever waits together is answered together, for all come before the turn."""
        loop, here = asyncio.get_running_loop(), threading.get_ident()
        woken = loop.create_future()

        def wake(answer: object) -> None:
            if threading.get_ident() == here:
                _finish(woken)
            else:
                loop.call_soon_threadsafe(_finish, woken)

        job.answer.add_done_callback(wake)
        if not self._turning:
            self._turning = True
            loop.call_soon(self._turn, loop)
        try:
            await woken
        except asyncio.CancelledError:
            job.answer.cancel()
            raise
        return job.answer.result()

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer for some time before more is read: what was let in shall not wait for what was not yet."""
        self._turning, end = True, time.perf_counter() + _TURN
        while self._turning and time.perf_counter() < end:
            self._turning = self._worker.turn()
        if self._turning:
            loop.call_soon(self._turn, loop)

    async def _read(self, body: bytes, kind: str) -> tuple[Inputs, dict[str, Any]]:
        """The inputs as the network sees them, and what is in the body beside them."""
        if kind in IMAGES or (kind == JSON and len(body) > _SMALL):
            future = self._decoders.submit(body, IMAGES.get(kind, decoder.JSON), self.takes)
            arrays, more = await asyncio.wrap_future(future)
        elif len(body) <= _SMALL:
            arrays, more = read(body, kind, self.takes)
        else:
            arrays, more = await run_in_threadpool(read, body, kind, self.takes)
        given = self.takes.batch(arrays)
        try:
            if sum(array.nbytes for array in given.values()) <= _SMALL:
                return self._engine.prepared(given), more
            return await run_in_threadpool(self._engine.prepared, given), more
        except ValueError as error:
            raise BodyError(422, str(error)) from error

    async def _body(self, headers: dict[bytes, bytes], receive: Receive, take: Callable[[int], None]) -> bytes:
        """The body, unless it is too long or too slow, or too many others are here."""
        most = self._max_body
        if (length := headers.get(b"content-length", b"0")).isdigit() and int(length[:20]) > most:
            raise BodyError(413, f"a request has at most {most:,} bytes")
        task = asyncio.current_task()
        assert task is not None
        # Not asyncio.timeout, which takes as long as all that is done here.
        slow = asyncio.get_running_loop().call_later(self._limits.body_seconds, task.cancel, _SLOW)
        chunks, size, more = [], 0, True
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise BodyError(499, "the client went away")
                chunks.append(message.get("body", b""))
                size, more = size + len(chunks[-1]), message.get("more_body", False)
                if size > most:
                    raise BodyError(413, f"a request has at most {most:,} bytes")
                take(size)
        except asyncio.CancelledError as error:
            if error.args != (_SLOW,):
                raise
            task.uncancel()
            raise BodyError(408, f"the request's body did not come within {self._limits.body_seconds:g} s") from error
        finally:
            slow.cancel()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    @contextmanager
    def _room(self) -> Iterator[Callable[[int], None]]:
        """Count a body among those that are here; small ones always have room."""
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if size <= _SMALL:
                return
            if self._bodies - taken + size > self._limits.bodies:
                raise BodyError(503, "too many long requests are here already: try again in 1 s")
            self._bodies += size - taken
            taken = size

        try:
            yield take
        finally:
            self._bodies -= taken


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _answer(served: Served, engine: Engine) -> dict[str, Any]:
    """What the client is told: classes or labels with their probabilities, or of another task the outputs."""
    member, shares = served.member, served.shares
    if not np.isfinite(shares).all():
        raise BodyError(422, f"{member.label} has no finite answer to this: are the inputs prepared as it expects?")
    told: dict[str, Any] = {"outputs": shares.tolist()}
    if engine.task in ("classification", "multilabel"):
        rows, classes = np.round(shares, 6).tolist(), engine.classes

        def said(i: int, row: list[float]) -> dict[str, Any]:
            return {"class": classes[i] if classes else str(i), "index": i, "probability": row[i]}

        of: list[Any]
        if engine.task == "classification":
            of = [said(i, row) for i, row in zip(shares.argmax(1).tolist(), rows, strict=True)]
        else:  # labels, of which an example has any number
            of = [[said(i, row) for i, share in enumerate(row) if share > 0.5] for row in rows]
        told = {"predictions": of, "probabilities": rows}
    return {
        **told,
        "member": {
            "subnet": str(member.subnet),
            "label": member.label,
            member.metric.word: member.score,
            "macs": member.macs,
        },
        "late": served.late,
        "waited_ms": round(1000 * served.waited, 3),
        "computed_ms": round(1000 * served.ran, 3),
        "examples_in_pass": served.examples,
    }


def _page(name: str, kind: str) -> Callable[[Request], Response]:
    """A part of the page."""
    text = files("telescopic.serve").joinpath(name).read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": _PAGE_RULES, "Cache-Control": "no-cache"}
    return lambda request: Response(text, media_type=kind, headers=headers)


def _about(worker: Worker) -> dict[str, Any]:
    engine = worker.engine
    front = engine.front()
    rows = []
    for member in engine.members:
        timing = engine.timing(member.subnet)
        rows.append(
            {
                "subnet": str(member.subnet),
                "label": member.label,
                "entry": member.subnet.entry,
                "exit": member.subnet.exit,
                "width": member.subnet.width,
                member.metric.word: member.score,
                f"test_{member.metric.word}": member.test_score,
                "macs": member.macs,
                "params": member.params,
                "chosen_from": member in front,
                "median_ms": round(timing.median_ms, 4),
                "p95_ms": round(timing.p95_ms, 4),
            }
        )
    return {
        "members": rows,
        "input_shape": engine.input_shape,
        "inputs": {name: one.facts() for name, one in engine.inputs.items()},
        "classes": engine.classes,
        "task": engine.task,
        "metric": asdict(engine.members[0].metric),
        "takes_pixels": engine.takes_pixels,
        "slo_ms": worker.slo_ms,
    }


def _json(data: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(to_json(data), status, headers, JSON)
