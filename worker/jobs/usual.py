"""The usual path on PostgreSQL: one statement for each step, which commits itself.

Each does what its stage has done otherwise by several statements in a transaction, for a job of
which nothing is unusual: no pause, no cancellation, no earlier attempt, nobody who was faster. Else
it matches no row, nothing is written, and the stage goes the long way.

Whoever moves a job changes its state or fence; whoever writes its attempts while it is SUBMITTING
or SUBMITTED does so, too. So of two at one row the later one finds it changed, once it has waited.
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Select,
    Update,
    bindparam,
    exists,
    func,
    insert,
    literal,
    select,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from worker.jobs.attempts import FINISHED
from worker.jobs.models import AttemptRow, DeliveryRow, GateRow, JobRow
from worker.jobs.rows import (
    bind_new,
    fetch_one,
    label_pair,
    name_new,
    name_values,
    read_pair,
    spell_insert,
    table_of,
)
from worker.jobs.states import EDGES, JobEvent, JobState
from worker.jobs.transitions import AT_REST, build_claim, name_claim, name_told, tell_of
from worker.jobs.values import (
    Attempt,
    Claim,
    Ending,
    Job,
    Move,
    NewAttempt,
    NewDelivery,
    Settlement,
)

_JOBS, _ATTEMPTS, _DELIVERIES = table_of(JobRow), table_of(AttemptRow), table_of(DeliveryRow)
_GATES = table_of(GateRow)
_REQUEST_ID = bindparam("new_fal_request_id", type_=_ATTEMPTS.c.fal_request_id.type)
_NOW = bindparam("now", type_=_JOBS.c.enqueued_at.type)


def begin_attempt(
    connection: Connection,
    job_id: UUID,
    claim: Claim,
    new: NewAttempt,
    gate: str,
    *,
    only_first: bool = False,
) -> tuple[Attempt, Job] | None:
    """Claim the job and write the intent to pay, unless the gate has been shut.

    `new.options` are the defaults: the job's own go before. With `only_first` not for a job that
    has been tried before: a signed token names the attempt's number.
    """
    event = JobEvent.SUBMISSION_CLAIMED
    source, values = name_claim(job_id, event, claim)
    values |= {"of_gate": gate, **_name(new), **name_told(source, event, Move(claim.now))}
    found = connection.execute(_build_beginning(only_first=only_first), values).one_or_none()
    return None if found is None else read_pair(found)


def accept_submission(
    connection: Connection, attempt: Attempt, settlement: Settlement, move: Move
) -> Job | None:
    """Give the attempt its request and the reply's words, and the job, too."""
    told = name_told(JobState.SUBMITTING, JobEvent.SUBMISSION_ACCEPTED, move)
    values = {"of_attempt": attempt.id, "now": move.now, "new_due_at": move.due_at}
    return fetch_one(connection, Job, _build_acceptance(), values | _name(settlement) | told)


def record_result(
    connection: Connection, token_hash: str, new: NewDelivery, result: Mapping[str, Any], move: Move
) -> Job | None:
    """Keep the first delivery of a job's only attempt, and give the job its result."""
    told = name_told(JobState.SUBMITTED, JobEvent.RESULT_ARRIVED, move)
    values = {"of_token_hash": token_hash, "now": move.now, "new_due_at": move.due_at}
    values |= {"new_result": result, "new_body_sha256": hashlib.sha256(new.body).hexdigest()}
    return fetch_one(connection, Job, _build_result(), values | _name(new) | told)


def _name(value: NewAttempt | Settlement | NewDelivery) -> dict[str, Any]:
    return name_new(name_values(value))


