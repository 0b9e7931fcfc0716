"""`extend-video up`: a whole deployment under one process."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from uuid import UUID

import httpx
import psutil
import pytest

from tests.harness.processes import (
    EXTEND_VIDEO,
    Part,
    Yard,
    bind_listener,
    find_marked,
    run_emulator,
)
from tests.harness.waiting import wait_until
from tests.system.rows import open_table

DRAIN_SECONDS = 30


def start_up(yard: Yard, settings: Mapping[str, str], port: int = 0) -> Part:
    """Start it, and wait until its receiver and its workers are ready."""
    part = yard.start("up", [EXTEND_VIDEO, "up", "--port", str(port)], settings)
    part.wait_for_log("receiver on http://")
    url = re.findall(r"receiver on (http://\S+)", part.read_log())[0]
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        assert client.get("/readyz").status_code == 200
    wait_until(lambda: part.read_log().count(" ready.") == 2)
    return part


START_AND_WAIT = """
import os, sys, time
from worker.cli.daemons import Daemon, Supervisor
with Supervisor(os.environ) as group:
    group.start(Daemon("sleeper", [sys.executable, "-c", "import time; print(1); time.sleep(60)"]))
    print(group._running[0].process.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_daemons_end_when_what_started_them_is_killed():
    with subprocess.Popen(
        [sys.executable, "-c", START_AND_WAIT], stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        daemon = psutil.Process(int(next(line for line in starter.stdout if len(line) > 2)))
        starter.kill()
    wait_until(lambda: not daemon.is_running() or daemon.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.slow  # every daemon starts, and ends
def test_up_archives_a_video_and_ends_all_on_sigterm(yard, up_settings, clip):
    files = yard.directory / "emulator" / "files"
    files.mkdir(parents=True)
    (files / "sample.mp4").write_bytes(clip.read_bytes())
    with run_emulator(yard) as emulator, bind_listener() as listener:
        host, port = listener.getsockname()
        listener.close()
        up_settings |= {
            "FAL_QUEUE_URL": emulator.url,
            "FAL_JWKS_URL": f"{emulator.url}/.well-known/jwks.json",
            "FAL_MEDIA_HOSTS": emulator.url.removeprefix("http://"),
            "WEBHOOK_BASE_URL": f"http://{host}:{port}",
        }
        part = start_up(yard, up_settings, port)
        job_request = ["--prompt", "on", "--video", emulator.sample_url, "--set", "num_frames=30"]
        enqueued = yard.run([EXTEND_VIDEO, "enqueue", *job_request, "--json"], up_settings)
        assert enqueued.returncode == 0, enqueued.stderr
        job_id = UUID(json.loads(enqueued.stdout)["id"])
        with open_table(up_settings["DATABASE_URL"]) as table:
            table.wait_for_end(job_id)
        yard.parts["emulator"].end()

        part.process.send_signal(signal.SIGTERM)

        assert part.wait(DRAIN_SECONDS) == 0, part.read_log()
        assert find_marked(yard.mark) == []
        assert "Traceback" not in part.read_log()


@pytest.mark.slow  # as much of it starts as looks at the port
def test_up_on_a_taken_port_says_which_and_starts_nothing(yard, up_settings):
    with bind_listener() as listener:
        _, port = listener.getsockname()

        ended = yard.run([EXTEND_VIDEO, "up", "--port", str(port)], up_settings)

    assert ended.returncode == 1
    assert f"127.0.0.1:{port}" in ended.stderr
    assert "in use" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert find_marked(yard.mark) == []


def test_up_without_key_and_webhook_url_names_both(yard, up_settings):
    lacking = {**up_settings, "FAL_KEY": "", "WEBHOOK_BASE_URL": ""}

    ended = yard.run([EXTEND_VIDEO, "up", "--port", "0"], lacking)

    assert ended.returncode == 2
    assert "FAL_KEY" in ended.stderr
    assert "WEBHOOK_BASE_URL" in ended.stderr
