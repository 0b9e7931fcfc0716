"""A daemon that has stayed alive is started again for ever, one that never has is given up."""

import subprocess
import sys
import time

import pytest

from worker.cli.daemons import LONGEST_PAUSE_SECONDS, QUICK_SECONDS, Daemon, Life


@pytest.fixture
def life() -> Life:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Life(Daemon("worker", ()), process)


def end_quickly(life: Life, times: int) -> None:
    for _ in range(times):
        life.begin(life.process)
        life.note_end()


def test_daemon_that_ends_soon_after_each_start_is_hopeless(life) -> None:
    end_quickly(life, 2)
    assert not life.is_hopeless
    end_quickly(life, 1)
    assert life.is_hopeless


def test_daemon_that_has_stayed_alive_is_never_hopeless_and_its_pauses_are_bounded(life) -> None:
    life.began = time.monotonic() - QUICK_SECONDS - 1
    life.note_end()
    end_quickly(life, 20)
    assert not life.is_hopeless
    assert life.pause == LONGEST_PAUSE_SECONDS
