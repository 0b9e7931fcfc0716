"""What has happened to a job so far: read for people and programs, never written."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.ground.errors import PaysAgainError
from worker.jobs import attempts, deliveries, table
from worker.jobs.states import ENDED, JobEvent
from worker.jobs.values import Attempt, Delivery, Event, Job
from worker.ops.explain import will_fail_again
from worker.ops.stays import Stay, list_stays
from worker.ops.waiting import Wait, explain_wait
from worker.stages.pause import list_pauses
from worker.stages.redrive import choose_restart
from worker.stages.resolve import ResolvePolicy

LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Story:
    """A job with everything that was written about it, and what it waits for."""

    job: Job
    attempts: list[Attempt]
    deliveries: list[Delivery]
    events: list[Event]
    stays: list[Stay]
    wait: Wait


def read_story(
    job_id: UUID, *, db: Database, policy: ResolvePolicy | None = None, clock: Clock = read_clock
) -> Story:
    """Raises JobNotFoundError. `policy` let it foresee what becomes of an unknown one."""
    with db.reading() as connection:
        job = table.get_job(connection, job_id)
        tried = attempts.list_attempts(connection, job_id)
        received = deliveries.list_deliveries(connection, job_id)
        events = table.list_events(connection, job_id)
        gate = next(iter(list_pauses(connection)), None)
    now = clock()
    stays = list_stays(events, now)
    wait = explain_wait(job, tried, gate, now, policy=policy)
    return Story(job, tried, received, events, stays, wait)


def find_job_ended_since(job_id: UUID, since: datetime, *, db: Database) -> Job | None:
    """The job, if it has failed or was cancelled since then."""
    with db.reading() as connection:
        job = table.find_job(connection, job_id)
    ended_at = None if job is None else job.failed_at or job.cancelled_at
    return job if ended_at is not None and ended_at >= since else None


def find_newest_attempt(job_id: UUID, *, db: Database) -> Attempt | None:
    """How far the job's request is; much less to read than the whole story."""
    with db.reading() as connection:
        known = attempts.list_attempts(connection, job_id)
    return known[-1] if known else None


def foresee_restart(job: Job, *, db: Database) -> JobEvent | None:
    """From where an order without new money would restart the job; None if it takes some."""
    with db.reading() as connection:
        tried = attempts.list_attempts(connection, job.id)
    try:
        return choose_restart(job, tried, pay_again=False)[0]
    except PaysAgainError:
        return None


def fails_again(job: Job, *, db: Database) -> bool:
    """Whether fal says that the same input would fail again."""
    with db.reading() as connection:
        return will_fail_again(job, attempts.list_attempts(connection, job.id))


def follow_events(
    job_id: UUID,
    *,
    db: Database,
    patience: timedelta | None = None,
    on_look: Callable[[], object] | None = None,
) -> Iterator[Event]:
    """Each event of the job as it comes, up to its end. Raises TimeoutError after `patience`.

    `on_look` is called between looks at the table; what it raises ends the following. Raises
    JobNotFoundError at once.
    """
    read_story(job_id, db=db)
    deadline = None if patience is None else time.monotonic() + patience.total_seconds()
    seen = 0
    while True:
        with db.reading() as connection:
            events = table.list_events(connection, job_id)
        yield from events[seen:]
        seen = len(events)
        if events and events[-1].to_state in ENDED:
            return
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError(f"job {job_id} is still {events[-1].to_state.value}")
        if on_look is not None:
            on_look()
        wait_a_look()


def wait_a_look() -> None:
    """How long a follower leaves the table alone."""
    time.sleep(LOOK_SECONDS)
