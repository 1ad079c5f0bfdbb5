"""Connections that end: uvicorn's, with the limits that it has not.

uvicorn bounds neither the bytes of a request's head nor the time in which it comes, and refuses everybody while others
hold all connections and ask nothing. What follows counts and times, and leaves HTTP itself to uvicorn and httptools.
"""

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from telescopic.limits import Limits
from telescopic.serve.admission import REFUSAL
from telescopic.serve.bodies import BodyError
from telescopic.serve.door import foreign

_WATCHED = (b"/health", b"/metrics")
"""What is answered also while every connection has a request under way."""
ARRIVED = "telescopic.arrived"
"""In a request's scope: since when, by `time.perf_counter`, it may have been waiting for us: its head to be read, no
sooner than it was whole, and no sooner than the requests before it on its connection were answered."""
_COUNTED = sys.platform == "linux"  # whether the system says since when something waits to be read
_TICK = time.clock_getres(6) if _COUNTED else 0.0  # seconds from one of its counts to the next (CLOCK_MONOTONIC_COARSE)
_WAITED = 52  # where `tcpi_last_data_recv` is in its `tcp_info`: milliseconds
_SPARE = 100  # connections beyond all others, for those
_LAST = 1.0  # seconds at the end in which who is connected may ask once more, and is answered that it was the last time
_TOLD = 0.1  # seconds that uvicorn takes before it counts those of the end
CLOSING = 1.0
"""Seconds, of those of the end, in which a pass that still runs may end."""
_LINGER = 0.5  # seconds after which a connection that was closed on our side is closed on the other's
_PIECES, _PIECE = 4096, 64  # so many pieces of a body may be smaller than so many bytes
_CLOSE = b"connection: close\r\n"
_NEW, _HEAD, _BODY, _ANSWER, _IDLE, _OVER = range(6)


