"""SQL on `attempts`, by the same rules as `table.py`."""

import hashlib
from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    exists,
    func,
    insert,
    null,
    or_,
    select,
    true,
    type_coerce,
    update,
)

from worker.jobs.base import UtcDateTime
from worker.jobs.models import AttemptRow, DeliveryRow, JobRow
from worker.jobs.observed import observed_seconds
from worker.jobs.rows import (
    columns_of,
    fetch_all,
    fetch_one,
    name_values,
    table_of,
)
from worker.jobs.states import JobState
from worker.jobs.values import (
    Attempt,
    Ending,
    Job,
    NewAttempt,
    Outcome,
    RequestClaim,
    Settlement,
    Verdict,
)

COMPLETED = "COMPLETED"
HTTP_ACCEPTED = 200
# fal's answer to the cancellation of a request that it had not started.
REMOVED = "OK"
# What is known of every request that fal has finished.
FINISHED = {
    "fal_status": COMPLETED,
    "queue_position": None,
    "cancel_due_at": None,
    "slot_until": None,
}
# An attempt is first without an outcome. A certain one replaces an uncertain one, however late it
# comes, and is final itself.
# After these fal surely has no request of the attempt: its slot is free.
_SLOT_FREE = frozenset({Outcome.REJECTED, Outcome.POSTPONED, Outcome.DEAD})
_CERTAIN = frozenset({Outcome.ACCEPTED, Outcome.REJECTED, Outcome.POSTPONED, Outcome.DEAD})
OUTCOME_MAY_BECOME: dict[Outcome | None, frozenset[Outcome]] = {
    None: frozenset(Outcome),
    Outcome.UNKNOWN: _CERTAIN,
    Outcome.DEAD: _CERTAIN,
    Outcome.ACCEPTED: frozenset(),
    Outcome.REJECTED: frozenset(),
    Outcome.POSTPONED: frozenset(),
}
# The same of how fal finished the request. A failure may be a mistake of ours (a result given up),
# a result never is.
ENDING_MAY_BECOME: dict[Ending | None, frozenset[Ending]] = {
    None: frozenset(Ending),
    Ending.FAILED: frozenset(Ending),
    Ending.CANCELLED: frozenset({Ending.OK}),
    Ending.OK: frozenset(),
}
_ATTEMPTS = table_of(AttemptRow)


def _may_become(
    column: ColumnElement[str | None], new: StrEnum, edges: Mapping[Any, Container[Any]]
) -> ColumnElement[bool]:
    """Whether the column's value may be replaced by the new one."""
    earlier = [old for old, replaced_by in edges.items() if old is not None and new in replaced_by]
    return or_(column.is_(None), column.in_(earlier))


def hash_token(token: str) -> str:
    """What is stored of a webhook token, so that the table gives no token away."""
    return hashlib.sha256(token.encode()).hexdigest()


def find_next_number(connection: Connection, job_id: UUID) -> int:
    """What the job's next attempt is called; good for as long as the job's row is locked."""
    earlier = select(func.count()).where(_ATTEMPTS.c.job_id == job_id)
    return int(connection.execute(earlier).scalar_one()) + 1


def insert_attempt(connection: Connection, job: Job, new: NewAttempt) -> Attempt:
    """The intent to pay once for `job`, with the very input and options that will be sent."""
    earlier = select(func.count()).where(_ATTEMPTS.c.job_id == job.id)
    statement = insert(_ATTEMPTS).values(
        **name_values(new),
        job_id=job.id,
        number=earlier.scalar_subquery() + 1,
        fence=job.fence,
        endpoint=job.endpoint,
        input=job.input,
        claimed_by=job.claimed_by,
        observed_start=observed_seconds(),
    )
    return Attempt(**connection.execute(statement.returning(_ATTEMPTS)).mappings().one())


def accept_attempt(connection: Connection, attempt: Attempt, settlement: Settlement) -> bool:
    """As `adopt_request` and then `record_outcome`, in one; False if not both could be done.

    Then nothing is written.
    """
    assert settlement.fal_request_id is not None  # noqa: S101 - for the type alone
    may_become = _may_become(_ATTEMPTS.c.outcome, settlement.outcome, OUTCOME_MAY_BECOME)
    statement = (
        update(_ATTEMPTS)
        .where(_may_have(attempt.id, settlement.fal_request_id), may_become)
        .values(name_values(settlement))
    )
    return connection.execute(statement).rowcount == 1


