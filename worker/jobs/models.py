"""The tables of a deployment: columns, constraints, indices.

Only the SQL in this package and the migrations read this module. Everything that other services
read with plain SQL is documented in `docs/job-table.md`.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Text,
    TextClause,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from worker.jobs.base import Base, Json, RowNumber
from worker.jobs.states import ENDED, BlockedBy, JobState, PauseCause


def _index_where(
    name: str, *columns: str | TextClause, where: str = "", unique: bool = False
) -> Index:
    """A partial index; without a condition, of the rows in which its first column has a value."""
    condition = text(where or f"{columns[0]} IS NOT NULL")
    return Index(name, *columns, unique=unique, postgresql_where=condition, sqlite_where=condition)


def _quote_all(values: Iterable[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)


_ALL_STATES = _quote_all(JobState)
_ENDED_STATES = _quote_all(sorted(ENDED))


_URGENT = text("priority DESC")


class JobRow(Base):
    """One job: a request for one extended video."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"state IN ({_ALL_STATES})", name="state"),
        CheckConstraint(f"(state IN ({_ENDED_STATES})) = (due_at IS NULL)", name="due_at"),
        CheckConstraint("state <> 'archived' OR archived_at IS NOT NULL", name="archived_at"),
        CheckConstraint("state <> 'failed' OR failed_at IS NOT NULL", name="failed_at"),
        CheckConstraint("state <> 'cancelled' OR cancelled_at IS NOT NULL", name="cancelled_at"),
        CheckConstraint("priority BETWEEN -100 AND 100", name="priority"),
        CheckConstraint("fence >= 0", name="fence"),
        UniqueConstraint("tenant", "idempotency_key"),
        CheckConstraint(f"blocked_by IN ({_quote_all(BlockedBy)})", name="blocked_by"),
        # What the sweep takes, in its order: neither ended rows nor queued ones, which admission
        # finds by the next one, tenant by tenant. Where an index begins with the state, though its
        # condition has it, SQLite prefers it without statistics.
        _index_where(
            "ix_jobs_due",
            *(_URGENT, "due_at", "id"),
            where="due_at IS NOT NULL AND state <> 'queued'",
        ),
        _index_where(
            "ix_jobs_admission",
            *("state", "tenant", _URGENT, "enqueued_at", "id"),
            where="state = 'queued' AND blocked_by IS NULL",
        ),
        _index_where(
            "ix_jobs_blocked",
            "state",
            "blocked_by",
            "due_at",
            where="state = 'queued' AND blocked_by IS NOT NULL",
        ),
        _index_where(
            "ix_jobs_expires_at",
            "state",
            "expires_at",
            where="state = 'queued' AND expires_at IS NOT NULL",
        ),
        _index_where(
            "ix_jobs_late",
            "due_at",
            where="archive_alarmed_at IS NOT NULL AND state IN ('completed', 'archiving')",
        ),
        # Counted at each claim of a download; as few as there are of these.
        _index_where("ix_jobs_archiving", "due_at", where="state = 'archiving'"),
        Index("ix_jobs_enqueued_at", "enqueued_at", "id"),
        # Live jobs are counted by state, with their ages, from this index alone.
        _index_where(
            "ix_jobs_live",
            "state",
            "due_at",
            "enqueued_at",
            "submitted_at",
            "completed_at",
            "redriven_at",
            where="due_at IS NOT NULL",
        ),
        # What the page and the shell list, and the ended jobs that everybody counts.
        Index("ix_jobs_state", "state", "enqueued_at", "id"),
        Index("ix_jobs_tenant", "tenant", "enqueued_at", "id"),
        _index_where("ix_jobs_archived_at", "archived_at", "enqueued_at"),
        _index_where("ix_jobs_failed_at", "failed_at"),
        _index_where("ix_jobs_idempotency_key", "idempotency_key"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    fence: Mapped[int] = mapped_column(Integer, default=0)
    priority: Mapped[int] = mapped_column(SmallInteger, default=0)
    state: Mapped[JobState]
    due_at: Mapped[datetime | None]
    tenant: Mapped[str] = mapped_column(String(128))
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    labels: Mapped[dict[str, Any]]
    endpoint: Mapped[str]
    input: Mapped[dict[str, Any]]
    options: Mapped[dict[str, Any]] = mapped_column(Json, server_default=text("'{}'"))
    claimed_by: Mapped[str | None]
    blocked_by: Mapped[str | None]
    blocked_reason: Mapped[str | None]
    not_before: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    redriven_at: Mapped[datetime | None]
    fal_request_id: Mapped[str | None]
    result: Mapped[dict[str, Any] | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    error_details: Mapped[list[Any] | None]
    archive_uri: Mapped[str | None]
    archive_sha256: Mapped[str | None] = mapped_column(String(64))
    archive_bytes: Mapped[int | None] = mapped_column(BigInteger)
    archive_media: Mapped[dict[str, Any] | None]
    archive_warnings: Mapped[list[Any] | None]
    archive_poster_uri: Mapped[str | None]
    archive_sidecar_uri: Mapped[str | None]
    archive_verified_at: Mapped[datetime | None]
    archive_error: Mapped[str | None]
    archive_alarmed_at: Mapped[datetime | None]
    archive_pruned_at: Mapped[datetime | None]
    quarantine_uri: Mapped[str | None]
    enqueued_at: Mapped[datetime]
    submitted_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    archived_at: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    cancelled_at: Mapped[datetime | None]


class AttemptRow(Base):
    """One paid submission: written before its POST, its outcome after."""

    __tablename__ = "attempts"
    __table_args__ = (
        UniqueConstraint("token_hash"),
        UniqueConstraint("job_id", "number"),
        CheckConstraint(
            "outcome IN ('accepted', 'rejected', 'postponed', 'unknown', 'dead')", name="outcome"
        ),
        CheckConstraint("ending IN ('ok', 'failed', 'cancelled')", name="ending"),
        # One request is one attempt's, however it was learnt of.
        _index_where("uq_attempts_fal_request_id", "fal_request_id", unique=True),
        _index_where("ix_attempts_cancel_due_at", "cancel_due_at"),
        _index_where("ix_attempts_extra_charge_at", "extra_charge_at"),
        _index_where("ix_attempts_slot_until", "slot_until"),
        _index_where("ix_attempts_completed_at", "completed_at"),
        Index("ix_attempts_outcome", "outcome"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    number: Mapped[int] = mapped_column(Integer)
    fence: Mapped[int] = mapped_column(Integer)
    token_hash: Mapped[str] = mapped_column(String(64))
    endpoint: Mapped[str]
    input: Mapped[dict[str, Any]]
    options: Mapped[dict[str, Any]] = mapped_column(Json, server_default=text("'{}'"))
    claimed_by: Mapped[str]
    account: Mapped[str | None]
    started_at: Mapped[datetime]
    observed_start: Mapped[float | None] = mapped_column(Float)
    slot_until: Mapped[datetime | None]
    admitted_cap: Mapped[int | None] = mapped_column(Integer)
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    http_status: Mapped[int | None] = mapped_column(SmallInteger)
    fal_request_id: Mapped[str | None]
    status_url: Mapped[str | None]
    response_url: Mapped[str | None]
    cancel_url: Mapped[str | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    completed_at: Mapped[datetime | None]
    ending: Mapped[str | None]
    retryable: Mapped[bool | None]
    cancel_due_at: Mapped[datetime | None]
    cancel_status: Mapped[str | None]
    extra_charge_at: Mapped[datetime | None]
    fal_status: Mapped[str | None]
    queue_position: Mapped[int | None] = mapped_column(Integer)
    inference_seconds: Mapped[float | None] = mapped_column(Float)
    logs: Mapped[list[Any] | None]


class DeliveryRow(Base):
    """One distinct webhook POST with a known token; repetitions are counted on it."""

    __tablename__ = "deliveries"
    __table_args__ = (
        UniqueConstraint("attempt_id", "body_sha256"),
        CheckConstraint("verdict IN ('recorded', 'kept', 'hint')", name="verdict"),
        Index("ix_deliveries_verdict", "verdict"),
    )

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    attempt_id: Mapped[UUID] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"))
    received_at: Mapped[datetime]
    last_received_at: Mapped[datetime]
    times_received: Mapped[int] = mapped_column(Integer)
    fal_request_id: Mapped[str]
    gateway_request_id: Mapped[str | None]
    status: Mapped[str]
    verdict: Mapped[str] = mapped_column(Text, server_default=text("'recorded'"))
    body: Mapped[bytes] = mapped_column(LargeBinary)
    body_sha256: Mapped[str] = mapped_column(String(64))


class StrayDeliveryRow(Base):
    """One distinct webhook POST with a token of ours, whose job has no row (any more)."""

    __tablename__ = "stray_deliveries"
    __table_args__ = (
        UniqueConstraint("token_hash", "body_sha256"),
        CheckConstraint("verdict IN ('kept', 'hint')", name="verdict"),
    )

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    job_id: Mapped[UUID]
    number: Mapped[int] = mapped_column(Integer)
    token_hash: Mapped[str] = mapped_column(String(64))
    received_at: Mapped[datetime]
    last_received_at: Mapped[datetime]
    times_received: Mapped[int] = mapped_column(Integer)
    fal_request_id: Mapped[str]
    gateway_request_id: Mapped[str | None]
    status: Mapped[str]
    verdict: Mapped[str]
    body: Mapped[bytes] = mapped_column(LargeBinary)
    body_sha256: Mapped[str] = mapped_column(String(64))


class RestoreRow(Base):
    """A back-up that was restored: of what happened since `lost_since` the rows are lost."""

    __tablename__ = "restores"
    __table_args__ = (UniqueConstraint("lost_since"),)

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    epoch: Mapped[str]
    lost_since: Mapped[datetime]
    restored_at: Mapped[datetime]


class EventRow(Base):
    """Append-only history: one row per transition, in its transaction."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    at: Mapped[datetime]
    from_state: Mapped[JobState | None]
    to_state: Mapped[JobState]
    reason: Mapped[str]
    detail: Mapped[str | None]
    fence: Mapped[int] = mapped_column(Integer)


class UploadRow(Base):
    """A file at fal, by its content: the same bytes are not uploaded again while fal keeps them."""

    __tablename__ = "uploads"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    content_type: Mapped[str]
    url: Mapped[str]
    uploaded_at: Mapped[datetime]


class GateRow(Base):
    """A circuit breaker or rate limit of all workers: until `opens_at` they pause.

    At `opens_at` one of them passes, and moves the time on. `strikes` counts the failures that lead
    to the pause, while it is not one yet.
    """

    __tablename__ = "gates"

    name: Mapped[str] = mapped_column(primary_key=True)
    opens_at: Mapped[datetime]
    reason: Mapped[str | None]
    strikes: Mapped[int] = mapped_column(Integer, server_default=text("0"))


class LimitRow(Base):
    """The limits of a scope (`account`, `tenant:NAME`), and its share of what was admitted.

    Without a value of its own the account has that of the settings, which the workers note beside
    it. `served` is in units per weight; the account's is that of the tenant admitted last.
    """

    __tablename__ = "limits"
    __table_args__ = (CheckConstraint("weight BETWEEN 1 AND 1000", name="weight"),)

    scope: Mapped[str] = mapped_column(primary_key=True)
    max_in_flight: Mapped[int | None] = mapped_column(Integer)
    per_minute: Mapped[int | None] = mapped_column(Integer)
    daily_budget_nano_usd: Mapped[int | None] = mapped_column(BigInteger)
    weight: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    served: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    admissions: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    default_max_in_flight: Mapped[int | None] = mapped_column(Integer)
    default_per_minute: Mapped[int | None] = mapped_column(Integer)
    default_daily_budget_nano_usd: Mapped[int | None] = mapped_column(BigInteger)
    default_unit_price_nano_usd: Mapped[int | None] = mapped_column(BigInteger)


class PauseRow(Base):
    """A scope of which nothing is admitted, for one cause; each cause ends by its own rule.

    From `until` on one probe may be sent, if the cause has one. `room`, once fal takes submissions
    again, is how many may be under way at once; `strikes` counts failures in a row.
    """

    __tablename__ = "pauses"
    __table_args__ = (CheckConstraint(f"cause IN ({_quote_all(PauseCause)})", name="cause"),)

    scope: Mapped[str] = mapped_column(primary_key=True)
    cause: Mapped[str] = mapped_column(primary_key=True)
    reason: Mapped[str]
    host: Mapped[str | None]
    since: Mapped[datetime]
    until: Mapped[datetime | None]
    strikes: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    room: Mapped[int | None] = mapped_column(Integer)


class ChargeRow(Base):
    """What one attempt costs, in nano-USD: an estimate at first, then what fal has billed.

    No foreign key: it outlives the job's row. `counted_nano_usd` is what `spend` has of it. The
    budgets are those of its day that it was admitted under.
    """

    __tablename__ = "charges"
    __table_args__ = (
        CheckConstraint("source IN ('billing_events', 'units', 'estimate')", name="source"),
        Index("ix_charges_job_id", "job_id"),
        Index("ix_charges_admitted_at", "admitted_at"),
        _index_where("ix_charges_due_at", "due_at"),
    )

    attempt_id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID]
    tenant: Mapped[str] = mapped_column(String(128))
    day: Mapped[str]
    admitted_at: Mapped[datetime]
    units: Mapped[int] = mapped_column(Integer)
    assumed: Mapped[str | None]
    unit_price_nano_usd: Mapped[int | None] = mapped_column(BigInteger)
    estimated_nano_usd: Mapped[int | None] = mapped_column(BigInteger)
    counted_nano_usd: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    account_budget_nano_usd: Mapped[int | None] = mapped_column(BigInteger)
    tenant_budget_nano_usd: Mapped[int | None] = mapped_column(BigInteger)
    billed_units: Mapped[str | None]
    billed_nano_usd: Mapped[int | None] = mapped_column(BigInteger)
    source: Mapped[str | None]
    void_reason: Mapped[str | None]
    due_at: Mapped[datetime | None]
    settled_at: Mapped[datetime | None]
    voided_at: Mapped[datetime | None]


class SpendRow(Base):
    """What a scope has spent on a UTC day, reserved amounts included; `alarmed_at` once it is all.

    Changed only under the lock of the account's row of `limits`.
    """

    __tablename__ = "spend"

    scope: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[str] = mapped_column(primary_key=True)
    nano_usd: Mapped[int] = mapped_column(BigInteger)
    alarmed_at: Mapped[datetime | None]


class PriceRow(Base):
    """The platform's price of an endpoint, as it was last read."""

    __tablename__ = "prices"

    endpoint: Mapped[str] = mapped_column(primary_key=True)
    unit: Mapped[str]
    unit_price_nano_usd: Mapped[int] = mapped_column(BigInteger)
    read_at: Mapped[datetime]


class ObservedTimeRow(Base):
    """One row: the seconds in which a sweep was watching; `noted_at` is seconds since 1970."""

    __tablename__ = "observed_time"
    __table_args__ = (CheckConstraint("id = 1", name="id"),)

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    seconds: Mapped[float] = mapped_column(Float)
    noted_at: Mapped[float] = mapped_column(Float)


class CachedCountRow(Base):
    """What was counted, when, and how long that took: so that its readers need not count again."""

    __tablename__ = "tallies"

    name: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(Integer)
    counted_at: Mapped[datetime]
    seconds: Mapped[float] = mapped_column(Float)
    value: Mapped[dict[str, Any]]


class WorkerRow(Base):
    """A Celery worker, and when it was last seen at work."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    pid: Mapped[int] = mapped_column(Integer)
    queues: Mapped[list[Any]]
    started_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    last_step: Mapped[str | None]
    last_step_at: Mapped[datetime | None]
    archive_fault: Mapped[str | None]
    processes: Mapped[dict[str, Any] | None]


class ArchiveMarkRow(Base):
    """The id that the archive at this location holds, so that another one there is noticed."""

    __tablename__ = "archive_marks"

    location: Mapped[str] = mapped_column(primary_key=True)
    mark: Mapped[str]
    noted_at: Mapped[datetime]


class JobRequestRow(Base):
    """A request that came and is no job: refused, or not looked at to its end yet."""

    __tablename__ = "job_requests"
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'refused', 'accepted')", name="state"),
        CheckConstraint("(state = 'refused') = (error_code IS NOT NULL)", name="error_code"),
        CheckConstraint("claims >= 0", name="claims"),
        # A message that comes twice is one request.
        _index_where(
            "uq_job_requests_door_message_id",
            "door",
            "message_id",
            where="message_id IS NOT NULL",
            unique=True,
        ),
        Index("ix_job_requests_received_at", "received_at", "id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    state: Mapped[str]
    door: Mapped[str]
    message_id: Mapped[str | None] = mapped_column(String(200))
    tenant: Mapped[str | None] = mapped_column(String(128))
    received_at: Mapped[datetime]
    fields: Mapped[dict[str, Any]]
    error_code: Mapped[str | None]
    errors: Mapped[list[Any] | None]
    claims: Mapped[int] = mapped_column(Integer, server_default=text("0"))
