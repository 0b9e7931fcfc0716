"""Beside the path. sweep: find overdue rows, and have their messages published again.

One sweep at a time, by a lease in a row; each read ends at a limit, so a pass is short whatever the
table holds. Queued jobs are not touched one by one: what has a reason of its own to wait is
released when its time comes, and for the rest as many messages are published as there is room.
Here, too, is what a process does around it: count the time in which it has observed the table,
report paid videos that are still only at fal, and give back what a worker that ends has not
finished.
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
from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.jobs import admission, archives, attempts, charges, limits, table
from worker.jobs.observed import add_observed
from worker.jobs.states import AWAITING_FAL, Doorbell, JobEvent, JobState, PauseCause, Step
from worker.jobs.values import Job, Move, Outcome, Settlement
from worker.jobs.workers import list_workers
from worker.media.store import Store
from worker.stages.admit import BUSY, AdmissionPolicy, choose_time, expire_job
from worker.stages.lease import abandon_claims

BATCH = 100
# Rows that no message is published for are many at once: what waits for its time, charges.
LARGE_BATCH = 500
SWEEP_GATE = "sweep"
# No live row waits longer by itself: a due time further ahead is the work of a wrong clock.
LONGEST_WAIT = MAX_RETRY_AFTER + BUSY.longest + timedelta(minutes=5)
ARCHIVE_DEADLINE = timedelta(hours=1)
# So much of the time for which fal is to keep the file may pass.
EXPIRATION_SHARE = 0.75
UNARCHIVED = frozenset({JobState.COMPLETED, JobState.ARCHIVING})
# A worker that archives has said so within this time.
SEEN_WITHIN = timedelta(minutes=1)
ARCHIVE_QUEUE = "extend_video.archive"

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Swept:
    """A batch: how many rows it took, and what to publish now that it is committed."""

    rows: int
    doorbells: list[Doorbell]


def begin_sweep(*, db: Database, lease: timedelta, clock: Clock = read_clock) -> bool:
    """Take the lease of the sweep; False while another process has it."""
    with db.transaction() as connection:
        return limits.pass_gate(connection, SWEEP_GATE, choose_time(connection, clock), lease)


def end_sweep(*, db: Database) -> None:
    """Give the lease back; after a crash it runs out."""
    with db.transaction() as connection:
        limits.remove_gate(connection, SWEEP_GATE)


def sweep_jobs(
    *,
    db: Database,
    lease: timedelta,
    archive_deadline: timedelta = ARCHIVE_DEADLINE,
    limit: int = BATCH,
    clock: Clock = read_clock,
) -> Swept:
    """Take one batch of overdue rows; each is due again after `lease` unless it moves.

    A waiting row lost its message or has waited long enough: it is published for again. A claimed
    row whose lease has run out is taken from its worker: a download goes back to be claimed again,
    a submission becomes unknown. A job that is not archived `archive_deadline` after its completion
    is logged, once. Queued rows are `release_queued`'s.
    """
    now, longest = clock(), max(LONGEST_WAIT, 2 * lease)
    with db.transaction() as connection:  # locks jobs, then attempts
        due = table.list_due(connection, now, longest, limit)
        overdue = table.lock_due(connection, due, now, longest)
        late = raise_alarms(connection, overdue, archive_deadline, now)
        waiting = [job for job in overdue if job.doorbell is not None]
        # What waits for fal goes on waiting; work of ours may be claimed again.
        at_fal = [job.id for job in waiting if job.state in AWAITING_FAL]
        ours = [job.id for job in waiting if job.state not in AWAITING_FAL]
        table.release_waiting(connection, ours, now + lease)
        table.push_due(connection, at_fal, now + lease)
        returned = [take_over(connection, job, now, lease) for job in overdue if job.claimed_by]
        cancels = attempts.claim_due_cancels(connection, now, now + lease, limit)
    for job, age in late:
        log.error(
            "archive_deadline_near",
            job_id=str(job.id),
            age_seconds=round(age.total_seconds()),
            blocked_reason=job.blocked_reason,
        )
    doorbells = [job.doorbell for job in (*waiting, *returned) if job and job.doorbell]
    doorbells += [Doorbell(Step.CANCEL, job_id) for job_id in cancels]
    return Swept(max(len(due), len(cancels)), doorbells)


def release_queued(
    *, db: Database, limit: int = LARGE_BATCH, clock: Clock = read_clock
) -> tuple[int, list[Job]]:
    """Let queued jobs be admitted whose own time has come, and fail those that have expired.

    How many were released, and the jobs that failed.
    """
    now = clock()
    with db.transaction() as connection:
        expired = [
            expire_job(connection, job, now) for job in table.list_expired(connection, now, limit)
        ]
        released = table.unblock_due(connection, now, LONGEST_WAIT, limit)
    return len(released), [job for job in expired if job is not None]


def settle_charges(
    policy: AdmissionPolicy, *, db: Database, limit: int = LARGE_BATCH, clock: Clock = read_clock
) -> int:
    """Bring the days' totals up to what is known of charges; locks limits, and no job."""
    with db.transaction() as connection:
        admission.begin_admission(connection)
        admission.lock_account(connection, policy.caps, policy.unit_price_nano_usd)
        return charges.settle_due(connection, choose_time(connection, clock), limit)


