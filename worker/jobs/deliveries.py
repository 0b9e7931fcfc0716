"""SQL on `deliveries`, by the same rules as `table.py`."""

import hashlib
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, bindparam, exists, func, select

from worker.jobs.models import AttemptRow, DeliveryRow, JobRow, StrayDeliveryRow
from worker.jobs.rows import change, count, fetch_all, insert_for, name_values, table_of
from worker.jobs.values import Attempt, Delivery, Job, NewDelivery, Verdict

_ATTEMPTS, _DELIVERIES, _JOBS = table_of(AttemptRow), table_of(DeliveryRow), table_of(JobRow)
_ADDRESSEE = (
    select(*_ATTEMPTS.c, *_JOBS.c)
    .join_from(_ATTEMPTS, _JOBS, _JOBS.c.id == _ATTEMPTS.c.job_id)
    .where(_ATTEMPTS.c.token_hash == bindparam("token_hash"))
    .with_for_update(of=_JOBS)
)


def find_addressee(connection: Connection, token_hash: str) -> tuple[Attempt, Job] | None:
    """The attempt with this token, and its job, locked as by `table.get_job`.

    The attempt's row is not locked: writers of it hold the job's.
    """
    row = connection.execute(_ADDRESSEE, {"token_hash": token_hash}).one_or_none()
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
    values = {**_begin_row(new), "job_id": attempt.job_id, "attempt_id": attempt.id}
    statement = (
        insert_for(connection, DeliveryRow)
        .values(values)
        .on_conflict_do_update(
            index_elements=["attempt_id", "body_sha256"],
            set_={
                "times_received": _DELIVERIES.c.times_received + 1,
                "last_received_at": new.received_at,
            },
        )
        .returning(_DELIVERIES.c.times_received, _DELIVERIES.c.verdict)
    )
    times, verdict = connection.execute(statement).one()
    return int(times), Verdict(verdict)


def judge_delivery(connection: Connection, attempt_id: UUID, body: bytes, verdict: Verdict) -> None:
    """Write the disposition of the delivery with this body."""
    is_body = DeliveryRow.body_sha256 == hashlib.sha256(body).hexdigest()
    change(connection, DeliveryRow, DeliveryRow.attempt_id == attempt_id, is_body, verdict=verdict)


def keep_stray(
    connection: Connection, job_id: UUID, number: int, token_hash: str, new: NewDelivery
) -> None:
    """Keep a delivery for an attempt of a job without a row, or count it if it came before.

    One that came without proof and is proven now is worth that from then on.
    """
    row = StrayDeliveryRow
    values = {**_begin_row(new), "job_id": job_id, "number": number, "token_hash": token_hash}
    again = {
        "times_received": row.times_received + 1,
        "last_received_at": new.received_at,
        "verdict": new.verdict if new.verdict is Verdict.KEPT else row.verdict,
    }
    insertion = insert_for(connection, row).values(values)
    keys = ["token_hash", "body_sha256"]
    connection.execute(insertion.on_conflict_do_update(index_elements=keys, set_=again))


def _begin_row(new: NewDelivery) -> dict[str, Any]:
    return {
        **name_values(new),
        "last_received_at": new.received_at,
        "times_received": 1,
        "body_sha256": hashlib.sha256(new.body).hexdigest(),
    }


def count_strays(connection: Connection) -> int:
    return count(connection, StrayDeliveryRow.id.is_not(None))


def list_deliveries(connection: Connection, job_id: UUID) -> list[Delivery]:
    statement = select(_DELIVERIES).where(_DELIVERIES.c.job_id == job_id)
    return fetch_all(connection, Delivery, statement.order_by(_DELIVERIES.c.id))


def list_hinted_competitors(connection: Connection, job: Job) -> list[Attempt]:
    """Earlier attempts of the job that an unproven delivery has named, and that may still run."""
    is_named = exists().where(
        DeliveryRow.attempt_id == AttemptRow.id, DeliveryRow.verdict == Verdict.HINT
    )
    is_earlier = (AttemptRow.job_id == job.id, AttemptRow.fence != job.fence)
    is_open = AttemptRow.completed_at.is_(None)
    return fetch_all(connection, Attempt, select(_ATTEMPTS).where(*is_earlier, is_open, is_named))


def list_hinted_requests(connection: Connection, attempt_id: UUID) -> list[str]:
    """Request ids that deliveries have named for the attempt, without proof."""
    is_hint = (DeliveryRow.attempt_id == attempt_id, DeliveryRow.verdict == Verdict.HINT)
    statement = select(DeliveryRow.fal_request_id).where(*is_hint).distinct()
    return sorted(connection.execute(statement).scalars())


def replace_bodies(connection: Connection, job_id: UUID, marker: bytes, longest: int) -> None:
    """Keep the marker in place of the job's long bodies; their sha256 still knows a repetition."""
    too_long = func.length(DeliveryRow.body) > longest
    change(connection, DeliveryRow, DeliveryRow.job_id == job_id, too_long, body=marker)
