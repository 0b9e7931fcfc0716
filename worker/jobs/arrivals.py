"""The usual arrival of a result in one statement, on PostgreSQL: first, of a job's only attempt.

As `complete.py` has it done in a transaction: the delivery kept, the attempt completed, the job
moved, its history told. What is unusual in any way matches no row, and then nothing is written.
"""

import hashlib
from dataclasses import asdict
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Select,
    bindparam,
    func,
    literal,
    select,
    update,
)

from worker.jobs.attempts import FINISHED
from worker.jobs.models import AttemptRow, DeliveryRow, JobRow
from worker.jobs.rows import bind_new, fetch_one, name_new, spell_insert, table_of
from worker.jobs.states import EDGES, JobEvent, JobState
from worker.jobs.transitions import AT_REST, name_told, tell_of
from worker.jobs.values import Ending, Job, Move, NewDelivery

_JOBS, _ATTEMPTS, _DELIVERIES = table_of(JobRow), table_of(AttemptRow), table_of(DeliveryRow)
_NOW = bindparam("new_received_at", type_=_DELIVERIES.c.received_at.type)
_REQUEST_ID = bindparam("new_fal_request_id", type_=_ATTEMPTS.c.fal_request_id.type)
SOURCE, EVENT = JobState.SUBMITTED, JobEvent.RESULT_ARRIVED


def record_arrival(
    connection: Connection, token_hash: str, new: NewDelivery, result: dict[str, Any], move: Move
) -> Job | None:
    """The job with its result; None, and nothing changed, if anything about it is unusual."""
    values = {
        "of_token_hash": token_hash,
        **name_new(asdict(new)),
        "new_body_sha256": hashlib.sha256(new.body).hexdigest(),
        "new_result": result,
        "new_due_at": move.due_at,
        **name_told(SOURCE, EVENT, move),
    }
    return fetch_one(connection, Job, _build(), values)


@cache
def _build() -> Select[Any]:
    changed = _move_job()
    parts = (tell_of(changed), _complete_attempt(changed), _keep_delivery(changed))
    return select(*(changed.c[name] for name in _JOBS.c.keys())).add_cte(*parts)  # noqa: SIM118


def _move_job() -> CTE:
    """Whoever completes an attempt with the job's fence moves the job: one of two finds no row."""
    is_only = (_ATTEMPTS.c.number == 1) & (_ATTEMPTS.c.fence == _JOBS.c.fence)
    is_awaited = (_ATTEMPTS.c.fal_request_id == _REQUEST_ID) & _ATTEMPTS.c.completed_at.is_(None)
    is_usual = _JOBS.c.result.is_(None) & _JOBS.c.cancel_requested_at.is_(None)
    values = {
        **AT_REST,
        **bind_new(_JOBS, ("due_at", "result")),
        "state": EDGES[SOURCE, EVENT],
        "fal_request_id": _REQUEST_ID,
        "submitted_at": func.coalesce(_JOBS.c.submitted_at, _ATTEMPTS.c.started_at),
        "completed_at": func.coalesce(_JOBS.c.completed_at, _NOW),
    }
    return (
        update(_JOBS)
        .where(_ATTEMPTS.c.token_hash == bindparam("of_token_hash"), is_only, is_awaited)
        .where(_JOBS.c.id == _ATTEMPTS.c.job_id, _JOBS.c.state == SOURCE, is_usual)
        .values(values)
        .returning(*_JOBS.c, _ATTEMPTS.c.id.label("attempt_id"))
        .cte("changed")
    )


def _complete_attempt(changed: CTE) -> CTE:
    """It is the winner: whatever it was counted as before, it is no extra charge."""
    values = {**FINISHED, "completed_at": _NOW, "ending": Ending.OK, "extra_charge_at": None}
    statement = update(_ATTEMPTS).where(_ATTEMPTS.c.id == changed.c.attempt_id)
    return statement.values(values).cte("completed")


def _keep_delivery(changed: CTE) -> CTE:
    """A row of it is there already if it came before without proof."""
    known = ("gateway_request_id", "status", "verdict", "body", "body_sha256")
    values: dict[str, ColumnElement[Any]] = {
        "job_id": changed.c.id,
        "attempt_id": changed.c.attempt_id,
        "received_at": _NOW,
        "last_received_at": _NOW,
        "times_received": literal(1),
        "fal_request_id": _REQUEST_ID,
        **bind_new(_DELIVERIES, known),
    }
    insertion = spell_insert(_DELIVERIES, for_postgres=True)
    insertion = insertion.from_select(list(values), select(*values.values()))
    again = {
        "times_received": _DELIVERIES.c.times_received + 1,
        "last_received_at": insertion.excluded.received_at,
        "verdict": insertion.excluded.verdict,
    }
    keys = ["attempt_id", "body_sha256"]
    return insertion.on_conflict_do_update(index_elements=keys, set_=again).cte("kept")