@cache
def _build_beginning(*, only_first: bool) -> Select[Any]:
    claim = build_claim().where(~exists().where(_GATES.c.name == bindparam("of_gate")))
    if only_first:
        claim = claim.where(~exists().where(_ATTEMPTS.c.job_id == _JOBS.c.id))
    claimed = claim.cte("changed")
    earlier = select(func.count()).where(_ATTEMPTS.c.job_id == claimed.c.id).scalar_subquery()
    defaults = bindparam("new_options", type_=JSONB)
    values = {
        **bind_new(_ATTEMPTS, ("id", "token_hash", "started_at")),
        "options": defaults.concat(type_coerce(claimed.c.options, JSONB)),
        "number": earlier + 1,
        "job_id": claimed.c.id,
        **{name: claimed.c[name] for name in ("fence", "endpoint", "input", "claimed_by")},
    }
    insertion = insert(_ATTEMPTS).from_select(list(values), select(*values.values()))
    begun = insertion.returning(*_ATTEMPTS.c).cte("begun")
    pair = label_pair(begun.c, (claimed.c[column.key] for column in _JOBS.c))
    joined = select(*pair).join_from(begun, claimed, begun.c.job_id == claimed.c.id)
    return joined.add_cte(tell_of(claimed))


@cache
def _build_acceptance() -> Select[Any]:
    rival = _ATTEMPTS.alias()
    taken = exists().where(rival.c.fal_request_id == _REQUEST_ID)
    is_open = _ATTEMPTS.c.outcome.is_(None) & _ATTEMPTS.c.fal_request_id.is_(None) & ~taken
    moved = _move(JobState.SUBMITTING, JobEvent.SUBMISSION_ACCEPTED, {"submitted_at": _NOW})
    moved = moved.where(_ATTEMPTS.c.id == bindparam("of_attempt"), is_open)
    changed = _name_changed(moved)
    names = (name for name in Settlement.__dataclass_fields__ if name != "fal_request_id")
    values = {**bind_new(_ATTEMPTS, names), "fal_request_id": _REQUEST_ID}
    return _select_job(changed, _write_attempt(changed, values))


@cache
def _build_result() -> Select[Any]:
    values = {**bind_new(_JOBS, ["result"]), "completed_at": _NOW}
    moved = _move(JobState.SUBMITTED, JobEvent.RESULT_ARRIVED, values)
    is_awaited = (_ATTEMPTS.c.fal_request_id == _REQUEST_ID) & _ATTEMPTS.c.completed_at.is_(None)
    of_token = _ATTEMPTS.c.token_hash == bindparam("of_token_hash")
    changed = _name_changed(moved.where(of_token, _ATTEMPTS.c.number == 1, is_awaited))
    # It is the winner: whatever it was counted as before, it is no extra charge.
    ended = {**FINISHED, "completed_at": _NOW, "ending": Ending.OK, "extra_charge_at": None}
    return _select_job(changed, _write_attempt(changed, ended), _keep_delivery(changed))


def _move(source: JobState, event: JobEvent, values: Mapping[str, Any]) -> Update:
    """The job of an attempt's claim along one edge; a time that it has already, it keeps."""
    kept = {
        name: func.coalesce(_JOBS.c[name], value) if value is _NOW else value
        for name, value in values.items()
    }
    due_at = bind_new(_JOBS, ["due_at"])
    return (
        update(_JOBS)
        .where(_JOBS.c.id == _ATTEMPTS.c.job_id, _JOBS.c.fence == _ATTEMPTS.c.fence)
        .where(_JOBS.c.state == source, _JOBS.c.result.is_(None))
        .where(_JOBS.c.cancel_requested_at.is_(None))
        .values({**AT_REST, **due_at, **kept, "fal_request_id": _REQUEST_ID})
        .values(state=EDGES[source, event])
    )


def _name_changed(moved: Update) -> CTE:
    return moved.returning(*_JOBS.c, _ATTEMPTS.c.id.label("attempt_id")).cte("changed")


def _write_attempt(changed: CTE, values: Mapping[str, Any]) -> CTE:
    statement = update(_ATTEMPTS).where(_ATTEMPTS.c.id == changed.c.attempt_id)
    return statement.values(values).cte("written")


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


def _select_job(changed: CTE, *parts: CTE) -> Select[Any]:
    job = select(*(changed.c[column.key] for column in _JOBS.c))
    return job.add_cte(tell_of(changed), *parts)
