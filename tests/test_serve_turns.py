"""How long a request may have waited before it is read, as an event loop's turns tell it; and a connection's end."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from telescopic.limits import Limits
from telescopic.serve import connections
from telescopic.serve.connections import ARRIVED, Connection, Server, Turns


class Loop:
    """Turns of an event loop that reads after what was called soon, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.now, self.soon = 100.0, list[Callable[[], None]]()
        self.turns = Turns(self.soon.append, lambda: self.now)

    def turn(self, *, reads: bool, seconds: float) -> float:
        """What is told of something that is read in a turn, which takes so long."""
        due, self.soon[:] = [*self.soon], []
        for each in due:
            each()
        told = self.turns.since() if reads else 0.0
        self.now += seconds
        return told


def test_how_long_a_request_has_waited_to_be_read_is_known_from_turns_of_the_loop() -> None:
    loop = Loop()
    assert loop.turn(reads=True, seconds=0.05) == 100.0  # the loop has waited for it
    assert loop.turn(reads=True, seconds=0.02) == 100.0  # came while the one before was read
    assert loop.turn(reads=True, seconds=0.02) == 100.05
    loop.turn(reads=False, seconds=0.3)  # answers; what comes meanwhile is read in the next one
    assert loop.turn(reads=True, seconds=0.0001) == pytest.approx(100.09)
    loop.turn(reads=False, seconds=0.0001)
    loop.turn(reads=False, seconds=0.0001)
    assert not loop.soon  # nobody asks: nothing is watched
    loop.now = 200.0
    assert loop.turn(reads=True, seconds=0.01) == 200.0


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

    def __init__(self) -> None:
        self.now, self.arrived, self.may = 100.0, list[float](), asyncio.Semaphore(0)
        config, state, self.wire = uvicorn.Config(self._app, interface="asgi3", lifespan="off"), ServerState(), Wire()
        config.load()
        state.__dict__["turns"] = Turns(asyncio.get_running_loop().call_soon, lambda: self.now)
        made: Any = type("Limited", (Connection,), {"limits": Limits()})
        self.connection: Connection = made(config=config, server_state=state, app_state={})
        self.connection.connection_made(self.wire)

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


def test_what_a_client_takes_to_send_a_head_is_no_waiting_of_ours() -> None:
    async def run() -> None:
        asked = Asked()
        await asked.gets(ASKED[:20], now=100.0)
        await asked.gets(ASKED[20:], now=107.0)
        assert asked.arrived == [107.0]
        await asked.answers(now=108.0)
        await asked.gets(ASKED, now=109.0)
        assert asked.arrived == [107.0, 109.0]

    asyncio.run(run())


def test_who_asks_before_his_last_answer_waits_for_himself() -> None:
    async def run() -> None:
        asked = Asked()
        await asked.gets(3 * ASKED, now=100.0)
        await asked.answers(now=105.0)
        await asked.answers(now=111.0)
        assert asked.arrived == [100.0, 105.0, 111.0]
        await asked.answers(now=112.0)
        assert asked.wire.written.count(b" 200 OK") == 3

    asyncio.run(run())


def test_what_comes_after_the_end_is_not_run() -> None:
    async def run() -> None:
        asked = Asked()
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
        server.server_state.connections.add(Asked().connection)
        await server.shutdown()

    monkeypatch.setattr(uvicorn.Server, "shutdown", shutdown)
    monkeypatch.setattr(connections, "_LAST", 0.3)
    asyncio.run(run())
    assert given[0] is not None and 0 < given[0] <= 8 - 0.3 - 0.1


def test_one_that_went_away_does_not_keep_others_from_being_taken_in() -> None:
    came: list[Any] = [("first", 0), ConnectionAbortedError(), ("second", 0), BlockingIOError(), ("never", 0)]

    class Listening:
        def accept(self) -> Any:
            if isinstance(one := came.pop(0), Exception):
                raise one
            return one

    taken: Any = Listening()
    assert list(connections._taken(taken)) == ["first", "second"]