def record_outcome(connection: Connection, attempt_id: UUID, settlement: Settlement) -> None:
    """Write what became of the POST; a request id that a webhook brought first is kept.

    An attempt whose request is known was accepted, also if the reply was lost.
    """
    values = name_values(settlement)
    known, is_known = values.pop("fal_request_id"), _ATTEMPTS.c.fal_request_id.is_not(None)
    values["outcome"] = case((is_known, Outcome.ACCEPTED.value), else_=settlement.outcome.value)
    if settlement.outcome in _SLOT_FREE:
        values["slot_until"] = case((is_known, _ATTEMPTS.c.slot_until), else_=null())
    may_become = _may_become(_ATTEMPTS.c.outcome, settlement.outcome, OUTCOME_MAY_BECOME)
    connection.execute(
        update(_ATTEMPTS)
        .where(_ATTEMPTS.c.id == attempt_id, may_become)
        .values(**values, fal_request_id=func.coalesce(_ATTEMPTS.c.fal_request_id, known))
    )


def adopt_request(connection: Connection, attempt: Attempt, fal_request_id: str) -> bool:
    """Give the attempt its request id; False if it has another, or if another attempt has it."""
    statement = (
        update(_ATTEMPTS)
        .where(_may_have(attempt.id, fal_request_id))
        .values(fal_request_id=fal_request_id)
    )
    return connection.execute(statement).rowcount == 1


def _may_have(attempt_id: UUID, fal_request_id: str) -> ColumnElement[bool]:
    """The attempt, if it has no request id or this one, and no other attempt has it."""
    known, other = _ATTEMPTS.c.fal_request_id, _ATTEMPTS.alias()
    is_taken = exists().where(other.c.fal_request_id == fal_request_id, other.c.id != attempt_id)
    is_free = or_(known.is_(None), known == fal_request_id)
    return and_(_ATTEMPTS.c.id == attempt_id, is_free, ~is_taken)


def complete_attempt(
    connection: Connection,
    attempt_id: UUID,
    ending: Ending,
    now: datetime,
    *,
    retryable: bool | None = None,
) -> bool:
    """Note that fal has finished the attempt's request; a run that was cancelled costs nothing.

    `retryable` is what fal itself says of trying a failed one again; None, as after a
    webhook, leaves what it has said before.

    True if it is written, and the attempt not counted as an extra charge.
    """
    values: dict[str, Any] = {**FINISHED, "completed_at": now, "ending": ending}
    if retryable is not None:
        values["retryable"] = retryable
    if ending is Ending.CANCELLED:
        values["extra_charge_at"] = None
    # Rows of early releases say when, and not how.
    is_open = or_(
        _ATTEMPTS.c.completed_at.is_(None),
        and_(
            _ATTEMPTS.c.ending.is_not(None),
            _may_become(_ATTEMPTS.c.ending, ending, ENDING_MAY_BECOME),
        ),
    )
    statement = update(_ATTEMPTS).where(_ATTEMPTS.c.id == attempt_id, is_open).values(values)
    found = connection.execute(statement.returning(_ATTEMPTS.c.extra_charge_at)).one_or_none()
    return found is not None and found.extra_charge_at is None


def result_time() -> ColumnElement[datetime | None]:
    """When fal had finished the request whose result the row of `jobs` has.

    `jobs.completed_at` keeps the time of the first result, also of one that was bought anew.
    """
    completed = select(AttemptRow.completed_at).where(
        AttemptRow.job_id == JobRow.id, AttemptRow.fal_request_id == JobRow.fal_request_id
    )
    known = func.coalesce(completed.correlate(JobRow).scalar_subquery(), JobRow.completed_at)
    return type_coerce(known, UtcDateTime())


def find_result_time(connection: Connection, job_id: UUID) -> datetime | None:
    found = connection.execute(select(result_time()).where(JobRow.id == job_id))
    return found.scalar_one_or_none()


