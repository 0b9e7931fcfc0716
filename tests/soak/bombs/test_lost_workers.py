"""A message that is the end of whoever looks at it ends three processes, and no fourth one."""

import sys
from contextlib import closing

import pytest

from tests.harness.waiting import wait_until
from worker.broker.app import ENQUEUE, create_publisher
from worker.ground.db import Database
from worker.ground.settings import load_settings
from worker.jobs.job_requests import list_refused

# The worker as it is, but that its processes are killed where they decode, as for want of memory.
KILLED = """
import os, signal, sys
from worker.runtime import Runtime
Runtime.make_job_request = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
from celery.__main__ import main
sys.argv = ["celery", "-A", "worker", "worker", "-c", "1"]
main()
"""


@pytest.mark.slow  # each killed process is replaced after five seconds
def test_message_that_kills_three_processes_is_refused(yard, sqlite_url, redis_url, tmp_path):
    settings = {
        "DATABASE_URL": sqlite_url,
        "BROKER_URL": redis_url,
        "FAL_KEY": "some-key",
        "WEBHOOK_BASE_URL": "https://hooks.example.com",
        "ARCHIVE_URL": f"file:{tmp_path / 'archive'}",
    }
    inline = {"prompt": "on it goes", "video_url": "data:video/mp4;base64,AAAA"}
    with closing(create_publisher(load_settings(broker_url=redis_url))) as app:
        message_id = app.send_task(ENQUEUE, kwargs=inline).id
    worker = yard.start("worker", [sys.executable, "-c", KILLED], settings)

    def list_kept():
        with closing(Database(sqlite_url)) as db, db.reading() as connection:
            return list_refused(connection, 10)

    wait_until(list_kept, 60)

    [kept] = list_kept()
    assert (kept.message_id, kept.error_code, kept.claims) == (message_id, "workers_lost", 4)
    assert kept.fields["video_url"] == "data:video/mp4;base64 (26 characters)"
    assert worker.read_log().count("exited with 'signal 9 (SIGKILL)'") == 3
    assert worker.is_running
