"""Legal rows in any state, made the way the stages make them."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection
from uuid_utils.compat import uuid7

from worker.ground.db import Database
from worker.jobs import attempts, queries, table
from worker.jobs.states import EDGES, ENDED, JobEvent, JobState
from worker.jobs.values import Attempt, Claim, Job, Move, NewAttempt, NewJob

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
LEASE = timedelta(seconds=60)
ENDPOINT = "fal-ai/ltx-2.3-22b/extend-video"
TOKEN = "the-token-of-the-only-attempt"
REQUEST_ID = "7f3c1d0e-0000-4000-8000-00000000aaaa"
CLAIMS = {JobEvent.SUBMISSION_CLAIMED, JobEvent.ARCHIVE_CLAIMED}

# The shortest way to each state.
WAYS: dict[JobState, tuple[JobEvent, ...]] = {
    JobState.QUEUED: (),
    JobState.SUBMITTING: (JobEvent.SUBMISSION_CLAIMED,),
    JobState.SUBMISSION_UNKNOWN: (JobEvent.SUBMISSION_CLAIMED, JobEvent.SUBMISSION_LOST),
    JobState.SUBMITTED: (JobEvent.SUBMISSION_CLAIMED, JobEvent.SUBMISSION_ACCEPTED),
    JobState.COMPLETED: (
        JobEvent.SUBMISSION_CLAIMED,
        JobEvent.SUBMISSION_ACCEPTED,
        JobEvent.RESULT_ARRIVED,
    ),
    JobState.ARCHIVING: (
        JobEvent.SUBMISSION_CLAIMED,
        JobEvent.SUBMISSION_ACCEPTED,
        JobEvent.RESULT_ARRIVED,
        JobEvent.ARCHIVE_CLAIMED,
    ),
    JobState.ARCHIVED: (
        JobEvent.SUBMISSION_CLAIMED,
        JobEvent.SUBMISSION_ACCEPTED,
        JobEvent.RESULT_ARRIVED,
        JobEvent.ARCHIVE_CLAIMED,
        JobEvent.ARCHIVE_RECORDED,
    ),
    JobState.FAILED: (JobEvent.SUBMISSION_CLAIMED, JobEvent.SUBMISSION_REJECTED),
    JobState.CANCELLED: (JobEvent.JOB_CANCELLED,),
}


def build_result(url: str = "https://v3.fal.media/files/b/0a/clip.mp4") -> dict[str, Any]:
    video = {"url": url, "content_type": "video/mp4", "num_frames": 144}
    return {"video": video, "seed": 7, "prompt": "on it goes"}


def insert_job(db: Database, *, now: datetime = NOW, **columns: Any) -> Job:
    """A fresh queued job, due one lease later."""
    values: dict[str, Any] = {
        "id": uuid7(),
        "endpoint": ENDPOINT,
        "input": {"prompt": "on it goes", "video_url": "https://example.com/a.mp4", "seed": 7},
        "tenant": "default",
        "idempotency_key": None,
        "priority": 0,
        "labels": {},
        "enqueued_at": now,
        "due_at": now + LEASE,
    }
    with db.transaction() as connection:
        job = table.insert_job(connection, NewJob(**(values | columns)))
    assert job is not None
    return job


def make_job(
    db: Database,
    state: JobState = JobState.QUEUED,
    *,
    now: datetime = NOW,
    result: Mapping[str, Any] | None = None,
    **columns: Any,
) -> Job:
    """A job led to `state` along legal edges, with its attempt where one belongs."""
    job = insert_job(db, now=now, **columns)
    for event in WAYS[state]:
        moved = lead_job(db, job, event, now=now, result=result)
        assert moved is not None
        job = moved
    return job


def lead_job(
    db: Database,
    job: Job,
    event: JobEvent,
    *,
    now: datetime = NOW,
    result: Mapping[str, Any] | None = None,
) -> Job | None:
    """Apply one event with plausible columns, or claim."""
    with db.transaction() as connection:
        if event in CLAIMS:
            claim = Claim("tester:1", now, now + LEASE)
            claimed = table.claim_job(connection, job.id, event, claim)
            if claimed is not None and event is JobEvent.SUBMISSION_CLAIMED:
                number = len(attempts.list_attempts(connection, job.id)) + 1
                token = TOKEN if number == 1 else f"{TOKEN}-{number}"
                new = NewAttempt(uuid7(), attempts.hash_token(f"{token}"), now)
                attempts.insert_attempt(connection, claimed, new)
            return claimed
        target = EDGES.get((job.state, event))
        due_at = None if target in ENDED else now + LEASE
        columns: dict[str, Any] = {}
        if event is JobEvent.RESULT_ARRIVED:
            columns["result"] = dict(result or build_result())
        return table.apply_event(connection, job, event, Move(now, due_at, columns=columns))


def move_job(db: Database, job: Job, event: JobEvent, *, now: datetime = NOW) -> Job:
    """As `lead_job`, where it must succeed."""
    moved = lead_job(db, job, event, now=now)
    assert moved is not None
    return moved


def read_job(db: Database, job_id: UUID) -> Job:
    with db.reading() as connection:
        return table.get_job(connection, job_id)


def read_attempts(db: Database, job_id: UUID) -> list[Attempt]:
    with db.reading() as connection:
        return attempts.list_attempts(connection, job_id)


def list_all_jobs(connection: Connection) -> list[Job]:
    """Every job, the newest first."""
    lines = queries.list_page(connection, queries.JobFilter(), limit=1000).lines
    return queries.list_by_ids(connection, [line.id for line in lines])
