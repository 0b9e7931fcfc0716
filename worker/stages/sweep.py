"""Beside the path. sweep: find rows that stand still, and ring for them again.

Many sweeps at once do no harm: each takes rows that no other holds, and pushes their time on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection

from worker.fal.http import MAX_RETRY_AFTER
from worker.fal.submit import RefusalClass
from worker.ground.clock import Clock, read_clock, spread
from worker.ground.db import Database
from worker.jobs import attempts, table
from worker.jobs.states import AWAITING_FAL, Doorbell, JobEvent, JobState, Step
from worker.jobs.values import Gate, Job, Move, Outcome, Settlement
from worker.media.store import Store
from worker.stages import alarm, pause
from worker.stages.judge import BACKOFFS

BATCH = 100
# No live row waits longer by itself: a due time further ahead is the work of a wrong clock.
LONGEST_WAIT = MAX_RETRY_AFTER + BACKOFFS[RefusalClass.BUSY].longest + timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Swept:
    """A batch: how many rows it took, and whom to ring for now that it is committed."""

    rows: int
    doorbells: list[Doorbell]


def sweep_jobs(
    *,
    db: Database,
    lease: timedelta,
    archive_deadline: timedelta = alarm.ARCHIVE_DEADLINE,
    probe_after: timedelta = timedelta(minutes=1),
    limit: int = BATCH,
    clock: Clock = read_clock,
) -> Swept:
    """Take one batch of overdue rows.

    A waiting row lost its message or has waited long enough: it is looked at again after `lease`
    unless it moves. A claimed row whose lease has run out is taken from its worker: a download goes
    back to be claimed by anybody, a submission becomes unknown. A job that is not archived
    `archive_deadline` after its completion is told of, once.
    """
    now = clock()
    with db.transaction() as connection:
        table.clamp_due(connection, now, max(LONGEST_WAIT, 2 * lease, 2 * probe_after), limit)
        overdue = table.find_overdue(connection, now, limit)
        late = alarm.raise_alarms(connection, overdue, archive_deadline, now)
        pauses = pause.list_pauses(connection)
        queued = [job for job in overdue if job.state is JobState.QUEUED]
        held_back = _hold_back(connection, queued, pauses, now, probe_after)
        waiting = [job for job in overdue if job.doorbell is not None and job.id not in held_back]
        _push_on(connection, waiting, now + lease)
        returned = [take_over(connection, job, now, lease) for job in overdue if job.claimed_by]
        cancels = attempts.claim_due_cancels(connection, now, now + lease, limit)
    alarm.log_alarms(late)
    doorbells = [*_list_doorbells([*waiting, *returned])]
    doorbells += [Doorbell(Step.CANCEL, job_id) for job_id in cancels]
    return Swept(max(len(overdue), len(cancels)), doorbells)


def remove_partials(store: Store) -> int:
    """Remove what killed downloads have left on this machine; returns how many files."""
    return store.spool.remove_partials()


def _hold_back(
    connection: Connection,
    queued: list[Job],
    pauses: list[Gate],
    now: datetime,
    probe_after: timedelta,
) -> set[UUID]:
    """While submissions pause, keep all back but one, which is the probe when it is time."""
    if not pauses:
        return set()
    last = pauses[0]
    is_closed = pause.is_closed(last, now, probe_after)
    held_back = [job.id for job in (queued if is_closed else queued[1:])]
    wait = spread(max(last.opens_at - now, timedelta(seconds=1)) if is_closed else probe_after)
    pause.block_submissions(connection, held_back, last, now + wait)
    return set(held_back)


def _push_on(connection: Connection, waiting: list[Job], due_at: datetime) -> None:
    """Work of ours may be claimed again; what waits for fal goes on waiting."""
    at_fal = [job.id for job in waiting if job.state in AWAITING_FAL]
    ours = [job.id for job in waiting if job.state not in AWAITING_FAL]
    table.release_waiting(connection, ours, due_at)
    table.push_due(connection, at_fal, due_at)


def take_over(connection: Connection, job: Job, now: datetime, lease: timedelta) -> Job | None:
    """Whoever held the row has been silent for a whole lease."""
    detail = f"{job.claimed_by} fell silent"
    if job.state is JobState.ARCHIVING:
        move = Move(now, now + lease, detail)
        return table.apply_event(connection, job, JobEvent.ARCHIVE_CLAIM_EXPIRED, move)
    attempt = attempts.find_current_attempt(connection, job)
    if attempt is not None:
        settlement = Settlement(Outcome.UNKNOWN, now, error_message=detail)
        attempts.record_outcome(connection, attempt.id, settlement)
    blocked = {"blocked_reason": f"fal may or may not have it: {detail}"}
    move = Move(now, now + lease, detail, blocked)
    return table.apply_event(connection, job, JobEvent.SUBMISSION_CLAIM_EXPIRED, move)


def _list_doorbells(jobs: list[Job | None]) -> Iterator[Doorbell]:
    for job in jobs:
        if job is not None and job.doorbell is not None:
            yield job.doorbell
