"""SQL on `deliveries`, by the same rules as `table.py`."""

import hashlib
from dataclasses import asdict
from uuid import UUID

from sqlalchemy import Connection, exists, select, update

from worker.jobs.models import AttemptRow, DeliveryRow
from worker.jobs.rows import columns_of, fetch_all, insert_for
from worker.jobs.values import Attempt, Delivery, Job, NewDelivery, Verdict


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


def list_deliveries(connection: Connection, job_id: UUID) -> list[Delivery]:
    statement = (
        select(*columns_of(DeliveryRow))
        .where(DeliveryRow.job_id == job_id)
        .order_by(DeliveryRow.id)
    )
    return fetch_all(connection, Delivery, statement)


def list_hinted_rivals(connection: Connection, job: Job) -> list[Attempt]:
    """Earlier attempts of the job that a delivery has told of without proof, and that may live."""
    hinted = exists().where(
        DeliveryRow.attempt_id == AttemptRow.id, DeliveryRow.verdict == Verdict.HINT
    )
    statement = select(*columns_of(AttemptRow)).where(
        AttemptRow.job_id == job.id,
        AttemptRow.fence != job.fence,
        AttemptRow.completed_at.is_(None),
        hinted,
    )
    return fetch_all(connection, Attempt, statement)


def list_hinted_requests(connection: Connection, attempt_id: UUID) -> list[str]:
    """Request ids that deliveries have named for the attempt, without proof."""
    statement = (
        select(DeliveryRow.fal_request_id)
        .where(DeliveryRow.attempt_id == attempt_id, DeliveryRow.verdict == Verdict.HINT)
        .distinct()
    )
    return sorted(connection.execute(statement).scalars())
