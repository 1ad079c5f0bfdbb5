"""How long a request may have waited before it is read, as an event loop's turns tell it."""

from collections.abc import Callable

import pytest

from telescopic.serve.connections import Turns


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
