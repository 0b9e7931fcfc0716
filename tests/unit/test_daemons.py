"""A daemon that has stayed alive is started again for ever, one that never has is given up."""

import subprocess
import sys
import time

import pytest

from worker.cli.daemons import LONGEST_PAUSE_SECONDS, QUICK_SECONDS, Daemon, RunningDaemon


@pytest.fixture
def running() -> RunningDaemon:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return RunningDaemon(Daemon("worker", ()), process)


def end_quickly(running: RunningDaemon, times: int) -> None:
    for _ in range(times):
        running.note_start(running.process)
        running.note_end()


def test_daemon_that_ends_soon_after_each_start_is_hopeless(running) -> None:
    end_quickly(running, 2)
    assert not running.is_hopeless
    end_quickly(running, 1)
    assert running.is_hopeless


def test_daemon_that_has_stayed_alive_is_never_hopeless_and_its_pauses_are_bounded(running) -> None:
    running.started = time.monotonic() - QUICK_SECONDS - 1
    running.note_end()
    end_quickly(running, 20)
    assert not running.is_hopeless
    assert running.pause == LONGEST_PAUSE_SECONDS
