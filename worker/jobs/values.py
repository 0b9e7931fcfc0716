"""Frozen values of the rows, so that nothing outside a transaction changes one by accident."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from worker.jobs.states import BlockedBy, Doorbell, JobState, step_for


class Outcome(StrEnum):
    """What became of an attempt's POST."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    POSTPONED = "postponed"
    UNKNOWN = "unknown"
    DEAD = "dead"


class Ending(StrEnum):
    """How fal finished an attempt's request."""

    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Verdict(StrEnum):
    """The disposition of a delivery."""

    RECORDED = "recorded"
    DUPLICATE = "duplicate"
    # Genuine, but the job had moved on without it, or its result has to be fetched.
    KEPT = "kept"
    # It proves nothing: fal is polled.
    HINT = "hint"
    # Genuine, by a token of ours, but its job has no row: it is kept for an operator.
    STRAY = "stray"


@dataclass(frozen=True, slots=True)
class NewJob:
    """A row of `jobs` as its producer requests it."""

    id: UUID
    endpoint: str
    input: dict[str, Any]
    tenant: str
    idempotency_key: str | None
    priority: int
    labels: dict[str, str]
    enqueued_at: datetime
    due_at: datetime
    options: dict[str, Any] = field(default_factory=dict)
    blocked_by: str | None = None
    blocked_reason: str | None = None
    not_before: datetime | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A row of `jobs`, as read in one transaction."""

    id: UUID
    fence: int
    priority: int
    state: JobState
    due_at: datetime | None
    tenant: str
    idempotency_key: str | None
    labels: dict[str, str]
    endpoint: str
    input: dict[str, Any]
    options: dict[str, Any]
    claimed_by: str | None
    blocked_by: str | None
    blocked_reason: str | None
    not_before: datetime | None
    expires_at: datetime | None
    cancel_requested_at: datetime | None
    redriven_at: datetime | None
    fal_request_id: str | None
    result: dict[str, Any] | None
    error_code: str | None
    error_message: str | None
    error_details: list[Any] | None
    archive_uri: str | None
    archive_sha256: str | None
    archive_bytes: int | None
    archive_media: dict[str, Any] | None
    archive_warnings: list[Any] | None
    archive_poster_uri: str | None
    archive_sidecar_uri: str | None
    archive_verified_at: datetime | None
    archive_error: str | None
    archive_alarmed_at: datetime | None
    archive_pruned_at: datetime | None
    quarantine_uri: str | None
    enqueued_at: datetime
    submitted_at: datetime | None
    completed_at: datetime | None
    archived_at: datetime | None
    failed_at: datetime | None
    cancelled_at: datetime | None

    @property
    def tried_since(self) -> datetime:
        """When the present series of attempts began: bounds on retries count from here."""
        return self.redriven_at or self.enqueued_at

    @property
    def is_held(self) -> bool:
        """Whether fal never accepted the submission, and an operator decides what follows."""
        return self.blocked_by == BlockedBy.HOLD

    @property
    def is_unrecordable(self) -> bool:
        """Whether fal has finished the job, and the database does not take what came of it."""
        return self.blocked_by == BlockedBy.UNRECORDABLE

    @property
    def is_unanswered(self) -> bool:
        """Whether the last polls of the submitted job have failed."""
        return self.blocked_by == BlockedBy.UNANSWERED

    @property
    def doorbell(self) -> Doorbell | None:
        """What to publish now that this state is committed."""
        step = step_for(self.state)
        return None if step is None else Doorbell(step, self.id)


@dataclass(frozen=True, slots=True)
class Claim:
    """Which worker takes a job, when, and until when it may be silent."""

    worker: str
    now: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class Move:
    """How a job moves along an edge: when, when it is due next, and what else is written."""

    now: datetime
    due_at: datetime | None = None
    detail: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NewAttempt:
    """A row of `attempts` before its POST."""

    id: UUID
    token_hash: str
    started_at: datetime
    options: dict[str, Any] = field(default_factory=dict)
    account: str | None = None
    """A fingerprint of the key that pays: another account's silence proves nothing."""
    slot_until: datetime | None = None
    """Until then it is, or may be, at fal: it counts as in flight."""
    admitted_cap: int | None = None
    """How many might be in flight when it was admitted."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What became of an attempt's POST."""

    outcome: Outcome
    ended_at: datetime
    http_status: int | None = None
    fal_request_id: str | None = None
    status_url: str | None = None
    response_url: str | None = None
    cancel_url: str | None = None
    error_code: str | None = None
    error_message: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of `attempts`."""

    id: UUID
    job_id: UUID
    number: int
    fence: int
    token_hash: str
    endpoint: str
    input: dict[str, Any]
    options: dict[str, Any]
    claimed_by: str
    account: str | None
    started_at: datetime
    observed_start: float | None
    slot_until: datetime | None
    admitted_cap: int | None
    ended_at: datetime | None
    outcome: str | None
    http_status: int | None
    fal_request_id: str | None
    status_url: str | None
    response_url: str | None
    cancel_url: str | None
    error_code: str | None
    error_message: str | None
    completed_at: datetime | None
    ending: str | None
    retryable: bool | None
    cancel_due_at: datetime | None
    cancel_status: str | None
    extra_charge_at: datetime | None
    fal_status: str | None
    queue_position: int | None
    inference_seconds: float | None
    logs: list[Any] | None


@dataclass(frozen=True, slots=True)
class RequestClaim:
    """An attempt that has a listed request; confirmed by a reply or a webhook, not by its input."""

    attempt_id: UUID
    claimed_at: datetime
    is_verified: bool


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """A webhook POST as it reached the receiver."""

    received_at: datetime
    fal_request_id: str
    gateway_request_id: str | None
    status: str
    verdict: Verdict
    body: bytes


@dataclass(frozen=True, slots=True)
class Delivery:
    """A row of `deliveries`."""

    id: int
    job_id: UUID
    attempt_id: UUID
    received_at: datetime
    last_received_at: datetime
    times_received: int
    fal_request_id: str
    gateway_request_id: str | None
    status: str
    verdict: str
    body: bytes
    body_sha256: str


@dataclass(frozen=True, slots=True)
class Event:
    """A row of `events`."""

    id: int
    job_id: UUID
    at: datetime
    from_state: JobState | None
    to_state: JobState
    reason: str
    detail: str | None
    fence: int


@dataclass(frozen=True, slots=True)
class Gate:
    """A row of `gates`."""

    name: str
    opens_at: datetime
    reason: str | None = None
    strikes: int = 0


@dataclass(frozen=True, slots=True)
class Restore:
    """A row of `restores`."""

    id: int
    epoch: str
    lost_since: datetime
    restored_at: datetime
