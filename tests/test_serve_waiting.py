import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import telescopic as tl
from telescopic.serve.waiting import Job, Overloaded, Pass, Waiting

from machine import MEMBERS, Machine

SLO = 20.0


def queue(machine: Machine | None = None, **bounds: int) -> Waiting:
    machine = machine or Machine()
    controller = tl.Controller(machine, slo_ms=SLO, clock=lambda: machine.now)  # type: ignore[arg-type]
    return Waiting(controller, **{"max_batch": 8, **bounds})


def job(due_ms: float = SLO, examples: int = 1, member=None, longest_ms: float = float("inf")) -> Job:
    return Job(np.zeros((examples, 3), np.float32), 0.0, due_ms / 1000, member, longest_ms / 1000)


def test_one_that_comes_alone_is_run_by_the_largest_member_that_is_in_time() -> None:
    waiting = queue()
    waiting.put(only := job())
    assert waiting.take(0.0) == Pass(MEMBERS[3], (only,))  # 12 ms of 20
    assert waiting.take(0.0) is None and waiting.examples == 0 and len(waiting) == 0
    waiting.put(hurried := job(due_ms=4))
    assert waiting.take(0.0) == Pass(MEMBERS[1], (hurried,))  # 3.6 ms, where the next larger takes 7.2


def test_the_most_urgent_come_first() -> None:
    waiting = queue(max_batch=2)
    jobs = {due: job(due_ms=due) for due in (19, 16, 18, 17)}
    for each in jobs.values():
        waiting.put(each)
    first, second = waiting.take(0.0), waiting.take(0.0)
    assert first is not None and first.jobs == (jobs[16], jobs[17])
    assert second is not None and second.jobs == (jobs[18], jobs[19])
    same = [job(due_ms=15), job(due_ms=15)]
    for each in same:
        waiting.put(each)
    assert waiting.take(0.0).jobs == tuple(same)  # of equals, who came first


def test_a_pass_is_no_longer_than_the_most_urgent_can_wait() -> None:
    # The fastest member takes 1.2 ms for one, 2.8 for four, 5.4 ms for eight.
    waiting = queue()
    for _ in range(8):
        waiting.put(job(due_ms=4))
    run = waiting.take(0.0)
    assert run is not None and run.examples == 4 and run.member is MEMBERS[0]
    waiting.controller.slowdown = 2.0  # it takes 5.6 ms for four now
    assert waiting.take(0.0).examples == 2


def test_those_that_are_late_are_answered_together() -> None:
    waiting = queue()
    for _ in range(12):
        waiting.put(job(due_ms=1))
    assert [(run.member, run.examples) for run in (waiting.take(1.0), waiting.take(1.0))] == [
        (MEMBERS[0], 8),
        (MEMBERS[0], 4),
    ]


def test_a_member_that_was_asked_for_is_given_the_time_that_it_takes() -> None:
    waiting = queue()  # the third member takes 7.2 ms for one, 10.8 for two, 18 ms for four
    for _ in range(8):
        waiting.put(job(due_ms=12, member=MEMBERS[2]))
    assert waiting.take(0.0).examples == 2


def test_a_pass_takes_no_longer_than_was_wished() -> None:
    waiting = queue()  # the third member takes 7.2 ms for one, 10.8 for two, 18 ms for four
    for _ in range(3):
        waiting.put(job(due_ms=100, member=MEMBERS[2], longest_ms=12))
    waiting.put(job(due_ms=101, member=MEMBERS[2], longest_ms=8))  # which the others would make late
    waiting.put(job(due_ms=102, member=MEMBERS[2], longest_ms=0.0001))  # which cannot be
    assert [waiting.take(0.0).examples for _ in range(4)] == [2, 1, 1, 1]
    wished = job(due_ms=100, longest_ms=12)
    assert not wished.late(0.050, 0.0619) and wished.late(0.050, 0.0621) and wished.late(0.090, 0.1001)


def test_what_waits_behind_makes_members_smaller() -> None:
    # In 25 ms the second member runs one pass of eight (16.2 ms), and the first two (5.4 ms).
    for behind, expected in ((0, MEMBERS[1]), (8, MEMBERS[0])):
        waiting = queue(max_waiting=64)
        for _ in range(8 + behind):
            waiting.put(job(due_ms=25))
        assert waiting.take(0.0).member is expected, behind


