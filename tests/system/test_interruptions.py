"""Parts that end at the worst moment: nothing is paid twice, nothing is lost."""

import hashlib
import signal
from uuid import UUID

import pytest

from tests.harness.waiting import wait_until
from tests.system.relay import Point
from tests.system.rows import Row
from tests.system.scene import Scene

SHUTTING_DOWN = "Warm shutdown"
ON_THREADS = pytest.mark.parametrize(
    "database_name", ["postgresql"], indirect=True, scope="session"
)


def assert_archived_once(scene: Scene, job_id: UUID) -> Row:
    """Paid once, and one whole file that agrees with its row; the row."""
    job = scene.table.wait_for_end(job_id)
    assert len(scene.list_submissions(job)) == 1
    assert len(scene.table.list_attempts(job_id)) == 1
    [archived] = scene.list_archived(job_id)
    assert hashlib.sha256(archived.read_bytes()).hexdigest() == job["archive_sha256"]
    return job


def list_reasons(scene: Scene, job_id: UUID) -> list[str]:
    return [str(event["reason"]) for event in scene.table.list_events(job_id)]


@pytest.mark.slow  # a worker starts again
def test_worker_told_to_end_finishes_its_submission_first(sqlite_scene):
    scene = sqlite_scene
    worker = scene.deployment.submitter
    with scene.relay.holding(Point.BEFORE_SUBMISSION) as hold:
        job_id = scene.enqueue()
        hold.wait_until_reached()
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for_log(SHUTTING_DOWN)
        assert worker.is_running
    assert worker.wait() == 0

    [attempt] = scene.table.list_attempts(job_id)
    assert attempt["outcome"] == "accepted"
    scene.deployment.start_workers()
    assert_archived_once(scene, job_id)


@ON_THREADS
@pytest.mark.slow  # a worker starts again, and a submission that hangs is waited for
def test_post_that_a_worker_told_to_end_cannot_wait_for_is_not_sent_again(scene):
    """Nobody knows whether fal has it: the row becomes unknown, and what fal has is adopted."""
    with scene.relay.holding(Point.BEFORE_SUBMISSION) as hold:
        job_id = scene.enqueue()
        hold.wait_until_reached()
        assert scene.deployment.submitter.end() == 0
        assert "worker_ended_at_work" in scene.deployment.submitter.read_log()
        scene.deployment.start_workers()
        wait_until(lambda: scene.table.read_job(job_id)["state"] == "submission_unknown")

    assert_archived_once(scene, job_id)


@pytest.mark.slow  # a worker starts again, and a lease has to end
def test_download_of_a_killed_worker_is_taken_over(sqlite_scene):
    scene = sqlite_scene
    with scene.relay.holding(Point.MID_DOWNLOAD) as hold:
        job_id = scene.enqueue()
        hold.wait_until_reached()
        wait_until(lambda: any(path.stat().st_size for path in scene.list_partials()))
        scene.deployment.archiver.kill()
        assert scene.list_archived(job_id) == []
    scene.deployment.start_workers()

    assert_archived_once(scene, job_id)

    wait_until(lambda: scene.list_partials() == [])
    reasons = list_reasons(scene, job_id)
    assert reasons.count("archive_claimed") == 2
    assert reasons.count("archive_claim_expired") == 1


@pytest.mark.slow  # a worker starts again
def test_submission_whose_worker_was_killed_is_adopted_by_its_webhook(scene):
    with scene.relay.holding(Point.BEFORE_REPLY) as hold:
        job_id = scene.enqueue()
        hold.wait_until_reached()
        scene.deployment.submitter.kill()
    scene.deployment.start_workers()

    job = assert_archived_once(scene, job_id)

    [attempt] = scene.table.list_attempts(job_id)
    assert attempt["outcome"] is None
    assert attempt["fal_request_id"] == job["fal_request_id"] is not None
    assert job["submitted_at"] == attempt["started_at"]


def test_webhook_that_overtakes_the_reply_is_recorded(scene):
    with scene.relay.holding(Point.BEFORE_REPLY) as hold:
        job_id = scene.enqueue()
        hold.wait_until_reached()
        scene.table.wait_for_end(job_id)
        [unsettled] = scene.table.list_attempts(job_id)
        assert unsettled["outcome"] is None
    wait_until(lambda: scene.table.list_attempts(job_id)[0]["outcome"] == "accepted")

    job = assert_archived_once(scene, job_id)
    assert "submission_accepted" not in list_reasons(scene, job_id)
    assert job["fal_request_id"] == scene.table.list_attempts(job_id)[0]["fal_request_id"]
