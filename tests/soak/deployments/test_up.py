"""`extend-video up` starts again what ends, and gives up where that is of no use."""

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import httpx

from tests.harness.processes import Yard, find_marked
from tests.harness.waiting import wait_until
from tests.system.test_up import DRAIN_SECONDS, start_up


def list_children(yard: Yard, word: str) -> list[int]:
    """Processes of this yard that have the word in their command line, the oldest first."""
    found = []
    for pid in find_marked(yard.mark):
        with suppress(OSError):  # it has ended meanwhile
            if word in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0"):
                found.append(pid)
    return found


def find_child(yard: Yard, word: str) -> int:
    """The first of them, once there is one."""
    wait_until(lambda: list_children(yard, word))
    return list_children(yard, word)[0]


def test_up_starts_a_killed_daemon_again(yard, up_settings):
    part = start_up(yard, up_settings)
    killed = find_child(yard, "webhook:create_app()")

    os.killpg(killed, signal.SIGKILL)

    part.wait_for_log("daemon_ended")
    assert "receiver ended with exit code -9" in part.read_log()
    url = re.findall(r"receiver on (http://\S+)", part.read_log())[0]
    wait_until(lambda: find_child(yard, "webhook:create_app()") != killed)
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        assert client.get("/readyz").status_code == 200
    part.process.send_signal(signal.SIGTERM)
    assert part.wait(DRAIN_SECONDS) == 0, part.read_log()
    assert find_marked(yard.mark) == []


def test_up_gives_up_on_a_daemon_that_ends_again_and_again(yard, up_settings):
    part = start_up(yard, up_settings)

    def kill_receiver() -> bool:
        for pid in list_children(yard, "webhook:create_app()"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not part.is_running

    wait_until(kill_receiver, DRAIN_SECONDS)

    assert part.wait(DRAIN_SECONDS) == 1
    assert "for the 3. time soon after its start" in part.read_log()
    assert "Traceback" not in part.read_log().rpartition("for the 3. time")[2]
    assert find_marked(yard.mark) == []
