"""The pure table of states against its SQL, step by random step, on both databases."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, select, text
from typing_extensions import override

from tests.harness.clock import FakeClock
from tests.harness.jobs import CLAIMS, LEASE, WAYS, insert_job, list_all_jobs
from worker.ground.db import Database
from worker.jobs import table
from worker.jobs.models import EventRow
from worker.jobs.states import (
    AWAITING_FAL,
    EDGES,
    ENDED,
    BlockedBy,
    JobEvent,
    JobState,
    next_state,
)
from worker.jobs.values import Claim, Event, Job, Move
from worker.stages.sweep import release_queued, sweep_jobs

PROFILE = settings(
    # A third of what the profile draws: each is a story of thirty steps.
    max_examples=settings().max_examples // 3,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    # the first failing run is told at once: making it smaller takes minutes
    phases=(Phase.explicit, Phase.generate),
)
MOST_JOBS = 3
PLAIN_EVENTS = sorted(set(JobEvent) - CLAIMS - {JobEvent.ENQUEUED})
# Here each of them has a reason of its job's own to wait.
BLOCKING = {
    JobEvent.SUBMISSION_POSTPONED,
    JobEvent.SUBMISSION_HELD,
    JobEvent.ARCHIVE_POSTPONED,
}
EXPIRED = {
    JobState.SUBMITTING: JobEvent.SUBMISSION_CLAIM_EXPIRED,
    JobState.ARCHIVING: JobEvent.ARCHIVE_CLAIM_EXPIRED,
}

# from a wide range, for a narrow one is drawn from less evenly
numbers = st.integers(0, 2**32)
priorities = st.integers(-1, 1)
states = st.sampled_from(list(WAYS))
workers = st.sampled_from(["one", "two"])
delays = st.integers(0, 3).map(lambda halves: halves * LEASE / 2)


@dataclass
class Expected:
    """What the pure table says of one job, and every value of it that anybody has read."""

    state: JobState
    fence: int
    due_at: datetime | None
    claimed_by: str | None = None
    blocked: bool = False
    priority: int = 0
    moves: list[JobEvent] = field(default_factory=lambda: [JobEvent.ENQUEUED])
    read: list[Job] = field(default_factory=list)
    ended: Job | None = None


class JobMachine(RuleBasedStateMachine):
    """Two workers, some zombies among them, several sweeps and a clock."""

    def __init__(self, db: Database, walked: Counter[tuple[JobState, JobEvent]]) -> None:
        super().__init__()
        self.db = db
        self.walked = walked
        self.clock = FakeClock()
        self.jobs: dict[UUID, Expected] = {}

    @override
    def teardown(self) -> None:
        with self.db.transaction() as connection:
            connection.execute(text("DELETE FROM jobs"))

    @initialize(priority=priorities, state=states)
    def enqueue_first(self, priority: int, state: JobState) -> None:
        self.enqueue_job(priority, state)

    @precondition(lambda self: len(self.jobs) < MOST_JOBS)
    @rule(priority=priorities, state=states)
    def enqueue_job(self, priority: int, state: JobState) -> None:
        """A new job, led to `state` by the shortest way."""
        job = insert_job(self.db, now=self.clock(), priority=priority)
        due_at = self.clock() + LEASE
        self.jobs[job.id] = Expected(JobState.QUEUED, 0, due_at, priority=priority, read=[job])
        for event in WAYS[state]:
            self.take_edge(job.id, event, LEASE, "one")

    @rule(number=numbers, event=st.sampled_from(sorted(CLAIMS)), worker=workers)
    def claim_any_job(self, number: int, event: JobEvent, worker: str) -> None:
        self.claim_job(self.pick_job(number)[0], event, worker)

    @rule(number=numbers, choice=numbers, delay=delays, worker=workers)
    def go_on(self, number: int, choice: int, delay: timedelta, worker: str) -> None:
        """The holder of a job's newest value moves it along one of its edges."""
        movable = [job_id for job_id, one in self.jobs.items() if list_ways(one.state)]
        if movable:
            job_id = movable[number % len(movable)]
            ways = list_ways(self.jobs[job_id].state)
            self.take_edge(job_id, ways[choice % len(ways)], delay, worker)

    @rule(number=numbers, age=numbers, event=st.sampled_from(PLAIN_EVENTS), delay=delays)
    def apply_any_event(self, number: int, age: int, event: JobEvent, delay: timedelta) -> None:
        """A worker wakes up with a value that may be old, and an event that may be forbidden."""
        read = self.pick_job(number)[1].read
        self.apply_event(read[-1 - age % len(read)], event, delay)

    @rule(number=numbers, age=numbers)
    def extend_claim(self, number: int, age: int) -> None:
        expected = self.pick_job(number)[1]
        claims = [job for job in expected.read if job.claimed_by is not None]
        if not claims:
            return
        held = claims[-1 - age % len(claims)]
        until = self.clock() + 2 * LEASE
        with self.db.transaction() as connection:
            extended = table.extend_claim(connection, held, until)
        assert extended == is_current(held, expected)
        if extended:
            expected.due_at = until

    @rule(limit=st.integers(1, MOST_JOBS))
    def sweep(self, limit: int) -> None:
        overdue = {
            job_id: (-one.priority, one.due_at)
            for job_id, one in self.jobs.items()
            if one.state is not JobState.QUEUED
            and one.due_at is not None
            and one.due_at <= self.clock()
        }
        swept = sweep_jobs(db=self.db, lease=LEASE, limit=limit, clock=self.clock)
        ids = {doorbell.job_id for doorbell in swept.doorbells if doorbell.job_id is not None}
        assert len(swept.doorbells) == len(ids) == swept.rows == min(limit, len(overdue))
        assert sorted(overdue[job_id] for job_id in ids) == sorted(overdue.values())[:limit]
        for job_id in ids:
            self.note_sweep(job_id)

    @rule()
    def release_queued(self) -> None:
        """Queued jobs are not swept, but may be admitted again when their own time has come."""
        due = [
            one
            for one in self.jobs.values()
            if one.state is JobState.QUEUED
            and one.blocked
            and one.due_at is not None
            and one.due_at <= self.clock()
        ]
        assert release_queued(db=self.db, clock=self.clock) == (len(due), [])
        for one in due:
            one.due_at, one.blocked = self.clock(), False

    @rule(halves=st.integers(1, 4))
    def move_clock(self, halves: int) -> None:
        self.clock.move(halves * LEASE / 2)

    @invariant()
    def check_table_against_model(self) -> None:
        with self.db.reading() as connection:
            found = list_all_jobs(connection)
            histories = list_histories(connection)
        assert {job.id for job in found} == set(self.jobs) == set(histories)
        for job in found:
            check_job(job, self.jobs[job.id])
            check_history(job, histories[job.id], self.jobs[job.id])

    def pick_job(self, number: int) -> tuple[UUID, Expected]:
        return list(self.jobs.items())[number % len(self.jobs)]

    def take_edge(self, job_id: UUID, event: JobEvent, delay: timedelta, worker: str) -> None:
        if event in CLAIMS:
            self.claim_job(job_id, event, worker)
        else:
            self.apply_event(self.jobs[job_id].read[-1], event, delay)

    def claim_job(self, job_id: UUID, event: JobEvent, worker: str) -> None:
        expected = self.jobs[job_id]
        target = next_state(expected.state, event)
        waits = expected.blocked and (expected.due_at or self.clock()) > self.clock()
        until = self.clock() + LEASE
        with self.db.transaction() as connection:
            claim = Claim(worker, self.clock(), until)
            claimed = table.claim_job(connection, job_id, event, claim)
        assert (claimed is not None) == (target is not None and not waits)
        if claimed is not None:
            expected.fence += 1
            self.note_move(expected, event, claimed, until, worker)

    def apply_event(self, job: Job, event: JobEvent, delay: timedelta) -> None:
        expected = self.jobs[job.id]
        target = next_state(job.state, event)
        due_at = None if target in ENDED else self.clock() + delay
        blocked = {"blocked_by": BlockedBy.RETRY.value, "blocked_reason": "waits"}
        columns: dict[str, Any] = blocked if event in BLOCKING else {}
        if event is JobEvent.CANCEL_REQUESTED:
            # a wish moves nothing: whoever holds the job goes on holding it
            kept = ("claimed_by", "blocked_by", "blocked_reason")
            columns = {name: getattr(job, name) for name in kept}
        with self.db.transaction() as connection:
            move = Move(self.clock(), due_at, columns=columns)
            moved = table.apply_event(connection, job, event, move)
        assert (moved is not None) == (target is not None and is_current(job, expected))
        if moved is not None:
            was_blocked = expected.blocked
            self.note_move(expected, event, moved, due_at, columns.get("claimed_by"))
            if event is JobEvent.CANCEL_REQUESTED:
                expected.blocked = was_blocked

    def note_move(
        self,
        expected: Expected,
        event: JobEvent,
        moved: Job,
        due_at: datetime | None,
        claimed_by: str | None,
    ) -> None:
        self.walked[expected.state, event] += 1
        expected.state = EDGES[expected.state, event]
        expected.due_at, expected.claimed_by = due_at, claimed_by
        expected.blocked = event in BLOCKING
        expected.moves.append(event)
        expected.read.append(moved)
        expected.ended = moved if expected.state in ENDED else None

    def note_sweep(self, job_id: UUID) -> None:
        expected = self.jobs[job_id]
        due_at = self.clock() + LEASE
        with self.db.reading() as connection:
            after = table.get_job(connection, job_id)
        expired = EXPIRED.get(expected.state)
        if expired is not None:
            self.note_move(expected, expired, after, due_at, None)
            return
        expected.due_at = due_at
        if expected.state not in AWAITING_FAL:
            expected.blocked = False


