"""What ended rows cost the sweep and admission: a million of them, beside five thousand.

`ENDED_ROWS=5000000` measures with more: filling the tables takes most of the time.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from sqlalchemy import Connection, delete, select, text, update

from benchmarks.harness.figures import Figure, Goal, Plan, Question
from benchmarks.harness.run import run_alone
from tests.harness.servers import run_postgres
from worker.fal.options import RequestOptions
from worker.ground.clock import read_clock
from worker.ground.db import Database
from worker.ground.schema import upgrade_schema
from worker.jobs.admission import Caps, release_attempts
from worker.jobs.models import AttemptRow, ChargeRow, JobRow, SpendRow
from worker.jobs.states import JobState
from worker.stages.admit import AdmissionPolicy
from worker.stages.submit import SubmitPolicy, begin_submission
from worker.stages.sweep import BATCH, sweep_jobs

MANY, FEW = 1_000_000, 5_000
LEASE = timedelta(seconds=60)
GOAL = Goal("<=", 1.2)
# As many as an account of fal's runs at once: their slots are free again after each time.
IN_FLIGHT = 40
POLICY = SubmitPolicy(
    worker="bench:1",
    webhook_base_url="https://example.com",
    options=RequestOptions(),
    lease=LEASE,
    poll_after=LEASE,
    retry_for=LEASE,
    probe_after=LEASE,
    admission=AdmissionPolicy(Caps(IN_FLIGHT), "fal-ai/ltx-2.3-22b/extend-video", 1_605_000),
)

POSTGRES_FILLING = (
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL maintenance_work_mem = '256MB'",
    "SET LOCAL synchronous_commit = off",
)
SQLITE_FILLING = ("PRAGMA cache_size = -262144",)

# ruff: noqa: S608 - put together from what stands here
# As lean as a row may be: what is measured is that they are not looked at. `number` is the id.
COLUMNS = """id, state, tenant, labels, endpoint, input, options, fence, priority,
    due_at, enqueued_at, archived_at"""
VALUES = """'{{}}', 'fal-ai/ltx-2.3-22b/extend-video', '{{"seed": 7}}', '{{}}', 1, 0,
    {due_at}, {at}, {archived_at}"""
FILL = {
    "postgresql": f"""INSERT INTO jobs ({COLUMNS})
        SELECT lpad(to_hex(number), 32, '0')::uuid, :state, 'tenant-' || number % 200, {VALUES}
        FROM generate_series(CAST(:first AS bigint), :last) AS number""",
    "sqlite": f"""WITH RECURSIVE numbers(number) AS (
            SELECT :first UNION ALL SELECT number + 1 FROM numbers WHERE number < :last)
        INSERT INTO jobs ({COLUMNS})
        SELECT printf('%032x', number), :state, 'tenant-' || number % 200, {VALUES}
        FROM numbers""",
}
AT = {
    "postgresql": "TIMESTAMPTZ '2026-01-01 00:00Z' + number * INTERVAL '1 second'",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 1767225600 + number, 'unixepoch')",
}


def measure(plan: Plan) -> list[Figure]:
    size = Size(
        many=plan.pick(int(os.environ.get("ENDED_ROWS", MANY)), 5_000),
        few=plan.pick(FEW, 100),
        due=plan.pick(1_000, 110),
    )
    figures: list[Figure] = []
    with run_postgres() as postgres:
        url = postgres.url_of(postgres.create_database())
        small = postgres.url_of(postgres.create_database())
        figures += compare(plan, size, url, small)
    directory = Path(plan.directory)
    figures += compare(
        plan, size, f"sqlite:///{directory / 'many.db'}", f"sqlite:///{directory / 'few.db'}"
    )
    return figures


@dataclass(frozen=True, slots=True)
class Size:
    """How many rows have ended in the one table and in the other, and how many are due in both."""

    many: int
    few: int
    due: int


def compare(plan: Plan, size: Size, url: str, small_url: str) -> list[Figure]:
    with ExitStack() as stack:
        large = stack.enter_context(open_full(url, size.many, size.due))
        small = stack.enter_context(open_full(small_url, size.few, size.due))
        found = plan.alternate({"many": large.measure, "few": small.measure})
        kind = large.db.engine.dialect.name
        filling = Figure(f"{kind}: filling with {size.many:,}", "s", (large.filled_in,))
    return [
        *(
            Figure(
                f"{kind}: {name} of {size.due:,}, {size.many:,} ended",
                "s",
                found["many"][name],
                found["few"][name],
                f"{size.few:,} ended",
                GOAL,
            )
            for name in ("sweep", "admission")
        ),
        filling,
    ]


@dataclass
class Full:
    """A job table with many ended rows, and some that are due."""

    db: Database
    filled_in: float
    due: list[UUID] = field(default_factory=list)

    def measure(self) -> dict[str, float]:
        """Seconds to sweep all that is due, and to admit each of as many that are queued."""
        self._reset(JobState.SUBMITTED)
        began = time.perf_counter()
        published = 0
        while True:
            swept = sweep_jobs(db=self.db, lease=LEASE)
            published += len(swept.doorbells)
            if swept.rows < BATCH:
                break
        swept_in = time.perf_counter() - began
        self._reset(JobState.QUEUED)
        began, admitted = time.perf_counter(), self._admit_all()
        if not published == admitted == len(self.due):
            raise RuntimeError(f"swept {published}, admitted {admitted} of {len(self.due)}")
        return {"sweep": swept_in, "admission": time.perf_counter() - began}

    def _admit_all(self) -> int:
        """A transaction each, as workers do it."""
        admitted, in_flight = 0, list[UUID]()
        while submission := begin_submission(db=self.db, policy=POLICY, clock=read_clock):
            admitted += 1
            in_flight.append(submission.attempt.id)
            if len(in_flight) == IN_FLIGHT:
                with self.db.transaction() as connection:
                    release_attempts(connection, in_flight)
                in_flight.clear()
        return admitted

    def _reset(self, state: JobState) -> None:
        past = datetime.now(UTC) - LEASE
        with self.db.transaction() as connection:
            for row in (ChargeRow, AttemptRow, SpendRow):
                connection.execute(delete(row))
            connection.execute(
                update(JobRow)
                .where(JobRow.due_at.is_not(None))
                .values(state=state, claimed_by=None, due_at=past)
            )


@contextmanager
def open_full(url: str, ended: int, due: int) -> Iterator[Full]:
    upgrade_schema(url)
    db = Database(url)
    try:
        began = time.monotonic()
        fill(db, ended, due)
        full = Full(db, time.monotonic() - began)
        with db.reading() as connection:
            full.due += connection.execute(
                select(JobRow.id).where(JobRow.due_at.is_not(None))
            ).scalars()
        yield full
    finally:
        db.close()


def fill(db: Database, ended: int, due: int) -> None:
    """Indices are made afterwards, in a fraction of the time that keeping them up takes."""
    is_postgres = db.engine.dialect.name == "postgresql"
    indices = JobRow.metadata.tables["jobs"].indexes
    with db.transaction() as connection:
        for word in POSTGRES_FILLING if is_postgres else SQLITE_FILLING:
            connection.exec_driver_sql(word)
        for index in indices:
            index.drop(connection)
        insert(connection, JobState.ARCHIVED, 1, ended)
        insert(connection, JobState.QUEUED, ended + 1, ended + due)
        for index in indices:
            index.create(connection)
        connection.exec_driver_sql("ANALYZE")
    if is_postgres:
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("SET statement_timeout = 0")
            connection.exec_driver_sql("VACUUM")
    else:
        # The log of the filling is as large as the table, and each reading would go through it.
        raw = db.engine.raw_connection()
        raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        raw.close()


def insert(connection: Connection, state: JobState, first: int, last: int) -> None:
    kind, is_ended = connection.dialect.name, state is JobState.ARCHIVED
    filled = FILL[kind].format(
        at=AT[kind],
        due_at="NULL" if is_ended else AT[kind],
        archived_at=AT[kind] if is_ended else "NULL",
    )
    connection.execute(text(filled), {"state": state.value, "first": first, "last": last})


SWEEP = Question(
    "sweep",
    "what do ended rows cost the sweep of 1,000 that are due, and the admission of as many?",
    measure,
    ("ENDED_ROWS",),
)

if __name__ == "__main__":
    sys.exit(run_alone(SWEEP))