def test_who_wants_one_member_shares_passes_with_those_who_want_it_too() -> None:
    waiting = queue()
    mine = [job(due_ms=20, member=MEMBERS[2]), job(due_ms=22, member=MEMBERS[2])]
    others = [job(due_ms=21), job(due_ms=23)]
    for each in (*others, *mine):
        waiting.put(each)
    assert waiting.take(0.0) == Pass(MEMBERS[2], tuple(mine))
    assert waiting.take(0.0).jobs == tuple(others)


def test_a_request_stays_together() -> None:
    waiting = queue(max_waiting=64)
    jobs = [job(due_ms=100, examples=number) for number in (5, 4, 3)]
    for each in jobs:
        waiting.put(each)
    # Five and four are more than eight; three would fit beside five, but would overtake.
    assert [waiting.take(0.0).jobs for _ in range(2)] == [(jobs[0],), tuple(jobs[1:])]


def test_the_queue_is_bounded() -> None:
    waiting = queue()
    assert waiting.max_waiting == 3 * 8  # 5.4 ms a full pass of the fastest member: three in 20 ms
    waiting.put(job(examples=8))
    waiting.put(job(examples=8))
    waiting.put(job(examples=7))
    with pytest.raises(Overloaded, match="23 examples wait already, of at most 24: try again in 1 s") as caught:
        waiting.put(job(examples=2))
    assert caught.value.retry_after == 1 and waiting.examples == 23
    waiting.put(job())
    slow = queue()
    slow.put(job(examples=8))
    slow.controller.slowdown, slow.max_waiting = 1000.0, 8
    with pytest.raises(Overloaded, match="try again in 6 s"):  # one pass of 5.4 ms, a thousand times slower
        slow.put(job())
    tight = queue(max_waiting=8)
    tight.put(job(examples=8))  # what is alone is never refused
    with pytest.raises(Overloaded):
        tight.put(job())
    for bounds in ({"max_batch": 0}, {"max_batch": 8, "max_waiting": 7}):
        with pytest.raises(ValueError, match="a pass has 1 example or more, and at least as many may wait"):
            queue(**bounds)


def test_fewer_may_wait_where_time_has_passed_or_passes_take_longer() -> None:
    def taken(slowdown: float = 1.0, lag_ms: float = 0.0, due_ms: float = SLO) -> int:
        waiting = queue()  # 24 within 20 ms
        waiting.controller.slowdown = slowdown
        with pytest.raises(Overloaded, match=r"examples wait already, of at most"):
            for _ in range(100):
                waiting.put(job(due_ms=due_ms - lag_ms), lag=lag_ms / 1000)
        return waiting.examples

    assert (taken(), taken(0.7), taken(2.0), taken(100.0)) == (24, 24, 12, 8)  # a pass may always wait
    # Five of twenty milliseconds have passed, and as many will until the answer is sent: a half is left.
    assert taken(lag_ms=5) == 12 and taken(lag_ms=5, due_ms=200) >= 22


def test_large_inputs_make_the_default_bound_smaller() -> None:
    machine = Machine()
    machine.input_shape = (3, 512, 512)  # 3 MiB: 21 of them in 64 MiB
    assert queue(machine).max_waiting == 21
    machine.input_shape = (2**26,)
    assert queue(machine).max_waiting == 8


def test_who_went_away_is_not_answered() -> None:
    waiting = queue()
    jobs = [job(), job()]
    for each in jobs:
        waiting.put(each)
    assert jobs[0].answer.cancel()
    assert waiting.take(0.0).jobs == (jobs[1],)
    waiting.put(gone := job())
    gone.answer.cancel()
    assert waiting.take(0.0) is None and waiting.examples == 0


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 8), st.floats(0.1, 50), st.sampled_from([None, *MEMBERS]), st.booleans()), max_size=40
    )
)
def test_each_request_is_answered_once(requests: list) -> None:
    waiting = queue(max_waiting=16)
    taken, answered, now = [], [], 0.0
    for examples, due, member, go_on in requests:
        each = job(due, examples, member)
        try:
            waiting.put(each)
            taken.append(each)
        except Overloaded:
            assert waiting.examples + examples > 16
        assert waiting.examples <= 16
        while go_on and (run := waiting.take(now)) is not None:
            assert 1 <= run.examples <= 8 and all(each.member in (None, run.member) for each in run.jobs)
            answered += run.jobs
            now += 0.001
    while (run := waiting.take(now)) is not None:
        answered += run.jobs
    assert len(answered) == len(taken) and set(map(id, answered)) == set(map(id, taken)) and waiting.examples == 0
