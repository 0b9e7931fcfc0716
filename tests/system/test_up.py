"""`extend-video up`: a whole deployment under one process."""

import json
import os
import re
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from tests.harness.processes import (
    EXTEND_VIDEO,
    Part,
    Yard,
    bind_listener,
    find_marked,
    run_emulator,
)
from tests.harness.servers import run_redis
from tests.harness.waiting import wait_until
from tests.system.rows import open_table

DRAIN_SECONDS = 30


@pytest.fixture
def settings(tmp_path):
    """A database that does not exist yet, and a Redis of its own."""
    with run_redis() as broker_url:
        yield {
            "DATABASE_URL": f"sqlite:///{tmp_path / 'jobs.db'}",
            "BROKER_URL": broker_url,
            "FAL_KEY": "emulator-key",
            "WEBHOOK_BASE_URL": "http://127.0.0.1:9",
            "ARCHIVE_URL": f"file:{tmp_path / 'archive'}",
            "SWEEP_SECONDS": "1",
        }


def start_up(yard: Yard, settings: Mapping[str, str], port: int = 0) -> Part:
    """Start it, and wait until its receiver and its workers are ready."""
    part = yard.start("up", [EXTEND_VIDEO, "up", "--port", str(port)], settings)
    part.wait_for_log("receiver on http://")
    url = re.findall(r"receiver on (http://\S+)", part.read_log())[0]
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        assert client.get("/readyz").status_code == 200
    wait_until(lambda: part.read_log().count(" ready.") == 2)
    return part


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


def test_up_archives_a_video_and_ends_all_on_sigterm(yard, settings, clip):
    files = yard.directory / "emulator" / "files"
    files.mkdir(parents=True)
    (files / "sample.mp4").write_bytes(clip.read_bytes())
    with run_emulator(yard) as emulator, bind_listener() as listener:
        host, port = listener.getsockname()
        listener.close()
        settings |= {
            "FAL_QUEUE_URL": emulator.url,
            "FAL_JWKS_URL": f"{emulator.url}/.well-known/jwks.json",
            "FAL_MEDIA_HOSTS": emulator.url.removeprefix("http://"),
            "WEBHOOK_BASE_URL": f"http://{host}:{port}",
        }
        part = start_up(yard, settings, port)
        wish = ["--prompt", "on", "--video", emulator.sample_url, "--set", "num_frames=30"]
        enqueued = yard.run([EXTEND_VIDEO, "enqueue", *wish, "--json"], settings)
        assert enqueued.returncode == 0, enqueued.stderr
        job_id = UUID(json.loads(enqueued.stdout)["id"])
        with open_table(settings["DATABASE_URL"]) as table:
            table.wait_for_end(job_id)
        yard.parts["emulator"].end()

        part.process.send_signal(signal.SIGTERM)

        assert part.wait(DRAIN_SECONDS) == 0, part.read_log()
        assert find_marked(yard.mark) == []
        assert "Traceback" not in part.read_log()


def test_up_starts_a_killed_daemon_again(yard, settings):
    part = start_up(yard, settings)
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


def test_up_gives_up_on_a_daemon_that_ends_again_and_again(yard, settings):
    part = start_up(yard, settings)

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


def test_up_on_a_taken_port_says_which_and_starts_nothing(yard, settings):
    with bind_listener() as listener:
        _, port = listener.getsockname()

        ended = yard.run([EXTEND_VIDEO, "up", "--port", str(port)], settings)

    assert ended.returncode == 1
    assert f"127.0.0.1:{port}" in ended.stderr
    assert "in use" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert find_marked(yard.mark) == []


def test_up_without_key_and_webhook_url_names_both(yard, settings):
    lacking = {**settings, "FAL_KEY": "", "WEBHOOK_BASE_URL": ""}

    ended = yard.run([EXTEND_VIDEO, "up", "--port", "0"], lacking)

    assert ended.returncode == 2
    assert "FAL_KEY" in ended.stderr
    assert "WEBHOOK_BASE_URL" in ended.stderr
