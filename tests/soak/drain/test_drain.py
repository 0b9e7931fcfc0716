"""Workers told to end while they have more to do than they are given time for."""

import hashlib
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic

import pytest

from tests.harness.processes import ONE_WORKER, TWO_WORKERS, Part
from tests.harness.waiting import wait_until
from tests.system.conftest import YARDS
from tests.system.relay import Point
from tests.system.scene import Scene, run_scene

PATIENCE = 30.0
"""What supervisors give."""
SHORT = {"DRAIN_SECONDS": "2", "LEASE_SECONDS": "120"}
"""Whoever waited for a lease to end would wait too long for these tests."""


@contextmanager
def running(tmp_path, request, postgres, clip, workers, changes) -> Iterator[Scene]:
    url = postgres.url_of(postgres.create_database())
    with run_scene(tmp_path, url, clip, workers, changes=changes) as scene:
        request.node.stash.setdefault(YARDS, []).append(scene.deployment.yard)
        yield scene


@pytest.fixture
def short_scene(tmp_path, request, postgres, clip) -> Iterator[Scene]:
    with running(tmp_path, request, postgres, clip, TWO_WORKERS, SHORT) as scene:
        yield scene


@pytest.fixture
def forking_scene(tmp_path, request, postgres, clip) -> Iterator[Scene]:
    with running(tmp_path, request, postgres, clip, ONE_WORKER, SHORT) as scene:
        yield scene


def end(part: Part) -> float:
    """Tell it to end, as a supervisor does; how long that took."""
    began = monotonic()
    part.process.send_signal(signal.SIGTERM)
    assert part.wait(PATIENCE) == 0, part.read_log()
    return monotonic() - began


def assert_paid_and_archived_once(scene: Scene, job_id) -> None:
    job = scene.table.wait_for_end(job_id, seconds=90)
    assert len(scene.list_submissions(job)) == 1
    assert len(scene.table.list_attempts(job_id)) == 1
    [archived] = scene.list_archived(job_id)
    assert hashlib.sha256(archived.read_bytes()).hexdigest() == job["archive_sha256"]


def list_reasons(scene: Scene, job_id) -> list[str]:
    return [str(event["reason"]) for event in scene.table.list_events(job_id)]


def test_download_that_goes_on_is_given_back_and_taken_by_another(short_scene):
    """Its host is silent: nothing in the download itself could notice."""
    scene = short_scene
    with scene.relay.holding(Point.MID_DOWNLOAD) as hold:
        job_id = scene.enqueue()
        hold.wait_until_reached()
        other = scene.deployment.start_other_worker("other")
        end(scene.deployment.archiver)
        assert_paid_and_archived_once(scene, job_id)
    assert other.end() == 0

    reasons = list_reasons(scene, job_id)
    assert reasons.count("archive_claimed") == 2
    assert reasons.count("archive_postponed") == 1
    assert "archive_claim_expired" not in reasons


@pytest.mark.parametrize("point", [Point.BEFORE_SUBMISSION, Point.BEFORE_REPLY])
def test_post_without_answer_is_not_sent_again(short_scene, point):
    """Whether fal has it or not: the row becomes unknown, and what fal has is adopted."""
    scene = short_scene
    with scene.relay.holding(point) as hold:
        job_id = scene.enqueue()
        hold.wait_until_reached()
        end(scene.deployment.submitter)
        assert "worker_ended_at_work" in scene.deployment.submitter.read_log()
    scene.deployment.start_workers()

    assert_paid_and_archived_once(scene, job_id)


def test_forked_workers_give_their_downloads_back_as_well(forking_scene):
    scene = forking_scene
    with scene.relay.holding(Point.MID_DOWNLOAD) as hold:
        job_id = scene.enqueue()
        hold.wait_until_reached()
        end(scene.deployment.archiver)
        wait_until(lambda: scene.table.read_job(job_id)["state"] == "completed")
        scene.deployment.start_workers()
        assert_paid_and_archived_once(scene, job_id)

    assert "archive_claim_expired" not in list_reasons(scene, job_id)


def test_worker_without_work_ends_at_once(short_scene):
    scene = short_scene
    scene.table.wait_for_end(scene.enqueue())

    for part in (scene.deployment.submitter, scene.deployment.archiver):
        end(part)
        assert "worker_ended_at_work" not in part.read_log()


@pytest.mark.timeout(300)
def test_both_workers_end_within_patience_under_load(tmp_path, request, postgres, clip):
    """With the times of production: one holds a download, the other a POST, and more is queued."""
    changes = {"LEASE_SECONDS": "60", "DRAIN_SECONDS": "20"}
    with ExitStack() as stack:
        arguments = (tmp_path, request, postgres, clip, TWO_WORKERS, changes)
        scene = stack.enter_context(running(*arguments))
        downloading = stack.enter_context(scene.relay.holding(Point.MID_DOWNLOAD))
        jobs = [scene.enqueue()]
        downloading.wait_until_reached()
        posting = stack.enter_context(scene.relay.holding(Point.BEFORE_REPLY))
        jobs.append(scene.enqueue())
        posting.wait_until_reached()
        jobs += [scene.enqueue() for _ in range(10)]
        both = (scene.deployment.submitter, scene.deployment.archiver)
        began = monotonic()
        for part in both:
            part.process.send_signal(signal.SIGTERM)
        for part in both:
            assert part.wait(PATIENCE - (monotonic() - began)) == 0, part.read_log()
        scene.deployment.start_workers()

        for job_id in jobs:
            assert_paid_and_archived_once(scene, job_id)
