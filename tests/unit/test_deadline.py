"""A call is bounded as a whole, and what comes of it comes to the caller."""

import threading
import time
from datetime import timedelta

import pytest

from tests.harness.waiting import wait_until
from worker.ground.deadline import call_within

SECOND = timedelta(seconds=1)


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