def is_completed(connection: Connection, attempt_id: UUID) -> bool:
    """Whether fal has finished the attempt's request, as far as is known by now."""
    completed = select(AttemptRow.completed_at).where(AttemptRow.id == attempt_id)
    return connection.execute(completed).scalar_one() is not None


def note_extra_charge(connection: Connection, attempt_id: UUID, now: datetime) -> None:
    """Note that this attempt was paid for besides the one whose result the job has."""
    connection.execute(
        update(AttemptRow)
        .where(AttemptRow.id == attempt_id, AttemptRow.extra_charge_at.is_(None))
        .values(extra_charge_at=now)
    )


def dismiss_attempt(connection: Connection, attempt_id: UUID, now: datetime) -> None:
    """Have the attempt's request cancelled, and count it as a charge besides the job's own."""
    note_extra_charge(connection, attempt_id, now)
    order_cancel(connection, attempt_id, now)


def dismiss_competitors(connection: Connection, winner: Attempt, now: datetime) -> None:
    """Dismiss the job's other attempts that are requests of fal's and have not finished."""
    clear = update(AttemptRow).where(AttemptRow.id == winner.id).values(extra_charge_at=None)
    connection.execute(clear)
    connection.execute(
        update(AttemptRow)
        .where(
            AttemptRow.job_id == winner.job_id,
            AttemptRow.id != winner.id,
            AttemptRow.fal_request_id.is_not(None),
            AttemptRow.completed_at.is_(None),
        )
        .values(cancel_due_at=now, extra_charge_at=now)
    )


def order_cancel(connection: Connection, attempt_id: UUID, now: datetime) -> None:
    """Have the attempt's request cancelled at fal; not without its id, nor once it has finished."""
    connection.execute(
        update(AttemptRow)
        .where(
            AttemptRow.id == attempt_id,
            AttemptRow.fal_request_id.is_not(None),
            AttemptRow.completed_at.is_(None),
        )
        .values(cancel_due_at=now)
    )


