"""A machine that stands for a calibrated engine, in simulated time."""

import numpy as np

import telescopic as tl
from telescopic.runtime.manifest import Packed
from telescopic.runtime.timings import Timing, Timings
from telescopic.subnet import Subnet

MS = (1.0, 3.0, 6.0, 10.0)  # medians of the members, for one example
MEMBERS = tuple(
    Packed(Subnet(entry=0, exit=i, width=1), f"exit={i}", accuracy, None, 100 * i + 1, 10, (), "logits")
    for i, accuracy in enumerate((0.6, 0.75, 0.85, 0.9))
)


class Machine:
    """Stands for an engine: members take what the table says, times how slow the machine is now."""

    def __init__(self) -> None:
        self.members, self.input_shape = MEMBERS, (3,)
        rows = [(b, m.subnet, ms * (0.5 + 0.5 * b)) for b in (1, 8) for m, ms in zip(MEMBERS, MS, strict=True)]
        self.timings = Timings([Timing(subnet, batch, 1, ms, 1.2 * ms) for batch, subnet, ms in rows])
        self.now, self.slow = 0.0, 1.0

    def front(self, batch: int = 1) -> tuple[Packed, ...]:
        return self.members

    def timing(self, subnet: Subnet, batch: int = 1) -> Timing:
        found = self.timings.at(subnet, batch, 1)
        assert found is not None
        return found

    def run(self, x: np.ndarray, subnet: Subnet) -> tl.Prediction:
        seconds = self.slow * self.timing(subnet, len(x)).median_ms / 1000
        self.now += seconds
        return tl.Prediction(np.zeros((len(x), 2), np.float32), subnet, str(subnet), None, seconds)
