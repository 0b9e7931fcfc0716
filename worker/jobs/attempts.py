"""SQL on `attempts` and `deliveries`, by the same rules as `table.py`."""

import hashlib
from dataclasses import asdict
from uuid import UUID

from sqlalchemy import Connection, func, insert, or_, select, update

from worker.jobs.models import AttemptRow, DeliveryRow
from worker.jobs.rows import columns_of, fetch_all, fetch_one, insert_for
from worker.jobs.values import Attempt, Delivery, Job, NewAttempt, NewDelivery, Settlement


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
            claimed_by=job.claimed_by,
        )
        .returning(*columns_of(AttemptRow))
    )
    return Attempt(**connection.execute(statement).mappings().one())


def settle_attempt(connection: Connection, attempt_id: UUID, settlement: Settlement) -> None:
    """Write what became of the POST; a request id that a webhook brought first is kept."""
    values = asdict(settlement)
    known = values.pop("fal_request_id")
    connection.execute(
        update(AttemptRow)
        .where(AttemptRow.id == attempt_id, AttemptRow.outcome.is_(None))
        .values(**values, fal_request_id=func.coalesce(AttemptRow.fal_request_id, known))
    )


def adopt_request(connection: Connection, attempt: Attempt, fal_request_id: str) -> bool:
    """Give the attempt the request id that its webhook brought; False if it has another one."""
    known = AttemptRow.fal_request_id
    statement = (
        update(AttemptRow)
        .where(AttemptRow.id == attempt.id, or_(known.is_(None), known == fal_request_id))
        .values(fal_request_id=fal_request_id)
    )
    return connection.execute(statement).rowcount == 1


def find_attempt_by_token(connection: Connection, token_hash: str) -> Attempt | None:
    statement = select(*columns_of(AttemptRow)).where(AttemptRow.token_hash == token_hash)
    return fetch_one(connection, Attempt, statement)


def count_delivery(connection: Connection, attempt: Attempt, new: NewDelivery) -> int:
    """Keep the delivery, or count it on its row if this very body came before; the count."""
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
    ).returning(DeliveryRow.times_received)
    return int(connection.execute(statement).scalar_one())


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