def list_histories(connection: Connection) -> dict[UUID, list[Event]]:
    """Every job's events by one query: it runs after each step."""
    histories: dict[UUID, list[Event]] = {}
    rows = connection.execute(select(*EventRow.__table__.columns).order_by(EventRow.id))
    for event in (Event(**row) for row in rows.mappings()):
        histories.setdefault(event.job_id, []).append(event)
    return histories


def list_ways(state: JobState) -> list[JobEvent]:
    return sorted(event for source, event in EDGES if source is state)


def is_current(job: Job, expected: Expected) -> bool:
    return (job.state, job.fence) == (expected.state, expected.fence)


def check_job(job: Job, expected: Expected) -> None:
    assert (job.state, job.fence) == (expected.state, expected.fence)
    assert (job.due_at, job.claimed_by) == (expected.due_at, expected.claimed_by)
    assert (job.blocked_by is not None) == expected.blocked
    assert (job.due_at is None) == (job.state in ENDED)
    assert job.fence >= expected.read[-1].fence
    if expected.ended is not None:
        assert job == expected.ended


def check_history(job: Job, history: list[Event], expected: Expected) -> None:
    assert [event.reason for event in history] == expected.moves
    ways = [(event.from_state, event.to_state) for event in history]
    assert ways[0] == (None, JobState.QUEUED)
    assert [source for source, _ in ways[1:]] == [target for _, target in ways[:-1]]
    assert history[-1].to_state == job.state
    fences = [event.fence for event in history]
    assert fences == sorted(fences)
    assert fences[-1] == job.fence


@pytest.mark.both_databases
def test_sql_and_pure_table_agree_on_every_edge(db):
    machine = JobMachine(db, Counter())
    for state, event in EDGES:
        machine.enqueue_job(0, state)
        machine.take_edge(list(machine.jobs)[-1], event, LEASE, "one")
    machine.check_table_against_model()
    assert set(machine.walked) == set(EDGES)


@pytest.mark.both_databases
def test_sql_and_pure_table_agree_after_any_steps(db):
    walked: Counter[tuple[JobState, JobEvent]] = Counter()

    class Machine(JobMachine):
        def __init__(self) -> None:
            super().__init__(db, walked)

    run_state_machine_as_test(Machine, settings=PROFILE)
    assert len(walked) > len(EDGES) // 3
