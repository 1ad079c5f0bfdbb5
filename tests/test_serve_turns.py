"""How long a request has waited before it is read, who is refused by his request's head, and a connection's end."""

import asyncio
import socket
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from telescopic.limits import Limits
from telescopic.serve import connections
from telescopic.serve.admission import Admission
from telescopic.serve.connections import ARRIVED, Connection, Server


class Wire(asyncio.Transport):
    """What a connection writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closed, self.half = b"", False, False

    def write(self, data: Any) -> None:
        assert not self.half, "Cannot call write() after write_eof()"
        self.written += bytes(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.half = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


ASKED = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Asked:
    """A connection in a running loop, by a clock that is set by hand, and an application that answers when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limits: Limits | None = None) -> None:
        self.now, self.waited, self.arrived, self.may = 100.0, 0.0, list[float](), asyncio.Semaphore(0)
        self.refused, self.told = False, list[tuple[bytes, float]]()
        monkeypatch.setattr(connections, "time", SimpleNamespace(perf_counter=lambda: self.now))
        self._config, self._state = uvicorn.Config(self._app, interface="asgi3", lifespan="off"), ServerState()
        self._config.load()
        self._class: Any = type("Limited", (Connection,), {"limits": limits or Limits(), "refuses": self._refuses})
        self._class._waited = lambda connection: self.waited
        self.connection, self.wire = self.connected()

    def connected(self) -> tuple[Connection, Wire]:
        """Another one."""
        made = self._class(config=self._config, server_state=self._state, app_state={})
        made.connection_made(wire := Wire())
        return made, wire

    def _refuses(self, url: bytes, arrived: float) -> bool:
        self.told.append((url, arrived))
        return self.refused

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.arrived.append(scope[ARRIVED])
        await self.may.acquire()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def gets(self, data: bytes, *, now: float) -> None:
        self.now = now
        self.connection.data_received(data)
        await self._turns()

    async def answers(self, *, now: float) -> None:
        self.now = now
        self.may.release()
        await self._turns()

    async def _turns(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


def test_what_a_client_takes_to_send_a_head_is_no_waiting_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        asked = Asked(monkeypatch)
        await asked.gets(ASKED[:20], now=100.0)
        await asked.gets(ASKED[20:], now=107.0)
        assert asked.arrived == [107.0]
        await asked.answers(now=108.0)
        await asked.gets(ASKED, now=109.0)
        await asked.answers(now=110.0)
        asked.waited = 2.0
        await asked.gets(ASKED, now=115.0)
        await asked.answers(now=115.5)
        await asked.gets(ASKED, now=116.0)  # two seconds before, he had no answer yet
        assert asked.arrived == [107.0, 109.0, 113.0, 115.5]

    asyncio.run(run())


def test_who_asks_before_his_last_answer_waits_for_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        asked = Asked(monkeypatch)
        await asked.gets(3 * ASKED, now=100.0)
        await asked.answers(now=105.0)
        await asked.answers(now=111.0)
        assert asked.arrived == [100.0, 105.0, 111.0]
        await asked.answers(now=112.0)
        assert asked.wire.written.count(b" 200 OK") == 3

    asyncio.run(run())


POSTED = b"POST /predict?x=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n%s\r\n"


def test_who_is_refused_is_told_so_when_his_body_is_there_and_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        asked = Asked(monkeypatch)
        asked.refused, asked.waited = True, 3.0
        await asked.gets(POSTED % b"" + b"one", now=110.0)
        assert asked.told == [(b"/predict?x=1", 107.0)] and not asked.wire.written
        await asked.gets(b"two" + POSTED % b"" + b"onetwo", now=111.0)
        assert asked.wire.written.count(b"HTTP/1.1 503 Service Unavailable\r\n") == 2 and not asked.wire.closed
        head, _, body = asked.wire.written.partition(b"\r\n\r\n")
        assert b"retry-after: 1" in head and b"content-length: %d" % body.index(b"HTTP") in head
        asked.refused = False
        await asked.gets(POSTED % b"" + b"onetwo", now=112.0)
        asked.refused = True
        await asked.gets(POSTED % b"" + b"onetwo", now=113.0)  # behind one that is being answered: in his turn
        await asked.answers(now=114.0)
        await asked.answers(now=115.0)
        assert asked.wire.written.count(b" 200 OK") == 2 and len(asked.arrived) == 2
        await asked.gets(POSTED % b"Expect: 100-continue\r\n", now=116.0)  # he waits to be told to go on
        assert len(asked.arrived) == 3
        await asked.answers(now=117.0)
        asked.wire.written = b""
        await asked.gets(b"onetwo" + POSTED % b"Connection: close\r\n" + b"onetwo", now=118.0)
        assert asked.wire.written.startswith(b"HTTP/1.1 503") and b"connection: close" in asked.wire.written
        assert asked.wire.closed

    asyncio.run(run())


def test_a_refusal_that_is_the_last_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        asked = Asked(monkeypatch, Limits(requests=2))
        asked.refused = True
        await asked.gets(2 * (POSTED % b"" + b"onetwo"), now=101.0)
        first, _, second = asked.wire.written.partition(b"}HTTP")
        assert b"connection: close" not in first and b"connection: close" in second and asked.wire.closed

    asyncio.run(run())


def test_beyond_all_connections_who_asks_nothing_goes_and_no_question_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        asked = Asked(monkeypatch, Limits(connections=2))
        await asked.gets(ASKED, now=101.0)  # its first request is under way: no stranger any more
        monkeypatch.setattr(Connection, "_has_asked", lambda self: True)
        _, unread = asked.connected()
        third, crowded = asked.connected()  # has the second one's question, which nobody has read, behind it
        assert not (asked.wire.closed or unread.closed or crowded.closed)
        third.data_received(ASKED)
        assert crowded.written.startswith(b"HTTP/1.1 503") and not crowded.closed
        monkeypatch.setattr(connections, "_SPARE", 1)
        _, beyond = asked.connected()
        assert beyond.written.startswith(b"HTTP/1.1 503") and b"connection: close" in beyond.written and beyond.closed
        monkeypatch.setattr(Connection, "_has_asked", lambda self: False)
        _, last = asked.connected()
        assert unread.closed and not unread.written and not last.closed and not asked.wire.closed

    asyncio.run(run())


@pytest.mark.skipif(sys.platform != "linux", reason="this system does not say since when something waits to be read")
def test_what_waits_outside_is_counted() -> None:
    waited, asked = list[float](), list[bool]()

    class Noting(Connection):
        limits = Limits()

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            asked.append(self._has_asked())

        def data_received(self, data: bytes) -> None:
            waited.append(self._waited())

    async def run() -> None:
        config, state = uvicorn.Config(lambda: None, lifespan="off"), ServerState()
        config.load()
        made: Any = Noting
        server = await asyncio.get_running_loop().create_server(
            lambda: made(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            client.sendall(b"x")
            time.sleep(0.3)  # the loop is busy, and nobody has taken the connection in
            while len(waited) < 1:
                await asyncio.sleep(0.01)
            client.sendall(b"x")
            time.sleep(0.2)
            while len(waited) < 2:
                await asyncio.sleep(0.01)
        with socket.create_connection(server.sockets[0].getsockname()):
            while len(asked) < 2:
                await asyncio.sleep(0.01)
        server.close()

    asyncio.run(run())
    assert waited[0] > 0.25 and waited[1] > 0.15 and asked == [True, False]


class Busy:
    """A worker's queue: who has waited for half of his time, and how many are let in at once, is said by hand."""

    def __init__(self) -> None:
        self.slo_ms, self.places, self.asked = 100.0, 100, list[tuple[float, float, int]]()

    def room(self, lag: float, due: float, requests: int) -> bool:
        self.asked.append((round(lag, 6), due, requests))
        return 2 * lag < due and requests <= self.places


def test_who_would_be_late_is_refused() -> None:
    async def run() -> None:
        worker: Any = Busy()
        told, now = list[float](), 100.0
        admission = Admission(worker, told.append, clock=lambda: now)

        def refused(waited: float, url: bytes = b"/predict") -> bool:
            return admission.refuses(url, now - waited)

        assert not refused(9.0)  # who comes when nobody was let in for long
        assert not refused(0.04) and refused(0.06) and told == [pytest.approx(0.06)]
        assert not refused(0.06, b"/health") and not refused(0.06, b"/predict?deadline_ms=200")
        assert not refused(0.06, b"/predict?deadline_ms=x")  # will be told so
        now += 0.09
        assert refused(0.06)
        await asyncio.sleep(0)
        now += 0.03  # in which the three that were let in are begun
        await asyncio.sleep(0)
        for _ in range(30):  # ten ms each, in the end
            assert not refused(0.0)
            await asyncio.sleep(0)
            now += 0.01
            await asyncio.sleep(0)
        # A turn's fifth one waits 40 ms for those before it, the sixth one 50.
        assert [refused(0.001) for _ in range(8)] == 5 * [False] + 3 * [True]
        await asyncio.sleep(0)
        assert not refused(0.001)
        worker.places = 2
        assert not refused(0.0) and refused(0.0)
        assert worker.asked[-1] == (pytest.approx(0.02, abs=0.001), 0.1, 3)

    asyncio.run(run())


def test_what_comes_after_the_end_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        asked = Asked(monkeypatch)
        await asked.gets(ASKED, now=100.0)
        await asked.answers(now=101.0)
        asked.connection.shutdown()
        assert asked.wire.half and asked.wire.written.count(b" 200 OK") == 1
        await asked.gets(ASKED, now=102.0)
        await asked.answers(now=103.0)
        assert asked.arrived == [100.0]

    asyncio.run(run())


def test_uvicorn_is_given_what_is_left_of_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[float | None]()

    async def shutdown(self: uvicorn.Server, sockets: object = None) -> None:
        given.append(self.config.timeout_graceful_shutdown)

    async def run() -> None:
        server = Server(uvicorn.Config(lambda: None, timeout_graceful_shutdown=8))
        server.servers = []
        server.server_state.connections.add(Asked(monkeypatch).connection)
        await server.shutdown()

    monkeypatch.setattr(uvicorn.Server, "shutdown", shutdown)
    monkeypatch.setattr(connections, "_LAST", 0.3)
    asyncio.run(run())
    assert given[0] is not None and 0 < given[0] <= 8 - 0.3 - 0.1 - connections.CLOSING


def test_one_that_went_away_does_not_keep_others_from_being_taken_in() -> None:
    came: list[Any] = [("first", 0), ConnectionAbortedError(), ("second", 0), BlockingIOError(), ("never", 0)]

    class Listening:
        def accept(self) -> Any:
            if isinstance(one := came.pop(0), Exception):
                raise one
            return one

    taken: Any = Listening()
    assert list(connections._taken(taken)) == ["first", "second"]
