"""What fal is told about a job: stored as it was given, sent as it was resolved, and on record."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from tests.harness.clock import FakeClock
from tests.harness.jobs import ENDPOINT, LEASE, REQUEST_ID, read_attempts, read_job
from tests.harness.stages import submit_job
from tests.harness.web import ScriptedServer, run_server, send_json
from worker.fal.options import RequestOptions, parse_options
from worker.fal.submit import QueueClient
from worker.ground.db import Database
from worker.ground.errors import IdempotencyConflictError, InvalidInputError
from worker.jobs.admission import Caps
from worker.jobs.states import JobState
from worker.jobs.values import Job
from worker.stages.admit import AdmissionPolicy
from worker.stages.enqueue import Enqueued, enqueue_job, parse_job_request
from worker.stages.submit import SubmitPolicy

FIELDS: dict[str, Any] = {"prompt": "on it goes", "video_url": "https://example.com/a.mp4"}
USUAL = {"priority": "normal", "start_timeout": 3600, "store_io": True}
TERMS = SubmitPolicy(
    worker="tester:1",
    webhook_base_url="https://hooks.example.com",
    options=parse_options(USUAL),
    lease=LEASE,
    poll_after=timedelta(minutes=2),
    retry_for=timedelta(days=1),
    probe_after=timedelta(minutes=1),
    admission=AdmissionPolicy(Caps(1000), ENDPOINT),
)
LIFECYCLE = "X-Fal-Object-Lifecycle-Preference"


@pytest.fixture
def fal() -> Iterator[ScriptedServer]:
    with run_server(send_json({"request_id": REQUEST_ID})) as server:
        yield server


def enqueue(db: Database, **fields: object) -> Enqueued:
    job_request = parse_job_request({**FIELDS, **fields})
    return enqueue_job(
        job_request, db=db, endpoint=ENDPOINT, dispatch_timeout=LEASE, clock=FakeClock()
    )


def submit(db: Database, fal: ScriptedServer, job: Job, usual: object = USUAL) -> Job:
    queue = QueueClient(fal.url, SecretStr("key"))
    policy = replace(TERMS, options=parse_options(usual))
    try:
        moved = submit_job(job, db=db, queue=queue, policy=policy, clock=FakeClock())
    finally:
        queue.close()
    assert moved is not None
    return moved


# ------------------------------------------------------------------ enqueue


@pytest.mark.both_databases
def test_options_are_stored_as_they_were_given(db) -> None:
    given = {"priority": "low", "start_timeout": 30, "object_expiration": None, "tags": {"a": "b"}}
    assert read_job(db, enqueue(db, fal_options=given).job.id).options == given


def test_options_may_be_given_as_python_has_them(db) -> None:
    given = RequestOptions(start_timeout=timedelta(minutes=1))
    assert read_job(db, enqueue(db, fal_options=given).job.id).options == {"start_timeout": 60}


def test_options_wrong_are_listed_with_the_wrong_input(db) -> None:
    with pytest.raises(InvalidInputError) as refused:
        enqueue(
            db,
            num_frames=1,
            priority=101,
            fal_options={"priority": 5, "tags": {"A": "b"}, "retries": 1},
        )
    assert [violation.field for violation in refused.value.violations] == [
        "num_frames",
        "priority",
        "fal_options.priority",
        "fal_options.tags",
        "fal_options.retries",
    ]


def test_options_that_hide_the_result_are_taken(db) -> None:
    """The archive reads it by a signed URL."""
    acl = {"default": "hide", "rules": [{"user": "u", "decision": "allow"}]}
    assert enqueue(db, fal_options={"initial_acl": acl}).job.options == {"initial_acl": acl}


@pytest.mark.both_databases
def test_same_key_with_same_options_is_the_same_job(db) -> None:
    options = {"priority": "low", "tags": {"a": "b", "c": "d"}}
    first = enqueue(db, idempotency_key="k", fal_options=options)
    again = {"tags": {"c": "d", "a": "b"}, "priority": "low"}
    second = enqueue(db, idempotency_key="k", fal_options=again)
    assert (second.job.id, second.created) == (first.job.id, False)


@pytest.mark.parametrize("options", [{}, {"priority": "normal"}])
def test_same_key_with_other_options_is_a_conflict(db, options) -> None:
    enqueue(db, idempotency_key="k", fal_options={"priority": "low"})
    with pytest.raises(IdempotencyConflictError, match="fal_options"):
        enqueue(db, idempotency_key="k", fal_options=options)


# ------------------------------------------------------------------ submit


def test_submission_sends_the_usual_where_the_job_says_nothing(db, fal) -> None:
    job = submit(db, fal, enqueue(db).job)
    headers = fal.asked[0].headers
    assert headers["X-Fal-Queue-Priority"] == "normal"
    assert headers["X-Fal-Request-Start-Timeout"] == headers["X-Fal-Request-Timeout"] == "3600"
    assert headers["X-Fal-Store-IO"] == "1"
    (attempt,) = read_attempts(db, job.id)
    assert attempt.options == USUAL


@pytest.mark.both_databases
def test_submission_sends_what_the_job_says_before_the_usual(db, fal) -> None:
    given = {
        "priority": "low",
        "store_io": False,
        "object_expiration": 7200,
        "tags": {"team": "video"},
        "no_retry": True,
        "disable_fallback": True,
        "runner_hint": "sticky",
        "initial_acl": {"default": "allow"},
    }
    usual = USUAL | {"tags": {"usual": "yes"}, "runner_hint": "other"}
    job = submit(db, fal, enqueue(db, fal_options=given).job, usual)
    (attempt,) = read_attempts(db, job.id)
    assert attempt.options == usual | given
    sent = fal.asked[0].headers
    expected = parse_options(attempt.options).to_headers()
    assert {name: sent[name] for name in expected} == expected
    assert (sent["X-Fal-Tags"], sent["X-Fal-Runner-Hint"]) == ("team=video", "sticky")
    assert (sent["x-app-fal-disable-fallback"], sent["X-Fal-No-Retry"]) == ("true", "1")
    assert read_job(db, job.id).options == given


def test_submission_of_job_that_wants_nothing_said_says_nothing(db, fal) -> None:
    submit(db, fal, enqueue(db, fal_options={"priority": None, "start_timeout": None}).job)
    names = {name.lower() for name in fal.asked[0].headers}
    assert names & {"x-fal-queue-priority", "x-fal-request-timeout"} == set()
    assert "x-fal-store-io" in names


def test_each_attempt_keeps_what_was_sent_then(db, fal) -> None:
    """Settings may change between the two."""
    fal.answer = send_json({"detail": "slow down"}, 429)
    job = enqueue(db, fal_options={"priority": "low"}).job
    assert submit(db, fal, job).state is JobState.QUEUED
    fal.answer = send_json({"request_id": REQUEST_ID})
    later = FakeClock()
    later.move(timedelta(hours=1))
    queue = QueueClient(fal.url, SecretStr("key"))
    policy = replace(TERMS, options=parse_options({"start_timeout": 7}))
    submit_job(job, db=db, queue=queue, policy=policy, clock=later)
    queue.close()
    first, second = read_attempts(db, job.id)
    assert first.options == USUAL | {"priority": "low"}
    assert second.options == {"start_timeout": 7, "priority": "low"}
