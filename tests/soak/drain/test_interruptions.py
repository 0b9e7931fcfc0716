"""Parts that end at less common moments than those of `tests/system`."""

import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from uuid import UUID, uuid4

import redis
from celery import Celery

from tests.harness.brokers import connect_redis
from tests.harness.processes import CELERY, END_SECONDS, THREADS
from tests.harness.servers import run_redis
from tests.harness.waiting import wait_until
from tests.system.relay import Point
from tests.system.rows import open_table
from tests.system.scene import Scene
from tests.system.test_interruptions import SHUTTING_DOWN, assert_archived_once, list_reasons

LEASE = "LEASE_SECONDS"


@contextmanager
def holder_standing_still(scene: Scene, job_id: UUID) -> Iterator[None]:
    """Stop the process that has claimed the job, just after a heartbeat: it holds no lock then."""
    claimed = scene.table.read_job(job_id)
    _, pid, _ = claimed["claimed_by"].split(":")
    wait_until(lambda: scene.table.read_job(job_id)["due_at"] > claimed["due_at"])
    os.kill(int(pid), signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(int(pid), signal.SIGCONT)


def test_worker_told_to_end_finishes_its_download_first(scene):
    worker = scene.deployment.archiver
    with scene.relay.holding(Point.MID_DOWNLOAD) as hold:
        job_id = scene.enqueue()
        hold.wait_until_reached()
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for_log(SHUTTING_DOWN)
        assert worker.is_running
        assert scene.table.read_job(job_id)["state"] == "archiving"
    assert worker.wait() == 0

    assert scene.table.read_job(job_id)["state"] == "archived"
    assert_archived_once(scene, job_id)
    assert list_reasons(scene, job_id).count("archive_claimed") == 1


def test_silent_download_of_a_living_worker_stays_its_own(scene):
    """The media host is slow, not the worker: its lease is renewed for as long as it waits."""
    with scene.relay.holding(Point.MID_DOWNLOAD) as hold:
        job_id = scene.enqueue()
        hold.wait_until_reached()
        claimed = scene.table.read_job(job_id)
        # a lease has passed by when it ends later than two of them after the claim
        end = claimed["due_at"] + timedelta(seconds=float(scene.deployment.settings[LEASE]))
        wait_until(lambda: scene.table.read_job(job_id)["due_at"] > end)
        assert scene.table.read_job(job_id)["claimed_by"] == claimed["claimed_by"]

    assert_archived_once(scene, job_id)
    assert list_reasons(scene, job_id).count("archive_claimed") == 1


def test_download_of_a_stopped_worker_is_taken_over_and_writes_nothing_when_it_wakes(scene):
    with scene.relay.holding(Point.MID_DOWNLOAD) as hold:
        job_id = scene.enqueue()
        hold.wait_until_reached()
        wait_until(lambda: any(path.stat().st_size for path in scene.list_partials()))
        with holder_standing_still(scene, job_id):
            other = scene.deployment.start_other_worker("other")
            before = scene.table.wait_for_end(job_id)
            [archived] = scene.list_archived(job_id)
            written_at = archived.stat().st_mtime_ns
            assert len(scene.list_partials()) == 1
            assert other.end() == 0
    wait_until(lambda: scene.list_partials() == [])

    assert_archived_once(scene, job_id)
    assert scene.table.read_job(job_id) == before
    assert archived.stat().st_mtime_ns == written_at
    reasons = list_reasons(scene, job_id)
    assert (reasons.count("archive_claim_expired"), reasons[-1]) == (1, "archive_recorded")


def test_webhook_is_sent_again_while_the_receiver_is_down(scene):
    listener = scene.deployment.listener
    receiver = scene.deployment.yard.parts["receiver"]
    # Before it has set its signals it ends as any process does.
    receiver.wait_for_log("Booting worker")
    assert receiver.end() == 0
    job_id = scene.enqueue()
    listener.settimeout(END_SECONDS)
    connection, _ = listener.accept()
    connection.close()
    scene.deployment.start_receiver()

    job = assert_archived_once(scene, job_id)

    [submission] = scene.list_submissions(job)
    first, *_, last = submission["deliveries"]
    assert first["error"] is not None
    assert last["status_code"] == 200
    [delivery] = scene.table.list_deliveries(job_id)
    assert delivery["times_received"] == 1


def test_connections_lost_by_the_broker_are_made_again(scene):
    broker = scene.deployment.settings["BROKER_URL"]
    with redis.Redis(unix_socket_path=broker.removeprefix("redis+socket://")) as client:
        client.execute_command("CLIENT", "KILL", "SKIPME", "yes")

    assert_archived_once(scene, scene.enqueue())


def test_wish_of_a_killed_worker_comes_back_after_a_lease(yard, sqlite_url):
    """Not after the 100 s that kombu takes by itself."""
    options = ["worker", *THREADS, "-Q", "extend_video"]
    job_id, path = uuid4(), sqlite_url.removeprefix("sqlite:///")
    job_request = {"job_id": str(job_id), "prompt": "on", "video_url": "https://example.com/a.mp4"}
    with (
        run_redis() as broker_url,
        connect_redis(broker_url) as broker,
        Celery("producer", broker=broker_url, set_as_current=False) as producer,
        closing(sqlite3.connect(path, isolation_level=None)) as writer,
    ):
        settings = {
            "DATABASE_URL": sqlite_url,
            "BROKER_URL": broker_url,
            "FAL_KEY": "key",
            "WEBHOOK_BASE_URL": "http://127.0.0.1:9",
            "LEASE_SECONDS": "8",
            "SWEEP_SECONDS": "1",
        }
        writer.execute("BEGIN IMMEDIATE")
        first = yard.start("first", [*CELERY, *options, "-n", "first@%h"], settings)
        producer.send_task("extend_video.enqueue", kwargs=job_request, queue="extend_video")
        wait_until(lambda: broker.hlen("unacked") == 1)
        second = yard.start("second", [*CELERY, *options, "-n", "second@%h"], settings)
        second.wait_for_log(" ready.")
        first.kill()
        writer.rollback()

        with open_table(sqlite_url) as table:
            wait_until(lambda: table.find_job(job_id) is not None, 30)
