from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest

from tuner.measure.latency import BLOCK_SECONDS, alone, compare_latency, computing, computing_in_turns


class Machine:
    """A clock that moves only while a callable runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now

    def takes(self, name: str, milliseconds: Callable[[int], float] | float) -> Callable[[], None]:
        def run() -> None:
            cost = milliseconds(self.calls.count(name)) if callable(milliseconds) else milliseconds
            self.calls.append(name)
            self.now += cost / 1000

        return run


def test_the_ratio_of_two_steady_models_is_exact() -> None:
    machine = Machine()
    found = compare_latency(machine.takes("a", 3.0), machine.takes("b", 2.0), seconds=10, least_blocks=11, clock=machine.clock)
    assert found.ratio.value == pytest.approx(1.5)
    assert (found.ratio.lower, found.ratio.upper) == pytest.approx((1.5, 1.5))
    assert (found.baseline_ms, found.candidate_ms) == pytest.approx((3.0, 2.0))
    assert found.blocks == 11
    assert found.seconds == pytest.approx(machine.now)
    assert found.differs


def test_equal_models_do_not_differ() -> None:
    machine = Machine()
    found = compare_latency(machine.takes("a", 2.0), machine.takes("b", 2.0), seconds=10, clock=machine.clock)
    assert found.ratio.value == pytest.approx(1.0)
    assert not found.differs


def test_blocks_alternate_a_b_b_a() -> None:
    machine = Machine()
    slow = BLOCK_SECONDS * 2000
    compare_latency(machine.takes("a", slow), machine.takes("b", slow), seconds=10, least_blocks=4, clock=machine.clock)
    measured = "".join(machine.calls[8:])  # After the warm-up and three timed calls of each.
    assert measured == "abba" * 3


def test_a_block_holds_as_many_calls_as_the_clock_needs() -> None:
    machine = Machine()
    compare_latency(machine.takes("a", 1.0), machine.takes("b", 0.5), seconds=10, least_blocks=2, clock=machine.clock)
    runs = [(name, len(list(calls))) for name, calls in groupby(machine.calls[8:])]
    assert runs[0] == ("a", round(BLOCK_SECONDS * 1000))
    assert runs[1] == ("b", 2 * round(BLOCK_SECONDS * 1000 / 0.5))  # Two blocks in a row: A B, B A.


def test_a_slower_machine_slows_both_and_leaves_the_ratio() -> None:
    machine = Machine()

    def load(milliseconds: float) -> Callable[[int], float]:
        return lambda _: milliseconds * (1 + (len(machine.calls) // 40) % 3)

    found = compare_latency(machine.takes("a", load(6.0)), machine.takes("b", load(3.0)), seconds=60, precision=0.001, clock=machine.clock)
    assert found.ratio.value == pytest.approx(2.0, rel=0.2)


def test_it_ends_when_time_is_up_but_not_before_the_least_blocks() -> None:
    def noisy(call: int) -> float:
        return 5.0 + 4.0 * (call * 7919 % 13) / 13

    machine = Machine()
    short = compare_latency(machine.takes("a", noisy), machine.takes("b", 7.0), seconds=0.0, least_blocks=9, clock=machine.clock)
    assert short.blocks == 9
    machine = Machine()
    longer = compare_latency(machine.takes("a", noisy), machine.takes("b", 7.0), seconds=1.0, precision=1e-9, clock=machine.clock)
    assert longer.blocks > 40
    assert 1.0 < longer.seconds < 1.1
    assert longer.ratio.lower <= longer.ratio.value <= longer.ratio.upper


@pytest.fixture
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of this test alone."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))


def inside(context: Callable[[], object], entered: threading.Event, leave: threading.Event) -> threading.Thread:
    def hold() -> None:
        with context():  # type: ignore[attr-defined]
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    return thread


@pytest.mark.usefixtures("own_locks")
def test_several_may_compute_at_once_and_none_while_someone_is_alone() -> None:
    events = [(threading.Event(), threading.Event()) for _ in range(4)]
    (first, end_first), (second, end_second), (timed, end_timed), (third, end_third) = events
    workers = [inside(computing, first, end_first), inside(computing, second, end_second)]
    assert first.wait(10)
    assert second.wait(10)
    workers.append(inside(alone, timed, end_timed))
    assert not timed.wait(0.2)
    # Whoever is to be alone has shut the gate: no newcomer gets in before.
    workers.append(inside(computing, third, end_third))
    assert not third.wait(0.2)
    end_first.set()
    assert not timed.wait(0.2)
    end_second.set()
    assert timed.wait(10)
    assert not third.wait(0.2)
    end_timed.set()
    assert third.wait(10)
    end_third.set()
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


@pytest.mark.usefixtures("own_locks")
def test_only_one_is_alone() -> None:
    (first, end_first), (second, end_second) = [(threading.Event(), threading.Event()) for _ in range(2)]
    workers = [inside(alone, first, end_first)]
    assert first.wait(10)
    workers.append(inside(alone, second, end_second))
    assert not second.wait(0.2)
    end_first.set()
    assert second.wait(10)
    end_second.set()
    for worker in workers:
        worker.join(10)


@pytest.mark.usefixtures("own_locks")
def test_an_error_gives_the_locks_back() -> None:
    for context in (computing, alone):
        with pytest.raises(KeyError), context():
            raise KeyError
    entered, leave = threading.Event(), threading.Event()
    leave.set()
    inside(alone, entered, leave).join(10)
    assert entered.is_set()


@pytest.mark.usefixtures("own_locks")
@pytest.mark.timeout(30)
def test_computing_within_computing_does_not_wait_for_who_waits_for_it() -> None:
    entered, leave = threading.Event(), threading.Event()
    with computing():
        waiting = inside(alone, entered, leave)  # It has the gate now, or soon, and waits for the room.
        assert not entered.wait(0.3)
        with computing():
            assert not entered.is_set()
        assert not entered.wait(0.1)
    assert entered.wait(10)
    leave.set()
    waiting.join(10)


def test_long_work_lets_in_who_wants_to_be_alone() -> None:
    entered = threading.Event()

    def measure() -> None:
        with alone():
            entered.set()

    waiting = threading.Thread(target=measure)
    with computing_in_turns() as turn:
        waiting.start()
        assert not entered.wait(0.2)
        for _ in range(1000):
            turn()
            if entered.wait(0.01):
                break
        assert entered.is_set()
    waiting.join(10)
