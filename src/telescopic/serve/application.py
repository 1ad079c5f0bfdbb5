"""The web application: an engine behind HTTP."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from telescopic.engine.engine import Engine
from telescopic.serve.bodies import IMAGES, NPY, Body, BodyError, Wishes, read
from telescopic.serve.records import Records
from telescopic.serve.waiting import Overloaded, Served
from telescopic.serve.worker import Closed, Worker
from telescopic.subnet import Subnet

_SMALL = 2**14  # bytes of a body that is read at once; others are read while something else goes on
_BODY_SECONDS = 10.0  # in which a body must have come
_PAGE_RULES = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data: blob:"
)


def application(
    engine: Engine,
    *,
    slo_ms: float,
    max_batch: int = 32,
    max_waiting: int | None = None,
    max_body: int = 2**23,
    progress: Callable[[int, int], None] | None = None,
) -> FastAPI:
    """An ASGI application. When it is shut down it answers what it has taken in, and takes nothing more.

    Args:
        engine: what runs the members; what was not measured of it on this machine is measured now.
        slo_ms: milliseconds within which an answer is due, if a request says nothing else.
        max_batch: most examples in a pass, and in a request.
        max_waiting: most examples that wait. By default as many as the fastest member answers within the objective.
        max_body: most bytes of a request's body.
        progress: called with the number of cases measured, and of all.

    Raises:
        ValueError: if a bound is below 1, or fewer may wait than run in a pass.
    """
    worker = Worker(
        engine,
        slo_ms=slo_ms,
        max_batch=max_batch,
        max_waiting=max_waiting,
        told=lambda run, seconds, late: records.passed(run, seconds, late),
        progress=progress,
    )
    records = Records(lambda: worker.state)
    page = files("telescopic.serve").joinpath("page.html").read_text(encoding="utf-8")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await run_in_threadpool(worker.close)

    # FastAPI's own pages load scripts from elsewhere; ours loads nothing.
    app = FastAPI(title="telescopic", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return _json({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        records.answered(422, 0.0)
        return _json({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    @app.post("/predict", openapi_extra=_accepted())
    async def predict(request: Request, wishes: Annotated[Wishes, Query()]) -> Response:
        """Classify. Wishes may be in the query, or in a JSON body beside the inputs."""
        began = time.perf_counter()
        headers: dict[str, str] = {}
        try:
            status, answer = 200, await _predicted(request, wishes)
        except BodyError as error:
            status, answer = error.status, {"error": str(error)}
        except Overloaded as error:
            status, answer, headers = 503, {"error": str(error)}, {"Retry-After": str(error.retry_after)}
        except Closed as error:
            status, answer, headers = 503, {"error": str(error)}, {"Retry-After": "5"}
        except ClientDisconnect:
            status, answer = 499, {"error": "the client went away"}
        records.answered(status, time.perf_counter() - began)
        return _json(answer, status, headers)

    async def _predicted(request: Request, wishes: Wishes) -> dict[str, Any]:
        body, kind = await _body(request, max_body), request.headers.get("content-type", "")
        if len(body) <= _SMALL:
            x, more = read(body, kind, engine)
        else:
            x, more = await run_in_threadpool(read, body, kind, engine)
        wishes = wishes.together(more)
        try:
            member = None
            if wishes.subnet is not None:
                member = engine.member(Subnet.parse(wishes.subnet))
            elif wishes.quality is not None:
                member = engine.of_quality(wishes.quality, len(x))
            elif wishes.max_latency_ms is not None:
                member = engine.within(wishes.max_latency_ms, len(x))
            longest = wishes.max_latency_ms
            job = worker.submit(x, deadline_ms=wishes.deadline_ms, member=member, longest_ms=longest)
        except ValueError as error:
            raise BodyError(422, str(error)) from error
        return _answer(await asyncio.wrap_future(job.answer), engine.classes)

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

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counts for Prometheus."""
        return Response(records.prometheus(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def look() -> Response:
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": _PAGE_RULES})

    return app


async def _body(request: Request, most: int) -> bytes:
    """The body, unless it is too long or too slow."""
    chunks, size = [], 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                chunks.append(chunk)
                size += len(chunk)
                if size > most:
                    raise BodyError(413, f"a request has at most {most:,} bytes")
    except TimeoutError as error:
        raise BodyError(408, f"the request's body did not come within {_BODY_SECONDS:.0f} s") from error
    return b"".join(chunks)


def _answer(served: Served, classes: tuple[str, ...]) -> dict[str, Any]:
    """What the client is told."""
    if not np.isfinite(served.logits).all():
        raise BodyError(
            422, f"{served.member.label} has no finite answer to this: are the inputs prepared as it expects?"
        )
    raised = np.exp(served.logits.astype(np.float64) - served.logits.max(1, keepdims=True))
    shares = raised / raised.sum(1, keepdims=True)
    best = shares.argmax(1)
    return {
        "predictions": [
            {"class": classes[i] if classes else str(i), "index": int(i), "probability": round(float(row[i]), 6)}
            for i, row in zip(best, shares, strict=True)
        ],
        "probabilities": [[round(float(share), 6) for share in row] for row in shares],
        "member": {
            "subnet": str(served.member.subnet),
            "label": served.member.label,
            "accuracy": served.member.accuracy,
            "macs": served.member.macs,
        },
        "late": served.late,
        "waited_ms": round(1000 * served.waited, 3),
        "computed_ms": round(1000 * served.ran, 3),
        "examples_in_pass": served.examples,
    }


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
                "accuracy": member.accuracy,
                "test_accuracy": member.test_accuracy,
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
        "classes": engine.classes,
        "takes_pixels": engine.takes_pixels,
        "slo_ms": worker.slo_ms,
    }


def _accepted() -> dict[str, Any]:
    """What `predict` reads, for the description in OpenAPI."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    kinds: dict[str, Any] = {"application/json": {"schema": Body.model_json_schema()}}
    return {"requestBody": {"required": True, "content": kinds | dict.fromkeys((*NPY, *IMAGES), binary)}}


def _json(data: Any, status: int = 200, headers: Any = None) -> Response:
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return Response(text, status, headers, "application/json")