def pause_without_archive(*, db: Database, clock: Clock = read_clock) -> None:
    """Buy nothing that cannot be kept: while none of the workers that archive can write, pause.

    Also renews what keeps workers of earlier releases from submitting.
    """
    with db.transaction() as connection:
        now = choose_time(connection, clock)
        limits.close_old_gate(connection, now)
        archiving = [
            seen
            for seen in list_workers(connection)
            if now - seen.last_seen_at <= SEEN_WITHIN and ARCHIVE_QUEUE in seen.queues
        ]
        faulty = [seen for seen in archiving if seen.archive_fault is not None]
        if faulty and len(faulty) == len(archiving):
            reason = f"no worker can write to the archive: {faulty[0].archive_fault}"
            hosts = ", ".join(sorted({seen.host or seen.name for seen in faulty}))
            scope, cause = admission.ACCOUNT, PauseCause.ARCHIVE
            admission.keep_pause(connection, admission.Pause(scope, cause, reason, now, hosts))
            log.error("submissions_paused", cause=cause.value, reason=reason)
        elif admission.remove_pause(connection, admission.ACCOUNT, PauseCause.ARCHIVE):
            log.info("submissions_resumed", cause=PauseCause.ARCHIVE.value)


def remove_partials(store: Store) -> int:
    """Remove what killed downloads have left on this machine; returns how many files."""
    return store.spool.remove_partials()


def take_over(connection: Connection, job: Job, now: datetime, lease: timedelta) -> Job | None:
    """Its worker has been silent for a whole lease."""
    detail = f"{job.claimed_by} fell silent"
    if job.state is JobState.ARCHIVING:
        move = Move(now, now + lease, detail)
        return table.apply_event(connection, job, JobEvent.ARCHIVE_CLAIM_EXPIRED, move)
    attempt = attempts.find_current_attempt(connection, job)
    if attempt is not None:
        unknown = Settlement(Outcome.UNKNOWN, now, error_message=detail)
        attempts.record_outcome(connection, attempt.id, unknown)
    blocked = {"blocked_reason": f"fal may or may not have it: {detail}"}
    move = Move(now, now + lease, detail, blocked)
    return table.apply_event(connection, job, JobEvent.SUBMISSION_CLAIM_EXPIRED, move)


# ------------------------------------------------------------------ the archive's deadline


def raise_alarms(
    connection: Connection, jobs: Sequence[Job], deadline: timedelta, now: datetime
) -> list[tuple[Job, timedelta]]:
    """Mark paid videos that are late and not yet reported; those jobs, and how late each is.

    To be logged after the commit, once for each result. `deadline` counts from the completion of
    the request whose result the job has, unless fal deletes the file sooner. Only rows
    that the sweep holds are looked through: each job that waits for its download comes by, and one
    that is being downloaded comes back when that has taken too long.
    """
    late = list(_find_late(connection, jobs, deadline, now))
    if late:
        archives.raise_alarm(connection, [job.id for job, _ in late], now)
    return late


def _find_late(
    connection: Connection, jobs: Sequence[Job], deadline: timedelta, now: datetime
) -> Iterator[tuple[Job, timedelta]]:
    soonest = min(deadline, MIN_EXPIRATION * EXPIRATION_SHARE)
    unalarmed = {
        job.id: job
        for job in jobs
        if job.state in UNARCHIVED
        and job.archive_alarmed_at is None
        and now - (job.completed_at or now) >= soonest  # no result is older than the first one
    }
    sources = archives.list_sources(connection, list(unalarmed)) if unalarmed else {}
    for job_id, source in sources.items():
        try:
            options = RequestOptions.model_validate(source.options or {})
        except ValidationError:  # written otherwise by another release: they say nothing
            options = RequestOptions()
        age = now - source.completed_at
        if age >= choose_deadline(deadline, options):
            yield unalarmed[job_id], age


def choose_deadline(deadline: timedelta, options: RequestOptions) -> timedelta:
    """How long after the completion of its request a job is late; pure."""
    if options.object_expiration is None:
        return deadline
    return min(deadline, options.object_expiration * EXPIRATION_SHARE)


# ------------------------------------------------------------------ observed time


class Observer:
    """Counts the time in which this process has watched the job table; one for each that sweeps.

    A decision on a lost submission needs observed waiting, not the difference of two clocks
    (ADR 17). The first pass adds nothing: nobody had watched before.
    """

    def __init__(self, most: timedelta, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`most` is what one pass adds at the most: twice the period of the sweep."""
        self._most = most
        self._monotonic = monotonic
        self._seen: float | None = None

    def note(self, db: Database, least: timedelta = timedelta()) -> bool:
        """False if another process has done so within this time: then nothing is noted."""
        now = self._monotonic()
        since_seen = timedelta(seconds=0 if self._seen is None else now - self._seen)
        with db.statement() as connection:
            is_noted = add_observed(connection, since_seen, self._most, least)
        if is_noted:
            self._seen = now
        return is_noted


# ------------------------------------------------------------------ a worker that ends


def return_downloads(worker: str, *, db: Database, clock: Clock = read_clock) -> list[Doorbell]:
    """Give every download of this worker back, and stop it; what to publish."""
    now = clock()
    move = Move(now, now, "its worker had to end")
    with db.transaction() as connection:
        returned = [
            table.apply_permitted(connection, job, JobEvent.ARCHIVE_POSTPONED, move)
            for job in table.list_claims(connection, worker)
            if job.state is JobState.ARCHIVING
        ]
    abandon_claims()
    return [job.doorbell for job in returned if job.doorbell is not None]


def end_leases(worker: str, *, db: Database, clock: Clock = read_clock) -> list[UUID]:
    """Let the sweep take over at once what this worker still holds; the jobs.

    A submission goes back to nobody, for its POST may have left: its lease only ends now instead of
    later, and the sweep makes it unknown.
    """
    now = clock()
    with db.transaction() as connection:
        held = table.list_claims(connection, worker)
        for job in held:
            table.advance_due(connection, job, now)
    return [job.id for job in held]
