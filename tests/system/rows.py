"""The job table as another service reads it: plain SQL, and nothing of this project's code."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, create_engine, text

from tests.harness.waiting import wait_until

ENDED = ("archived", "failed", "cancelled")
Row = dict[str, Any]


@dataclass(frozen=True)
class JobTable:
    engine: Engine

    def select(self, statement: str, **parameters: object) -> list[Row]:
        """Rows with JSON, times and ids as Python values, alike on both databases."""
        bound = {name: self.spell_value(value) for name, value in parameters.items()}
        with self.engine.connect() as connection:
            rows = connection.execute(text(statement), bound).mappings()
            return [read_row(dict(row)) for row in rows]

    def write_nothing(self) -> None:
        """Take the write lock as any writer does. Raises OperationalError if another keeps it."""
        with self.engine.begin() as connection:
            if self.engine.dialect.name == "sqlite":
                connection.execute(text("PRAGMA busy_timeout = 200"))
            connection.execute(text("UPDATE jobs SET fence = fence WHERE 1 = 0"))

    def spell_value(self, value: object) -> object:
        """SQLite keeps ids as 32 hexadecimal characters."""
        is_sqlite = self.engine.dialect.name == "sqlite"
        return value.hex if isinstance(value, UUID) and is_sqlite else value

    def find_job(self, job_id: UUID) -> Row | None:
        found = self.select("SELECT * FROM jobs WHERE id = :id", id=job_id)
        return found[0] if found else None

    def read_job(self, job_id: UUID) -> Row:
        job = self.find_job(job_id)
        assert job is not None, f"no row for {job_id}"
        return job

    def list_jobs(self, tenant: str) -> list[Row]:
        return self.select("SELECT * FROM jobs WHERE tenant = :tenant", tenant=tenant)

    def list_attempts(self, job_id: UUID) -> list[Row]:
        return self.select("SELECT * FROM attempts WHERE job_id = :id ORDER BY number", id=job_id)

    def list_deliveries(self, job_id: UUID) -> list[Row]:
        return self.select("SELECT * FROM deliveries WHERE job_id = :id ORDER BY id", id=job_id)

    def list_events(self, job_id: UUID) -> list[Row]:
        return self.select("SELECT * FROM events WHERE job_id = :id ORDER BY id", id=job_id)

    def wait_for_end(self, job_id: UUID, state: str = "archived", seconds: float = 30) -> Row:
        """The row once the job has ended, which must be in `state`."""
        wait_until(lambda: (self.find_job(job_id) or {}).get("state") in ENDED, seconds)
        job = self.read_job(job_id)
        assert job["state"] == state, job
        return job

    def wait_for_ends(self, tenant: str, count: int, seconds: float = 60) -> list[Row]:
        """All jobs of the tenant once so many have ended, which must be `archived`."""
        statement = "SELECT count(*) AS n FROM jobs WHERE tenant = :tenant AND due_at IS NULL"
        wait_until(lambda: self.select(statement, tenant=tenant)[0]["n"] >= count, seconds)
        jobs = self.list_jobs(tenant)
        assert {job["state"] for job in jobs} == {"archived"}, jobs
        return jobs


@contextmanager
def open_table(database_url: str) -> Iterator[JobTable]:
    """Closed at the end of the block, also when a test fails in it."""
    engine = create_engine(database_url)
    try:
        yield JobTable(engine)
    finally:
        engine.dispose()


def read_row(row: Mapping[str, Any]) -> Row:
    return {name: read_value(name, value) for name, value in row.items()}


def read_value(name: str, value: Any) -> Any:
    """What SQLite has as text, as PostgreSQL gives it."""
    if not isinstance(value, str):
        return value
    if name in {"input", "result", "labels", "options", "error_details", "logs"}:
        return json.loads(value)
    if name == "at" or name.endswith("_at"):
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
    if name in {"job_id", "attempt_id"} or (name == "id" and len(value) == len(UUID(int=0).hex)):
        return UUID(value)
    return value
