import threading
from itertools import pairwise

import numpy as np
import pytest

import telescopic as tl
from telescopic.engine.manifest import Packed

from machine import MEMBERS, MS, Machine
from simulation import Outcome, simulate

SLO = 20.0


def controlled(machine: Machine, **options: float) -> tl.Controller:
    return tl.Controller(machine, slo_ms=SLO, clock=lambda: machine.now, **options)


def serve(arrivals: list[float], slow=lambda now: 1.0, **options: float) -> tuple[Outcome, tl.Controller]:
    """A queue before a machine that a controller steers; one request a pass."""
    machine = Machine()
    controller = controlled(machine, **options)

    def policy(now, deadlines):
        machine.now = now
        return controller.choose(slacks_ms=[1000 * (d - now) for d in deadlines]).member, 1

    outcome = simulate(
        policy,
        arrivals,
        lambda member, batch, now: slow(now) * machine.timing(member.subnet, batch).median_ms / 1000,
        slo_ms=SLO,
        told=lambda member, batch, seconds: controller.observe(member.subnet, batch, seconds),
    )
    return outcome, controller


def every(seconds: float, begin: float, end: float) -> list[float]:
    return list(np.arange(begin, end, seconds))


def share(outcome: Outcome, member: Packed, begin: float, end: float) -> float:
    """Of the requests that came in that time, how many a member has answered."""
    return float(np.mean([r.member is member for r in outcome.requests if begin <= r.arrived < end]))


def test_the_largest_that_fits_the_deadline() -> None:
    for slack, place in ((20, 3), (15.1, 3), (14.9, 2), (9, 2), (8.9, 1), (4.5, 1), (3, 0), (0.1, 0), (-5, 0)):
        decision = controlled(Machine()).choose(slacks_ms=[slack])  # with a fifth to spare: it is the first
        assert decision.member is MEMBERS[place], slack
        assert decision.fits == (1.2 * MS[place] <= slack)
    machine = Machine()
    controller = controlled(machine)
    assert controller.choose(slacks_ms=[20]).member is MEMBERS[3]
    assert controller.choose(slacks_ms=[12.1]).member is MEMBERS[3]  # which stays where it still fits
    assert controller.choose(slacks_ms=[11.9]).member is MEMBERS[2]


def test_all_that_waits_counts() -> None:
    # The third of three must be done in its own time, behind two others: a pass may take 15 ms / 3.
    decision = controlled(Machine()).choose(slacks_ms=[20, 20, 15])
    assert decision.member is MEMBERS[1] and (decision.waiting, decision.slack_ms) == (3, 20)
    assert controlled(Machine()).choose(slacks_ms=[20, 40, 60]).member is MEMBERS[3]
    assert controlled(Machine()).choose(8, slacks_ms=[25]).member is MEMBERS[1]  # a batch takes longer
    why = controlled(Machine()).choose(slacks_ms=[1, 1]).why
    assert why == "exit=0: 1.2 ms expected and nothing fits (2 waiting, 1 ms left, slow-down 1.00)"
    with pytest.raises(ValueError, match="nothing to choose a member for"):
        controlled(Machine()).choose(slacks_ms=[])


def test_goes_down_at_once_and_up_with_patience() -> None:
    machine = Machine()
    controller = controlled(machine, patience=0.1)
    assert controller.choose().member is MEMBERS[3]
    machine.now = 0.01
    assert controller.choose(slacks_ms=[4]).member is MEMBERS[1]
    for now in (0.02, 0.05, 0.11):
        machine.now = now
        assert controller.choose().member is MEMBERS[1]
    machine.now = 0.13  # it has fitted since 0.02
    assert controller.choose().member is MEMBERS[3]
    machine.now = 0.14
    controller.choose(slacks_ms=[4])
    machine.now = 0.15
    controller.choose()
    machine.now = 0.2
    assert controller.choose(slacks_ms=[8.9]).member is MEMBERS[1]  # fits the third member, with nothing to spare
    machine.now = 0.26
    assert controller.choose().member is MEMBERS[1]  # so its patience begins anew
    machine.now = 0.34
    controller.choose(slacks_ms=[10])
    machine.now = 0.37
    assert controller.choose().member is MEMBERS[2]  # the smallest of those that fitted all the time
    machine.now = 0.38
    controller.choose(slacks_ms=[3])
    machine.now = 0.49
    assert controller.choose().member is MEMBERS[3]  # after a pause as long nothing holds it back


def test_does_not_flap() -> None:
    # Slack that swings around what a member takes: without patience each swing would be a switch.
    switches = {}
    for patience in (0.0, 0.1):
        machine, seen = Machine(), []
        controller = controlled(machine, patience=patience)
        for turn in range(200):
            machine.now += 0.005
            seen.append(controller.choose(slacks_ms=[20 if turn % 2 else 10]).member)
        switches[patience] = sum(a is not b for a, b in pairwise(seen))
    assert switches == {0.0: 199, 0.1: 0}


def test_load_steps() -> None:
    # 50, then 250, then 50 requests a second; the largest member serves 100, the second 333.
    arrivals = every(0.02, 0, 2) + every(0.004, 2, 4) + every(0.02, 4, 6)
    outcome, _ = serve(arrivals)
    assert share(outcome, MEMBERS[3], 0, 2) == 1 and share(outcome, MEMBERS[3], 4.3, 6) == 1
    assert outcome.late == 0 and outcome.p99_ms <= SLO
    high = [r.member.accuracy for r in outcome.requests if 2 <= r.arrived < 4]
    assert np.mean(high) > 0.7  # above the smallest member's 0.6
    assert outcome.switches < 60
    again, _ = serve(arrivals)
    assert again == outcome  # the same every time


