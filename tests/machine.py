"""The machine that several tests simulate: four members, which a batch of 8 takes 4.5 times as long."""

import simulation

MS = (1.0, 3.0, 6.0, 10.0)  # medians of the members, for one example
TABLE = tuple(zip((0.6, 0.75, 0.85, 0.9), MS, strict=True))
MEMBERS = simulation.Machine(TABLE, (1, 8), each=0.5).members


class Machine(simulation.Machine):
    """Always with the same members, so that tests may ask which one it is."""

    def __init__(self) -> None:
        super().__init__(TABLE, (1, 8), each=0.5)
        self.members = MEMBERS
