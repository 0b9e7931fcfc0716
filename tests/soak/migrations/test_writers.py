"""Writers of a job table with a million rows while it is upgraded: how long each of them waits.

`ROWS=100000 make soak NAME=migrations` is a short run. What it writes (`pytest -s`) is what
docs/performance.md says.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from alembic import command

from tests.harness.many_rows import MILLION, fill_table
from worker.ground.db import Database
from worker.ground.schema import build_config, check_schema, upgrade_schema

ROWS = int(os.environ.get("ROWS", MILLION))
PAUSE = timedelta(milliseconds=10)
MOST_STALL = timedelta(milliseconds=250)
# What every revision has.
INSERT_JOB = """INSERT INTO jobs (id, fence, priority, state, due_at, tenant, labels, endpoint,
    input, enqueued_at)
    VALUES (%s, 0, 0, 'queued', now() + interval '1 hour', 'soak', '{}', 'a/b', '{}', now())"""
INSERT_ATTEMPT = """INSERT INTO attempts (id, job_id, number, fence, token_hash, endpoint, input,
    claimed_by, started_at) VALUES (%s, %s, 1, 1, %s, 'a/b', '{}', 'w:1', now())"""
INSERT_DELIVERY = """INSERT INTO deliveries (job_id, attempt_id, received_at, last_received_at,
    times_received, fal_request_id, status, body, body_sha256)
    VALUES (%s, %s, now(), now(), 1, %s, 'OK', '', %s)"""
UPDATE_JOB = "UPDATE jobs SET state = 'submitted', fence = fence + 1 WHERE id = %s"


@dataclass
class Writers:
    """One for each table, each 10 ms; a transaction's time is counted from when it was due."""

    url: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)
    ends: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[None]:
        ways = {"insert": self.insert, "update": self.update, "deliver": self.deliver}
        threads = [threading.Thread(target=self.write, args=way) for way in ways.items()]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.ends.set()
            for thread in threads:
                thread.join()

    def write(self, name: str, way) -> None:
        seconds = self.seconds.setdefault(name, [])
        try:
            with psycopg.connect(self.url, autocommit=True, prepare_threshold=None) as connection:
                mine = uuid4()
                connection.execute(INSERT_JOB, [mine])
                while not self.ends.wait(PAUSE.total_seconds()):
                    began = time.monotonic()
                    with connection.transaction():
                        way(connection, mine)
                    seconds.append(time.monotonic() - began)
        except psycopg.Error as error:
            self.failures.append(error)

    def insert(self, connection, _mine: UUID) -> None:
        connection.execute(INSERT_JOB, [uuid4()])

    def update(self, connection, mine: UUID) -> None:
        connection.execute(UPDATE_JOB, [mine])

    def deliver(self, connection, _mine: UUID) -> None:
        new = uuid4()
        connection.execute(INSERT_JOB, [new])
        connection.execute(INSERT_ATTEMPT, [new, new, new.hex])
        connection.execute(INSERT_DELIVERY, [new, new, new.hex, new.hex])

    def describe(self) -> str:
        return ", ".join(
            f"{name}: {len(all_of_it)} transactions, longest {max(all_of_it) * 1000:.0f} ms"
            for name, all_of_it in self.seconds.items()
        )


@pytest.fixture(scope="module")
def filled_url(postgres):
    """At the newest revision: what is taken away again by a downgrade is made by the upgrade."""
    url = postgres.url_of(postgres.create_database())
    upgrade_schema(url)
    with closing(Database(url)) as db:
        fill_table(db, ROWS, newest=datetime.now(UTC))
    return url


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("revision", ["0004", "0001"])
def test_upgrade_of_a_million_rows_holds_up_no_writer_for_a_quarter_of_a_second(
    filled_url, revision
) -> None:
    command.downgrade(build_config(filled_url), revision)
    writers = Writers(filled_url.replace("+psycopg", ""))
    with writers.running():
        began = time.monotonic()
        upgrade_schema(filled_url)
        took = time.monotonic() - began
    sys.stdout.write(f"\n{revision} to head, {ROWS} rows, in {took:.1f} s: {writers.describe()}\n")
    assert writers.failures == []
    with closing(Database(filled_url)) as db:
        check_schema(db)
    longest = max(map(max, writers.seconds.values()))
    assert longest < MOST_STALL.total_seconds(), writers.describe()