def claim_due_cancels(
    connection: Connection, now: datetime, until: datetime, limit: int
) -> list[UUID]:
    """Jobs with a request to be cancelled by now; they are not due again before `until`."""
    due = (
        select(AttemptRow.id, AttemptRow.job_id)
        .where(AttemptRow.cancel_due_at <= now)
        .order_by(AttemptRow.cancel_due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    found = connection.execute(due).all()
    if found:
        ids = [row.id for row in found]
        connection.execute(
            update(AttemptRow).where(AttemptRow.id.in_(ids)).values(cancel_due_at=until)
        )
    return sorted({row.job_id for row in found})


def record_cancel(
    connection: Connection, attempt_id: UUID, cancel_status: str, due_at: datetime | None
) -> None:
    """Write fal's reply to the cancellation, and when to try again if there was none.

    A request that was removed from fal's queue (`OK`) leaves its slot.
    """
    values: dict[str, Any] = {"cancel_status": cancel_status, "cancel_due_at": due_at}
    if cancel_status == REMOVED:
        values["slot_until"] = None
    connection.execute(
        update(AttemptRow)
        .where(AttemptRow.id == attempt_id, AttemptRow.completed_at.is_(None))
        .values(values)
    )


def count_attempts(
    connection: Connection, job_id: UUID, outcomes: Sequence[Outcome], since: datetime
) -> int:
    """How many attempts since then came to one of these outcomes."""
    statement = select(func.count()).where(
        AttemptRow.job_id == job_id,
        AttemptRow.outcome.in_(outcomes),
        AttemptRow.started_at >= since,
    )
    return int(connection.execute(statement).scalar_one())


def find_first_start(connection: Connection, job_id: UUID, since: datetime) -> datetime | None:
    """When the first attempt since then began."""
    statement = select(func.min(AttemptRow.started_at)).where(
        AttemptRow.job_id == job_id, AttemptRow.started_at >= since
    )
    found: datetime | None = connection.execute(statement).scalar_one()
    return found


def find_current_attempt(connection: Connection, job: Job) -> Attempt | None:
    """The attempt of the job's newest claim; None before the first, or if that was an archive's."""
    return _find_by(connection, AttemptRow.job_id == job.id, AttemptRow.fence == job.fence)


def find_attempt_by_request(connection: Connection, fal_request_id: str) -> Attempt | None:
    return _find_by(connection, AttemptRow.fal_request_id == fal_request_id)


def list_unsettled(connection: Connection, limit: int) -> list[tuple[Attempt, datetime]]:
    """Attempts that may have become requests of fal's, or not; with their job's due time.

    Those that are due come first. Attempts whose POST is under way (no outcome yet) are among them.
    """
    statement = (
        select(*columns_of(AttemptRow), JobRow.due_at)
        .join(JobRow, JobRow.id == AttemptRow.job_id)
        .where(
            JobRow.due_at.is_not(None),
            JobRow.state.in_([JobState.SUBMITTING, JobState.SUBMISSION_UNKNOWN]),
            JobRow.fence == AttemptRow.fence,
            AttemptRow.fal_request_id.is_(None),
        )
        .order_by(JobRow.due_at)
        .limit(limit)
    )
    rows = [dict(row) for row in connection.execute(statement).mappings()]
    due = [row.pop("due_at") for row in rows]
    return [(Attempt(**row), at) for row, at in zip(rows, due, strict=True)]


def list_known_requests(connection: Connection, fal_request_ids: Sequence[str]) -> set[str]:
    """Those of the ids that an attempt has already."""
    known = AttemptRow.fal_request_id
    found = connection.execute(select(known).where(known.in_(fal_request_ids))).scalars()
    return {fal_request_id for fal_request_id in found if fal_request_id is not None}


def list_claims(connection: Connection, fal_request_ids: Sequence[str]) -> dict[str, RequestClaim]:
    """Who has those of the requests that an attempt has, and whether a reply or webhook says so."""
    delivered = exists().where(
        DeliveryRow.attempt_id == AttemptRow.id, DeliveryRow.verdict != Verdict.HINT
    )
    is_verified = or_(AttemptRow.http_status == HTTP_ACCEPTED, delivered)
    claimed_at = func.coalesce(AttemptRow.ended_at, AttemptRow.started_at)
    statement = select(
        AttemptRow.fal_request_id,
        AttemptRow.id,
        type_coerce(claimed_at, UtcDateTime()),
        is_verified,
    ).where(AttemptRow.fal_request_id.in_(fal_request_ids))
    return {
        str(fal_request_id): RequestClaim(attempt_id, claimed, bool(proven))
        for fal_request_id, attempt_id, claimed, proven in connection.execute(statement)
    }


def give_token(connection: Connection, attempt_id: UUID, token_hash: str) -> None:
    """Have an attempt that stands for a lost one found by the lost one's token."""
    of_id = AttemptRow.id == attempt_id
    connection.execute(update(AttemptRow).where(of_id).values(token_hash=token_hash))


def find_attempt_by_token(connection: Connection, token_hash: str) -> Attempt | None:
    return _find_by(connection, AttemptRow.token_hash == token_hash)


def list_attempts(connection: Connection, job_id: UUID) -> list[Attempt]:
    statement = select(_ATTEMPTS).where(_ATTEMPTS.c.job_id == job_id)
    return fetch_all(connection, Attempt, statement.order_by(_ATTEMPTS.c.number))


def _find_by(connection: Connection, *conditions: ColumnElement[bool]) -> Attempt | None:
    return fetch_one(connection, Attempt, select(_ATTEMPTS).where(*conditions))


def note_progress(
    connection: Connection,
    attempt_id: UUID,
    *,
    fal_status: str,
    queue_position: int | None,
    inference_seconds: float | None,
    logs: Sequence[Any] | None,
) -> None:
    """Write fal's latest status; what it does not report any more is kept.

    A status from before the end that arrives after it is not written.
    """
    values: dict[str, Any] = {"fal_status": fal_status, "queue_position": queue_position}
    if inference_seconds is not None:
        values["inference_seconds"] = inference_seconds
    if logs:
        values["logs"] = list(logs)
    is_last = fal_status == COMPLETED
    in_time = true() if is_last else AttemptRow.completed_at.is_(None)
    connection.execute(
        update(AttemptRow).where(AttemptRow.id == attempt_id, in_time).values(**values)
    )
