"""Beside the path. sweep: find rows that stand still, and ring for them again.

Many sweeps at once do no harm: each takes rows that no other holds, and pushes their time on.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from pydantic import ValidationError
from sqlalchemy import Connection

from worker.fal.http import MAX_RETRY_AFTER
from worker.fal.options import MIN_EXPIRATION, RequestOptions
from worker.fal.submit import RefusalClass
from worker.ground.clock import Clock, read_clock, spread
from worker.ground.db import Database
from worker.jobs import archives, attempts, table
from worker.jobs.observed import add_observed
from worker.jobs.states import AWAITING_FAL, Doorbell, JobEvent, JobState, Step
from worker.jobs.values import Gate, Job, Move, Outcome, Settlement
from worker.media.store import Store
from worker.stages import admit
from worker.stages.lease import abandon_claims
from worker.stages.submit import BACKOFFS

# ------------------------------------------------------------------ observe


class Observer:
    """One for each process that sweeps. The first pass adds nothing: nobody had watched before."""

    def __init__(self, most: timedelta, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`most` is what one pass adds at the most: twice the period of the sweep."""
        self._most = most
        self._monotonic = monotonic
        self._seen: float | None = None

    def note(self, db: Database, least: timedelta = timedelta()) -> bool:
        """False if somebody has done so within this time: then nothing is noted."""
        now = self._monotonic()
        since_seen = timedelta(seconds=0 if self._seen is None else now - self._seen)
        with db.statement() as connection:
            is_noted = add_observed(connection, since_seen, self._most, least)
        if is_noted:
            self._seen = now
        return is_noted


# ------------------------------------------------------------------ alarm


ARCHIVE_DEADLINE = timedelta(hours=1)
# So much of the time for which fal was told to keep the file may pass.
EXPIRATION_SHARE = 0.75
UNARCHIVED = frozenset({JobState.COMPLETED, JobState.ARCHIVING})

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Alarm:
    """A job whose video is late: since when it could be archived, and what it waited for."""

    job: Job
    age: timedelta


def raise_alarms(
    connection: Connection, jobs: Sequence[Job], deadline: timedelta, now: datetime
) -> list[Alarm]:
    """Mark those of the jobs that are late and were not told of before; log them after the commit.

    `deadline` counts from the completion of the request whose result the job has, unless fal was
    told to delete the file sooner.
    """
    late = list(_find_late(connection, jobs, deadline, now))
    if late:
        archives.raise_alarm(connection, [alarm.job.id for alarm in late], now)
    return late


def log_alarms(alarms: Sequence[Alarm]) -> None:
    """One line for each job, once for each result of it."""
    for alarm in alarms:
        log.error(
            "archive_deadline_near",
            job_id=str(alarm.job.id),
            age_seconds=round(alarm.age.total_seconds()),
            blocked_reason=alarm.job.blocked_reason,
        )


def choose_deadline(deadline: timedelta, options: RequestOptions) -> timedelta:
    """How long after the completion of its request a job is late; pure."""
    if options.object_expiration is None:
        return deadline
    return min(deadline, options.object_expiration * EXPIRATION_SHARE)


def _find_late(
    connection: Connection, jobs: Sequence[Job], deadline: timedelta, now: datetime
) -> Iterator[Alarm]:
    soonest = min(deadline, MIN_EXPIRATION * EXPIRATION_SHARE)
    # No result is older than the job's first one.
    unalarmed = {
        job.id: job
        for job in jobs
        if job.state in UNARCHIVED
        and job.archive_alarmed_at is None
        and now - (job.completed_at or now) >= soonest
    }
    sources = archives.list_sources(connection, list(unalarmed)) if unalarmed else {}
    for job_id, source in sources.items():
        age = now - source.completed_at
        if age >= choose_deadline(deadline, _read_options(source.options)):
            yield Alarm(unalarmed[job_id], age)


def _read_options(stored: object) -> RequestOptions:
    """As they were stored; what another release may have written otherwise says nothing."""
    try:
        return RequestOptions.model_validate(stored or {})
    except ValidationError:
        return RequestOptions()


# ------------------------------------------------------------------ drain


WHY = "its worker was told to end"


def return_downloads(worker: str, *, db: Database, clock: Clock = read_clock) -> list[Doorbell]:
    """Give every download of this worker back, and stop it; whom to ring for."""
    now = clock()
    returned = []
    with db.transaction() as connection:
        for job in table.list_claims(connection, worker):
            if job.state is JobState.ARCHIVING:
                move = Move(now, now, WHY)
                returned.append(
                    table.apply_permitted(connection, job, JobEvent.ARCHIVE_POSTPONED, move)
                )
    abandon_claims()
    return [job.doorbell for job in returned if job.doorbell is not None]


def end_leases(worker: str, *, db: Database, clock: Clock = read_clock) -> list[UUID]:
    """Let the sweep take over at once whatever this worker still holds; the jobs."""
    now = clock()
    with db.transaction() as connection:
        held = table.list_claims(connection, worker)
        for job in held:
            table.advance_due(connection, job, now)
    return [job.id for job in held]


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
    archive_deadline: timedelta = ARCHIVE_DEADLINE,
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
        late = raise_alarms(connection, overdue, archive_deadline, now)
        pauses = admit.list_pauses(connection)
        queued = [job for job in overdue if job.state is JobState.QUEUED]
        held_back = _hold_back(connection, queued, pauses, now, probe_after)
        waiting = [job for job in overdue if job.doorbell is not None and job.id not in held_back]
        _push_on(connection, waiting, now + lease)
        returned = [take_over(connection, job, now, lease) for job in overdue if job.claimed_by]
        cancels = attempts.claim_due_cancels(connection, now, now + lease, limit)
    log_alarms(late)
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
    is_closed = admit.is_closed(last, now, probe_after)
    held_back = [job.id for job in (queued if is_closed else queued[1:])]
    wait = spread(max(last.opens_at - now, timedelta(seconds=1)) if is_closed else probe_after)
    admit.block_submissions(connection, held_back, last, now + wait)
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
