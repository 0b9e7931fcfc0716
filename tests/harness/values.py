"""A job and its rows as values, with words of others in them, for what reads no table."""

from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

from tests.harness.jobs import NOW, REQUEST_ID
from worker.jobs.states import JobState
from worker.jobs.values import Attempt, Delivery, Event, Job

JOB_ID = UUID("01938000-0000-7000-8000-000000000001")
MARKUP = "[red]not markup[/red] [/bold] \\[x] [link=https://h] team:key:eu :smiley:"

JOB = Job(
    id=JOB_ID,
    fence=1,
    priority=0,
    state=JobState.SUBMITTED,
    due_at=NOW + timedelta(seconds=60),
    tenant=MARKUP,
    idempotency_key=None,
    labels={"a": MARKUP},
    endpoint="fal-ai/ltx-2.3-22b/extend-video",
    input={"prompt": MARKUP, "seed": 7},
    options={},
    claimed_by=None,
    blocked_reason=MARKUP,
    cancel_requested_at=None,
    redriven_at=None,
    fal_request_id=REQUEST_ID,
    result=None,
    error_code=None,
    error_message=None,
    error_details=None,
    archive_uri=None,
    archive_sha256=None,
    archive_bytes=None,
    archive_media=None,
    archive_warnings=None,
    archive_poster_uri=None,
    archive_sidecar_uri=None,
    archive_verified_at=None,
    archive_error=None,
    archive_alarmed_at=None,
    archive_pruned_at=None,
    quarantine_uri=None,
    enqueued_at=NOW,
    submitted_at=NOW,
    completed_at=None,
    archived_at=None,
    failed_at=None,
    cancelled_at=None,
)
ATTEMPT = Attempt(
    id=uuid4(),
    job_id=JOB_ID,
    number=1,
    fence=1,
    token_hash="0" * 64,
    endpoint=JOB.endpoint,
    input={},
    options={},
    claimed_by="w:1",
    account="tester",
    observed_start=0.0,
    started_at=NOW,
    ended_at=None,
    outcome=None,
    http_status=None,
    fal_request_id=None,
    status_url=None,
    response_url=None,
    cancel_url=None,
    error_code=None,
    error_message=MARKUP,
    completed_at=None,
    ending=None,
    retryable=None,
    cancel_due_at=None,
    cancel_status=None,
    extra_charge_at=None,
    fal_status=None,
    queue_position=None,
    inference_seconds=None,
    logs=None,
)
DELIVERY = Delivery(
    id=1,
    job_id=JOB_ID,
    attempt_id=ATTEMPT.id,
    received_at=NOW,
    last_received_at=NOW,
    times_received=1,
    fal_request_id=REQUEST_ID,
    gateway_request_id=None,
    status="OK",
    verdict="recorded",
    body=b"\xff\x00",
    body_sha256="0" * 64,
)
EVENT = Event(
    id=1,
    job_id=JOB_ID,
    at=NOW,
    from_state=None,
    to_state=JobState.QUEUED,
    reason="enqueued",
    detail=None,
    fence=0,
)
MOVED = replace(
    EVENT,
    at=NOW + timedelta(milliseconds=1500),
    from_state=JobState.QUEUED,
    to_state=JobState.FAILED,
    reason="submission_rejected",
    detail=MARKUP,
)
