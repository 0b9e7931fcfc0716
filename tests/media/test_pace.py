"""The bound on bytes per second, in a time that stands still unless somebody waits."""

from threading import Lock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.together import call_together
from worker.media.pinned import LARGEST_CHUNK, Pace

RATE = 1000


class Watch:
    """Time that passes by waiting only; those who wait together share it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []
        self._lock = Lock()

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.waits.append(seconds)
            self.now += seconds


def make_pace(rate: int = RATE) -> tuple[Pace, Watch]:
    watch = Watch()
    return Pace(rate, clock=watch.clock, sleep=watch.sleep), watch


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=30), st.integers(10, 10**9))
def test_pace_without_idle_times_is_exactly_the_rate(sizes, rate):
    pace, watch = make_pace(rate)
    for size in sizes:
        pace.take(size)
    assert watch.now - 100 == pytest.approx(sum(sizes) / rate)


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 10)), min_size=1, max_size=30),
)
def test_pace_with_idle_times_never_exceeds_the_rate_by_more_than_a_second_of_it(taken):
    pace, watch = make_pace()
    for size, idle in taken:
        pace.take(size)
        watch.now += idle
    waited_through = watch.now - 100 - taken[-1][1]
    assert sum(size for size, _ in taken) <= RATE * (waited_through + 1) + 1


def test_pace_saves_up_no_more_than_a_second():
    pace, watch = make_pace()
    watch.now += 3600
    pace.take(RATE)
    assert watch.waits == []
    pace.take(RATE)
    assert watch.waits == [1.0]


def test_pace_is_shared_by_threads():
    pace, watch = make_pace()

    def take_some() -> None:
        for _ in range(50):
            pace.take(10)

    call_together(*[take_some] * 4)
    assert watch.now - 100 >= 4 * 50 * 10 / RATE - 0.001


@pytest.mark.parametrize(
    ("rate", "most"), [(1, 1), (1024, 128), (1024 * 1024, 128 * 1024), (10**12, LARGEST_CHUNK)]
)
def test_pace_reads_chunks_small_enough_for_short_waits(rate, most):
    assert make_pace(rate)[0].chunk_bytes == most
