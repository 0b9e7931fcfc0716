"""SQL on `deliveries`, by the same rules as `table.py`."""

import hashlib
from uuid import UUID

from sqlalchemy import Connection, case, exists, func, select, update

from worker.jobs.models import AttemptRow, DeliveryRow, JobRow, StrayDeliveryRow
from worker.jobs.rows import (
    columns_of,
    fetch_all,
    insert_for,
    name_values,
    table_of,
)
from worker.jobs.values import Attempt, Delivery, Job, NewDelivery, Verdict

_ATTEMPTS, _DELIVERIES, _JOBS = table_of(AttemptRow), table_of(DeliveryRow), table_of(JobRow)


def find_addressee(connection: Connection, token_hash: str) -> tuple[Attempt, Job] | None:
    """The attempt with this token, and its job, locked as by `table.get_job`.

    The attempt's row is not locked: writers of it hold the job's.
    """
    statement = (
        select(*_ATTEMPTS.c, *_JOBS.c)
        .join_from(_ATTEMPTS, _JOBS, _JOBS.c.id == _ATTEMPTS.c.job_id)
        .where(_ATTEMPTS.c.token_hash == token_hash)
        .with_for_update(of=_JOBS)
    )
    row = connection.execute(statement).one_or_none()
    if row is None:
        return None
    of_attempt = dict(zip(_ATTEMPTS.c.keys(), row, strict=False))
    of_job = dict(zip(_JOBS.c.keys(), row[len(of_attempt) :], strict=True))
    return Attempt(**of_attempt), Job(**of_job)


def count_delivery(
    connection: Connection, attempt: Attempt, new: NewDelivery
) -> tuple[int, Verdict]:
    """Keep the delivery, or count it on its row if this very body came before.

    How often it has come, and its disposition of the first time.
    """
    insertion = insert_for(connection, DeliveryRow).values(
        **name_values(new),
        job_id=attempt.job_id,
        attempt_id=attempt.id,
        last_received_at=new.received_at,
        times_received=1,
        body_sha256=hashlib.sha256(new.body).hexdigest(),
    )
    statement = insertion.on_conflict_do_update(
        index_elements=["attempt_id", "body_sha256"],
        set_={
            "times_received": _DELIVERIES.c.times_received + 1,
            "last_received_at": insertion.excluded.received_at,
        },
    ).returning(_DELIVERIES.c.times_received, _DELIVERIES.c.verdict)
    times, verdict = connection.execute(statement).one()
    return int(times), Verdict(verdict)


def judge_delivery(connection: Connection, attempt_id: UUID, body: bytes, verdict: Verdict) -> None:
    """Write the disposition of the delivery with this body."""
    body_sha256 = hashlib.sha256(body).hexdigest()
    is_one = (_DELIVERIES.c.attempt_id == attempt_id, _DELIVERIES.c.body_sha256 == body_sha256)
    connection.execute(update(_DELIVERIES).where(*is_one).values(verdict=verdict))


def keep_stray(
    connection: Connection, job_id: UUID, number: int, token_hash: str, new: NewDelivery
) -> None:
    """Keep a delivery for an attempt of a job without a row, or count it if it came before.

    One that came without proof and is proven now is worth that from then on.
    """
    values = {
        **name_values(new),
        "job_id": job_id,
        "number": number,
        "token_hash": token_hash,
        "last_received_at": new.received_at,
        "times_received": 1,
        "body_sha256": hashlib.sha256(new.body).hexdigest(),
    }
    insertion = insert_for(connection, StrayDeliveryRow).values(values)
    is_proven = insertion.excluded.verdict == Verdict.KEPT.value
    again = {
        "times_received": StrayDeliveryRow.times_received + 1,
        "last_received_at": insertion.excluded.received_at,
        "verdict": case((is_proven, insertion.excluded.verdict), else_=StrayDeliveryRow.verdict),
    }
    keys = ["token_hash", "body_sha256"]
    connection.execute(insertion.on_conflict_do_update(index_elements=keys, set_=again))


def count_strays(connection: Connection) -> int:
    return int(connection.execute(select(func.count(StrayDeliveryRow.id))).scalar_one())


def list_deliveries(connection: Connection, job_id: UUID) -> list[Delivery]:
    statement = (
        select(*columns_of(DeliveryRow))
        .where(DeliveryRow.job_id == job_id)
        .order_by(DeliveryRow.id)
    )
    return fetch_all(connection, Delivery, statement)


def list_hinted_rivals(connection: Connection, job: Job) -> list[Attempt]:
    """Earlier attempts of the job that an unproven delivery has named, and that may still run."""
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


def replace_bodies(connection: Connection, job_id: UUID, marker: bytes, longest: int) -> None:
    """Keep the marker in place of the job's long bodies; their sha256 still knows a repetition."""
    too_long = func.length(DeliveryRow.body) > longest
    connection.execute(
        update(DeliveryRow).where(DeliveryRow.job_id == job_id, too_long).values(body=marker)
    )
