"""SQL on `attempts` and `deliveries`, by the same rules as `table.py`."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, exists, func, insert, or_, select, update
from sqlalchemy.orm import aliased

from worker.jobs.models import AttemptRow, DeliveryRow, JobRow
from worker.jobs.rows import columns_of, fetch_all, fetch_one, insert_for
from worker.jobs.states import JobState
from worker.jobs.values import (
    Attempt,
    Delivery,
    Ending,
    Job,
    NewAttempt,
    NewDelivery,
    Outcome,
    Settlement,
    Verdict,
)


def hash_token(token: str) -> str:
    """What is stored of a webhook token, so that reading the table gives nobody a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def insert_attempt(connection: Connection, job: Job, new: NewAttempt) -> Attempt:
    """The intent to pay once for `job`, with the very input that will be sent."""
    number = select(func.count()).where(AttemptRow.job_id == job.id).scalar_subquery() + 1
    statement = (
        insert(AttemptRow)
        .values(
            **asdict(new),
            job_id=job.id,
            number=number,
            fence=job.fence,
            endpoint=job.endpoint,
            input=job.input,
            options=job.options,
            claimed_by=job.claimed_by,
        )
        .returning(*columns_of(AttemptRow))
    )
    return Attempt(**connection.execute(statement).mappings().one())


def settle_attempt(connection: Connection, attempt_id: UUID, settlement: Settlement) -> None:
    """Write what became of the POST; a request id that a webhook brought first is kept.

    A certain outcome replaces an uncertain one, however late it comes, and is final itself.
    """
    values = asdict(settlement)
    known = values.pop("fal_request_id")
    open_outcomes = [] if settlement.outcome is Outcome.UNKNOWN else [Outcome.UNKNOWN, Outcome.DEAD]
    outcome = AttemptRow.outcome
    connection.execute(
        update(AttemptRow)
        .where(AttemptRow.id == attempt_id, or_(outcome.is_(None), outcome.in_(open_outcomes)))
        .values(**values, fal_request_id=func.coalesce(AttemptRow.fal_request_id, known))
    )


def adopt_request(connection: Connection, attempt: Attempt, fal_request_id: str) -> bool:
    """Give the attempt its request id; False if it has another, or if another attempt has it."""
    known, rival = AttemptRow.fal_request_id, aliased(AttemptRow)
    taken = exists().where(rival.fal_request_id == fal_request_id, rival.id != attempt.id)
    statement = (
        update(AttemptRow)
        .where(AttemptRow.id == attempt.id, or_(known.is_(None), known == fal_request_id), ~taken)
        .values(fal_request_id=fal_request_id)
    )
    return connection.execute(statement).rowcount == 1


def complete_attempt(
    connection: Connection, attempt_id: UUID, ending: Ending, now: datetime
) -> None:
    """Note that fal has finished the attempt's request; a run that was cancelled costs nothing."""
    values: dict[str, Any] = {"completed_at": now, "ending": ending, "cancel_due_at": None}
    values |= {"fal_status": "COMPLETED", "queue_position": None}
    if ending is Ending.CANCELLED:
        values["extra_charge_at"] = None
    connection.execute(
        update(AttemptRow)
        .where(
            AttemptRow.id == attempt_id,
            # A failure may be a mistake of ours (a result given up), a result never is.
            or_(AttemptRow.completed_at.is_(None), AttemptRow.ending == Ending.FAILED),
        )
        .values(**values)
    )


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


def dismiss_rivals(connection: Connection, winner: Attempt, now: datetime) -> None:
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
    """Have the attempt's request cancelled at fal; one that has finished is left alone."""
    connection.execute(
        update(AttemptRow)
        .where(AttemptRow.id == attempt_id, AttemptRow.completed_at.is_(None))
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
    """Write what fal said to the cancellation, and when to ask again if it said nothing."""
    connection.execute(
        update(AttemptRow)
        .where(AttemptRow.id == attempt_id, AttemptRow.completed_at.is_(None))
        .values(cancel_status=cancel_status, cancel_due_at=due_at)
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


def find_current_attempt(connection: Connection, job: Job) -> Attempt | None:
    """The attempt of the job's newest claim; None before the first, or if that was an archive's."""
    statement = select(*columns_of(AttemptRow)).where(
        AttemptRow.job_id == job.id, AttemptRow.fence == job.fence
    )
    return fetch_one(connection, Attempt, statement)


def find_attempt_by_request(connection: Connection, fal_request_id: str) -> Attempt | None:
    statement = select(*columns_of(AttemptRow)).where(AttemptRow.fal_request_id == fal_request_id)
    return fetch_one(connection, Attempt, statement)


def list_unsettled(connection: Connection, limit: int) -> list[tuple[Attempt, datetime]]:
    """Attempts of which nobody knows whether they became requests of fal's; with their job's time.

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


def list_hinted_requests(connection: Connection, attempt_id: UUID) -> list[str]:
    """Request ids that deliveries have named for the attempt, without proof."""
    statement = (
        select(DeliveryRow.fal_request_id)
        .where(DeliveryRow.attempt_id == attempt_id, DeliveryRow.verdict == Verdict.HINT)
        .distinct()
    )
    return sorted(connection.execute(statement).scalars())


def find_attempt_by_token(connection: Connection, token_hash: str) -> Attempt | None:
    statement = select(*columns_of(AttemptRow)).where(AttemptRow.token_hash == token_hash)
    return fetch_one(connection, Attempt, statement)


def count_delivery(
    connection: Connection, attempt: Attempt, new: NewDelivery
) -> tuple[int, Verdict]:
    """Keep the delivery, or count it on its row if this very body came before.

    How often it has come, and what it was worth the first time.
    """
    insertion = insert_for(connection, DeliveryRow).values(
        **asdict(new),
        job_id=attempt.job_id,
        attempt_id=attempt.id,
        last_received_at=new.received_at,
        times_received=1,
        body_sha256=hashlib.sha256(new.body).hexdigest(),
    )
    statement = insertion.on_conflict_do_update(
        index_elements=["attempt_id", "body_sha256"],
        set_={
            "times_received": DeliveryRow.times_received + 1,
            "last_received_at": new.received_at,
        },
    ).returning(DeliveryRow.times_received, DeliveryRow.verdict)
    times, verdict = connection.execute(statement).one()
    return int(times), Verdict(verdict)


def judge_delivery(connection: Connection, attempt_id: UUID, body: bytes, verdict: Verdict) -> None:
    """Write what the delivery with this body turned out to be worth."""
    connection.execute(
        update(DeliveryRow)
        .where(
            DeliveryRow.attempt_id == attempt_id,
            DeliveryRow.body_sha256 == hashlib.sha256(body).hexdigest(),
        )
        .values(verdict=verdict)
    )


def list_attempts(connection: Connection, job_id: UUID) -> list[Attempt]:
    statement = (
        select(*columns_of(AttemptRow))
        .where(AttemptRow.job_id == job_id)
        .order_by(AttemptRow.number)
    )
    return fetch_all(connection, Attempt, statement)


def list_deliveries(connection: Connection, job_id: UUID) -> list[Delivery]:
    statement = (
        select(*columns_of(DeliveryRow))
        .where(DeliveryRow.job_id == job_id)
        .order_by(DeliveryRow.id)
    )
    return fetch_all(connection, Delivery, statement)