def test_the_machine_slows_down() -> None:
    outcome, controller = serve(every(0.03, 0, 6), lambda now: 2.5 if 2 <= now < 4 else 1.0)
    assert share(outcome, MEMBERS[3], 0, 2) == 1
    late = [r.arrived for r in outcome.requests if r.finished > r.deadline]
    assert late and max(late) < 2.1 and len(late) <= 3  # until it has seen it
    assert share(outcome, MEMBERS[2], 2.2, 3.9) == 1  # 6 ms take 15 now
    assert share(outcome, MEMBERS[3], 4.6, 6) == 1 and controller.slowdown == pytest.approx(1, abs=0.01)


def test_a_burst() -> None:
    outcome, _ = serve([*every(0.05, 0, 1), *[1.0] * 12, *every(0.05, 1.05, 2)])
    assert outcome.late == 0 and len(outcome.requests) == 51
    burst = [r.member for r in outcome.requests if r.arrived == 1.0]
    assert set(burst) == {MEMBERS[0]} and share(outcome, MEMBERS[3], 1.35, 2) == 1


def test_an_idle_night() -> None:
    # Slow in the evening, and the same machine is fast in the morning.
    outcome, _ = serve([*every(0.02, 0, 1), *every(0.02, 30_000, 30_001)], lambda now: 4.0 if now < 1.5 else 1.0)
    assert share(outcome, MEMBERS[1], 0.6, 1) == 1
    assert outcome.requests[50].member is MEMBERS[1]  # what it knew of the machine holds until it learns better
    assert share(outcome, MEMBERS[3], 30_000.5, 30_001) == 1
    assert not [r for r in outcome.requests if r.arrived > 2 and r.finished > r.deadline]


def test_more_than_the_smallest_can_do() -> None:
    outcome, _ = serve(every(0.0005, 0, 0.2))  # twice what it can
    assert {r.member for r in outcome.requests[30:]} == {MEMBERS[0]}
    assert len(outcome.requests) == 400  # late, but none is lost
    assert outcome.p99_ms == pytest.approx(200, rel=0.1)


def test_runs_and_observes() -> None:
    machine = Machine()
    controller, x = controlled(machine), np.zeros((1, 3), np.float32)
    assert controller.run(x).subnet == MEMBERS[3].subnet and controller.slowdown == pytest.approx(1)
    machine.slow = 3.0
    controller.run(x)
    learnt = 1 + 0.2 * ((30 + 0.2) / (10 + 0.2) - 1)  # 30 ms in place of 10, and a hundredth of the objective
    assert controller.slowdown == pytest.approx(learnt)
    machine.slow = 1e9
    controller.run(x)
    assert controller.slowdown == pytest.approx(learnt + 0.2 * (100 - learnt))  # one such pass is not everything
    assert controller.run(x).subnet == MEMBERS[0].subnet
    for deadline in (0, -1):
        with pytest.raises(ValueError, match="a deadline is more than 0 ms"):
            controller.run(x, deadline_ms=deadline)
    for options in ({"slo_ms": 0}, {"slo_ms": 1, "patience": -1}):
        with pytest.raises(ValueError, match="an objective is above 0 ms"):
            tl.Controller(machine, **options)


def test_calls_of_other_threads_wait_before() -> None:
    machine = Machine()
    controller, x = controlled(machine), np.zeros((1, 3), np.float32)
    started, go = threading.Barrier(4), threading.Event()
    run = machine.run

    def held(x, subnet):
        started.wait()
        go.wait()
        return run(x, subnet)

    machine.run = held
    answers = []
    workers = [threading.Thread(target=lambda: answers.append(controller.run(x))) for _ in range(3)]
    for worker in workers:
        worker.start()
    started.wait()
    assert controller._running == 3
    machine.run = run
    assert controller.run(x).subnet == MEMBERS[1].subnet  # three others: 5 ms for each
    go.set()
    for worker in workers:
        worker.join()
    assert controller._running == 0 and len(answers) == 3
    with pytest.raises(TypeError, match="len"):
        controller.run(1)
    assert controller._running == 0


def test_simulated_queue() -> None:
    # Two come together, and are run together; the third waits for them.
    outcome = simulate(
        lambda now, deadlines: (MEMBERS[1], 2), [0.0, 0.0, 0.001], lambda member, batch, now: 0.01 * batch, slo_ms=25
    )
    assert [(r.arrived, r.finished) for r in outcome.requests] == [(0, 0.02), (0, 0.02), (0.001, 0.03)]
    assert outcome.late == pytest.approx(1 / 3) and outcome.accuracy == pytest.approx(0.75 * 2 / 3)
    assert outcome.switches == 0 and 20 < outcome.p99_ms <= 29


def test_a_trifle_is_no_slow_machine() -> None:
    # A member that takes 10 µs may take 20 times as long because its thread was woken late: that says nothing about one
    # of 10 ms, which would never come back if it did.
    controller = controlled(Machine())
    controller._tables[1] = controller.engine.timings, [(MEMBERS[0], 0.01, 0.02), (MEMBERS[3], 10.0, 12.0)]
    for _ in range(50):
        controller.observe(MEMBERS[0].subnet, 1, 0.0002)
    assert controller.slowdown == pytest.approx((0.2 + 0.2) / (0.01 + 0.2), rel=1e-3)
