"""What one request, one connection and all of them together may take. Every bound of the server is here."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Bounds, each with what is answered beyond it.

    Attributes:
        body: bytes of a request's body; 413.
        body_seconds: in which a body must have come; 408.
        bodies: bytes of all bodies above 64 kB that are here at once; 503.
        head: bytes of a request's line and headers; 431.
        headers: of a request; 431.
        head_seconds: in which they must have come, and the first request of a connection have begun; 408.
        idle_seconds: that a connection may wait for its next request; longer than load balancers keep one, or it is
            closed while they send.
        stalled_seconds: that a client may leave an answer unread; the connection is closed.
        pipelined: requests of a connection that wait for the one before; 429.
        requests: of a connection, which is closed after them.
        connections: at once. Beyond them that one is closed which has longest been without a question; if all have
            one, 503, but for `/health` and `/metrics`.
        pixels: of an image file; 413.
        decoders: processes that decode image files, one file at a time.
        decoding: image files that wait for them or are with them; 503.
        decoding_seconds: for one file, which may wait as long for its turn; 422.
        stop_seconds: in which all that was taken in is answered at the end.
    """

    body: int = 2**23
    body_seconds: float = 10.0
    bodies: int = 2**26
    head: int = 2**14
    headers: int = 100
    head_seconds: float = 10.0
    idle_seconds: float = 75.0
    stalled_seconds: float = 10.0
    pipelined: int = 16
    requests: int = 100_000
    connections: int = 1000
    pixels: int = 2**24
    decoders: int = 2
    decoding: int = 128
    decoding_seconds: float = 3.0
    stop_seconds: float = 8.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} is more than 0, not {getattr(self, field.name)}")
