"""Waits are in bounds, spread, and within the hour of a result; calls have a limit as a whole."""

import threading
import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.waiting import wait_until
from worker.ground.clock import LONGEST_POLL, Backoff, call_within, choose_poll_delay, spread

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
BACKOFF = Backoff(timedelta(seconds=2), timedelta(minutes=2))
draws = st.floats(0, 1, exclude_max=True)
waits = st.timedeltas(timedelta(seconds=1), timedelta(days=30))


def test_bound_doubles_with_each_try_up_to_the_longest():
    bounds = [BACKOFF.bound(tries).total_seconds() for tries in range(1, 10)]
    assert bounds == [2, 4, 8, 16, 32, 64, 120, 120, 120]


@given(st.integers(-5, 10**9))
def test_bound_of_any_number_of_tries_lies_between_first_and_longest(tries):
    assert BACKOFF.first <= BACKOFF.bound(tries) <= BACKOFF.longest


@given(st.integers(1, 100), draws)
def test_draw_is_full_jitter_below_the_bound(tries, drawn):
    assert timedelta() <= BACKOFF.draw(tries, lambda: drawn) <= BACKOFF.bound(tries)


def test_draw_reaches_from_zero_to_the_bound():
    assert BACKOFF.draw(3, lambda: 0.0) == timedelta()
    assert BACKOFF.draw(3, lambda: 0.999) > BACKOFF.bound(3) * 0.99


def test_draw_differs_from_worker_to_worker():
    assert len({BACKOFF.draw(7) for _ in range(20)}) > 1


@given(waits, draws)
def test_spread_stays_within_a_fifth(wait, drawn):
    microsecond = timedelta(microseconds=1)
    assert wait * 0.8 - microsecond <= spread(wait, lambda: drawn) <= wait * 1.2 + microsecond


@given(waits, waits, draws)
def test_poll_delay_stays_within_its_bounds(poll_after, waited, drawn):
    delay = choose_poll_delay(poll_after, waited, lambda: drawn)
    assert min(poll_after, LONGEST_POLL) * 0.79 <= delay <= LONGEST_POLL * 1.21


@given(waits, st.timedeltas(timedelta(), timedelta(days=30)))
def test_poll_looks_three_times_within_any_hour_however_unlucky(poll_after, waited):
    for _ in range(3):
        waited += choose_poll_delay(poll_after, waited, lambda: 0.999999)
    delays = [choose_poll_delay(poll_after, waited, lambda: 0.999999) for _ in range(3)]
    assert sum(delays, timedelta()) < HOUR


@given(waits, draws)
def test_poll_delay_grows_with_what_has_been_waited(poll_after, drawn):
    delays = [
        choose_poll_delay(poll_after, timedelta(minutes=minutes), lambda: drawn)
        for minutes in (0, 10, 30, 60, 600)
    ]
    assert delays == sorted(delays)
    assert delays[-1] == spread(LONGEST_POLL, lambda: drawn)


def test_jobs_submitted_together_are_not_polled_together():
    delays = {choose_poll_delay(timedelta(minutes=2)) for _ in range(100)}
    assert len(delays) > 90
    assert max(delays) - min(delays) > timedelta(seconds=20)


# ------------------------------------------------------------------ calls within a limit


def test_call_in_time_gives_its_result() -> None:
    assert call_within(SECOND, lambda: 7) == 7


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_call_that_raises_raises_the_same_here(error) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        call_within(SECOND, fail)
    assert caught.value is error


def test_call_too_late_raises_timeout_at_its_limit() -> None:
    done = threading.Event()
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        call_within(timedelta(seconds=0.05), done.wait)
    assert 0.05 <= time.monotonic() - started < 1
    done.set()
    wait_until(lambda: "call_within" not in {thread.name for thread in threading.enumerate()})


def test_call_too_late_does_not_keep_process_alive() -> None:
    done = threading.Event()
    with pytest.raises(TimeoutError):
        call_within(timedelta(seconds=0.01), done.wait)
    (left,) = (thread for thread in threading.enumerate() if thread.name == "call_within")
    assert left.daemon
    done.set()
    left.join()
