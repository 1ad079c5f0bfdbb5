"""Who is let in, as far as a request's head tells. Where more is asked than can be answered, refusing must be cheap.

Time that a request waits outside, in the system's queues, is counted by nobody; so connections ask the system for it.
What is let in waits for its turn to be read, and then in the queue for a pass. If by all this it would be late, or the
queue would have no place for it, it is refused now, and nothing but its head was read.
"""

import asyncio
import time
from collections.abc import Callable

from telescopic.serve.bodies import BodyError, wishes
from telescopic.serve.door import ALWAYS
from telescopic.serve.worker import Worker

_BODY = b'{"error":"more is asked than can be answered in time: try again in 1 s"}'
REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    + b"".join(b"%s: %s\r\n" % header for header in ALWAYS)
    + b"content-length: %d\r\n%%s\r\n%s" % (len(_BODY), _BODY)
)
"""What is answered at once, whatever was asked; where `%s` stands there is room for a header."""
_GAIN = 0.2  # of the newest turn in what a request takes to be read


class Admission:
    """Refuses predictions that would be late, by their heads.

    Args:
        worker: has the queue.
        told: is told of each request that is refused, how many seconds it waited.
        clock: what time it is, in seconds.
    """

    def __init__(
        self, worker: Worker, told: Callable[[float], None], *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._worker, self._told, self._clock = worker, told, clock
        self._let_in, self._took, self._last = 0, 0.0, 0.0

    def refuses(self, url: bytes, arrived: float) -> bool:
        """Whether a request is refused. Otherwise it is thought that the loop handles it in this turn.

        Args:
            url: path and query.
            arrived: since when it waits to be read, in seconds.
        """
        path, _, query = url.partition(b"?")
        if path != b"/predict":
            return False
        due = self._worker.slo_ms
        if b"deadline_ms" in query:
            try:
                due = max(due, wishes(query).deadline_ms or 0.0)
            except BodyError:  # which it will be told
                return False
        now = self._clock()
        lag = now - arrived + self._let_in * self._took
        # If all have waited for too long, there are so many that to refuse them takes the time. Some are answered then.
        if 1000 * (now - self._last) < due and not self._worker.room(lag, due / 1000, self._let_in + 1):
            self._told(now - arrived)
            return True
        if not self._let_in:
            asyncio.get_running_loop().call_soon(self._begun, asyncio.get_running_loop())
        self._let_in, self._last = self._let_in + 1, now
        return False

    def _begun(self, loop: asyncio.AbstractEventLoop) -> None:
        """All that were let in are begun in this turn of the loop: what comes later does not wait for them."""
        number, self._let_in = self._let_in, 0
        loop.call_soon(self._ended, number, self._clock())

    def _ended(self, number: int, began: float) -> None:
        self._took += _GAIN * ((self._clock() - began) / number - self._took)
