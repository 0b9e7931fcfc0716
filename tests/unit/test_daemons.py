"""A daemon that has stayed alive is started again for ever, one that never has is given up."""

import os
import sys
import time

import pytest

from worker.cli import daemons
from worker.cli.daemons import LONGEST_PAUSE_SECONDS, QUICK_SECONDS, Daemon, Supervisor
from worker.ground.errors import DaemonError


@pytest.fixture
def daemon() -> Daemon:
    return Daemon("worker", [sys.executable, "-S", "-c", "print('no luck')"])


def test_daemon_that_ends_soon_after_each_start_is_given_up(daemon, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(daemons, "FIRST_PAUSE_SECONDS", 0.01)
    with Supervisor(os.environ, tmp_path) as supervisor:
        supervisor.start(daemon)
        with pytest.raises(DaemonError, match="worker crashed 3 times within 10 s of starting"):
            supervisor.watch()
        assert supervisor.read_log("worker").splitlines() == ["no luck"] * 3


def test_daemon_that_has_stayed_alive_is_restarted_for_ever_after_bounded_pauses(daemon) -> None:
    pauses = list[float]()
    with Supervisor(os.environ) as supervisor:
        supervisor.start(daemon)
        daemon.process.wait()
        for age in (QUICK_SECONDS + 1, *[0.0] * 20):
            daemon.started = time.monotonic() - age
            supervisor._plan_restart(daemon)
            assert daemon.restart_at is not None
            pauses.append(round(daemon.restart_at - daemon.started - age, 1))
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