class Connection(HttpToolsProtocol):
    """One connection. What it may take, and which requests are refused (see `Admission`), is said of its class."""

    limits: Limits
    refuses: Callable[[bytes, float], bool] = staticmethod(lambda url, arrived: False)

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._state, self._since = _NEW, self.loop.time()
        self._stalled = 0.0
        self._head = self._length = self._requests = self._pieces = self._received = 0
        self._at_once = 0  # requests in what is read now
        self._refused: BodyError | None = None  # why the connection ends
        self._skipped = False  # this request is refused, and nothing of it is kept
        self._strangers: dict[Connection, None] = self.server_state.__dict__.setdefault("strangers", {})
        self._free = 0.0  # since when the client may ask, having its answer

    def connection_made(self, transport: Any) -> None:
        """Make room for it: who has asked nothing for longest goes."""
        super().connection_made(transport)
        self._strangers[self] = None
        if len(self.connections) > self.limits.connections:
            oldest = next(iter(self._strangers))
            if oldest is self:
                idle = [c for c in self.connections if isinstance(c, Connection) and c._state == _IDLE]
                oldest = min(idle, key=lambda connection: connection._since, default=self)
            if oldest is not self and not oldest._has_asked():
                oldest._end()
            elif len(self.connections) > self.limits.connections + _SPARE:
                transport.write(REFUSAL % _CLOSE)  # whatever it asks, which nobody reads
                self._end(flush=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        self._strangers.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what is no body: a line without an end, in the head or behind the body, reaches no other function."""
        if self._state == _OVER:
            return  # nobody can be answered any more
        self._head, self._at_once = self._head + len(data), 0
        super().data_received(data)
        if self._state in (_HEAD, _BODY) and self._head > self.limits.head and not self.transport.is_closing():
            self._end_with(431, f"a request's head has at most {self.limits.head:,} bytes")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._enter(_HEAD)
        self._length = 0

    def on_url(self, url: bytes) -> None:
        """A part of it."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of several."""
        super().on_header(name, value)
        self._count(len(name) + len(value))
        if len(self.headers) > self.limits.headers:
            raise self._told(431, f"a request has at most {self.limits.headers} headers")

    def on_headers_complete(self) -> None:
        """The head is whole: the request may be answered."""
        most = self.limits.pipelined
        if len(self.pipeline) >= most or self._at_once > most or self.transport.is_closing():
            raise self._told(429, f"at most {most} requests wait for the one before")
        self._head, self._requests, self._at_once = 0, self._requests + 1, self._at_once + 1
        self._pieces = self._received = 0
        arrived = max(self._free, time.perf_counter() - self._waited())
        self._enter(_BODY)
        if self._is_plain():
            crowded = len(self.connections) > self.limits.connections and self.url.partition(b"?")[0] not in _WATCHED
            if crowded or self.refuses(self.url, arrived):
                self._skipped = True
                return
        self.scope[ARRIVED] = arrived  # type: ignore[literal-required]
        super().on_headers_complete()
        self.cycle.keep_alive = self.cycle.keep_alive and self._stays()

    def on_body(self, body: bytes) -> None:
        """A part of the body; each takes time, so they must not be all too small."""
        if not self._skipped:
            super().on_body(body)
        self._head, self._pieces, self._received = 0, self._pieces + 1, self._received + len(body)
        if self._pieces > max(_PIECES, self._received / _PIECE):
            raise self._told(413, "a request's body comes in fewer pieces")

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._strangers.pop(self, None)
        if self._skipped:
            stays = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0" and self._stays()
            self._skipped = False
            self.transport.write(REFUSAL % (b"" if stays else _CLOSE))
            self._enter(_IDLE)
            self._free = time.perf_counter()
            if not stays:
                self.transport.close()
            return
        super().on_message_complete()
        if self.cycle.response_complete:
            self._enter(_IDLE)
        else:
            self._enter(_ANSWER)

    def on_response_complete(self) -> None:
        """The answer is written; the next request, if it is here, has waited for nothing but that."""
        self._free = time.perf_counter()
        if self.pipeline:
            self.pipeline[-1][0].scope[ARRIVED] = self._free  # type: ignore[literal-required]
        super().on_response_complete()
        if self._state == _ANSWER and not self.pipeline:
            self._enter(_IDLE)

    def pause_writing(self) -> None:
        """The client does not read."""
        self._stalled = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It does."""
        self._stalled = 0.0
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn answers to what is no HTTP; and we to what is too much."""
        if self.transport.is_closing():
            return
        refused = self._refused or BodyError(400, "this is no HTTP request")
        body = b'{"error":"%s"}' % str(refused).encode()
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[refused.status] + head + body)
        self._end(flush=True)

    def check(self, now: float) -> None:
        """End it, if it has taken longer than it may."""
        limits, passed = self.limits, now - self._since
        if self.transport.is_closing():
            if passed > limits.stalled_seconds:
                self.transport.abort()
        elif self._stalled and now - self._stalled > limits.stalled_seconds:
            self.transport.abort()
        elif self._state in (_HEAD, _BODY) and passed > (
            limits.head_seconds if self._state == _HEAD else limits.body_seconds + 1
        ):
            self._end_with(408, "the request did not come in time")
        elif (self._state == _NEW and passed > limits.head_seconds) or (
            self._state == _IDLE and passed > limits.idle_seconds
        ):
            self._end()

    def shutdown(self) -> None:
        """The server ends: what is under way is answered, and who has asked nothing is told by an end."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        elif self._state in (_NEW, _IDLE) and self.transport.can_write_eof() and not self.transport.is_closing():
            self._enter(_OVER)
            self.transport.write_eof()
            self.loop.call_later(_LINGER, self.transport.close)

    def give_up(self) -> None:
        """End it, unless there is nothing left but to answer."""
        if self._state != _ANSWER or self._stalled or self.transport.is_closing():
            self.transport.abort()

    def _enter(self, state: int) -> None:
        self._state, self._since = state, self.loop.time()

    def _is_plain(self) -> bool:
        """Whether what is always the same may be answered, and now."""
        free = (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused
        return (
            free
            and not self.expect_100_continue
            and self.parser.get_method() != b"HEAD"  # which has no body in its answer
            and not foreign(dict(self.headers))  # who must be told whether he may read it
        )

    def _stays(self) -> bool:
        """Whether another request may follow this one."""
        return self._requests < self.limits.requests and not self.server_state.__dict__.get("leaving")

    def _waited(self) -> float:
        """Seconds since the last of what is read came, or fewer; 0 where the system does not say."""
        facts = b""
        if _COUNTED:
            with contextlib.suppress(OSError), self._wire() as wire:  # not of sockets that are no TCP
                facts = wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _WAITED + 4)
        return max(int.from_bytes(facts[_WAITED:], sys.byteorder) / 1000 - _TICK, 0.0)

    def _has_asked(self) -> bool:
        """Whether there is something that was not read yet."""
        with contextlib.suppress(OSError), self._wire() as wire:
            return self._state in (_NEW, _IDLE) and bool(wire.recv(1, socket.MSG_PEEK))
        return False

    @contextlib.contextmanager
    def _wire(self) -> Iterator[socket.socket]:
        """What the loop has of it, lent: for that one to close."""
        taken = self.transport.get_extra_info("socket")
        wire = socket.socket(taken.family, taken.type, taken.proto, taken.fileno())
        try:
            yield wire
        finally:
            wire.detach()

    def _count(self, length: int) -> None:
        self._length += length
        if self._length > self.limits.head:
            raise self._told(431, f"a request's head has at most {self.limits.head:,} bytes")

    def _told(self, status: int, why: str) -> BodyError:
        self._refused = BodyError(status, why)
        return self._refused

    def _end_with(self, status: int, why: str) -> None:
        self._told(status, why)
        self.send_400_response("")

    def _end(self, *, flush: bool = False) -> None:
        self._since = self.loop.time()
        self._strangers.pop(self, None)
        if flush:
            self.transport.close()
        else:
            self.connections.discard(self)  # now, for whoever comes next is counted before it is lost
            self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn's, which looks at all connections once a second."""

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in self._connections():
                connection.check(now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what has come. What has not, and who does not read, is waited for until little time is left.

        Connections that the system has taken in are ours, too. Each answer says that it is the connection's last, so
        that no client asks while we close; for who is between two questions there is some time to ask the last.
        """
        loop, whole = asyncio.get_running_loop(), self.config.timeout_graceful_shutdown or 0
        began, seconds = loop.time(), whole * 3 / 4
        waiting = loop.call_later(seconds, self._give_up)
        self.server_state.__dict__["leaving"] = True
        for connection in self._connections():
            if connection.cycle is not None:
                connection.cycle.keep_alive = False
        wires = [wire for listening in sockets or () for wire in _taken(listening)]
        for server in self.servers:
            server.close()
        for wire in wires:
            await loop.connect_accepted_socket(self._connection, wire)
        end = began + min(_LAST, seconds)
        while self.server_state.connections and loop.time() < end:
            await asyncio.sleep(0.01)
        left: Any = max(began + whole - loop.time() - _TOLD - CLOSING, 0)  # uvicorn says int, and takes any number
        self.config.timeout_graceful_shutdown = left
        await super().shutdown(sockets)
        waiting.cancel()

    def _connection(self) -> Connection:
        made: Any = self.config.http_protocol_class
        connection: Connection = made(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        return connection

    def _connections(self) -> list[Connection]:
        return [each for each in self.server_state.connections if isinstance(each, Connection)]

    def _give_up(self) -> None:
        for connection in self._connections():
            connection.give_up()


def _taken(listening: socket.socket) -> Iterator[socket.socket]:
    """Connections of a socket that nobody has accepted yet, and which closing it would reset."""
    while True:
        try:
            yield listening.accept()[0]
        except ConnectionAbortedError:  # of this one; others wait behind it
            continue
        except OSError:  # there are no more, or no room for them
            return
