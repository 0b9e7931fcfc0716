"""Rows of `workers`: who is told to be at work."""

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import text

from tests.harness.jobs import NOW
from worker.ground.db import Database
from worker.jobs.workers import (
    UNSEEN_AFTER,
    SeenWorker,
    keep_worker,
    list_workers,
    note_step,
    remove_worker,
)

SECOND = timedelta(seconds=1)
SUBMITTER = SeenWorker("w@host", 1, ["submit"], NOW, NOW, host="a")
ARCHIVER = replace(
    SUBMITTER, pid=2, queues=["archive"], last_seen_at=NOW + SECOND, host="b", archive_fault="full"
)


def keep(db: Database, *workers: SeenWorker) -> None:
    for one in workers:
        with db.transaction() as connection:
            keep_worker(connection, one)


def read(db: Database) -> list[SeenWorker]:
    with db.reading() as connection:
        return list_workers(connection)


@pytest.mark.both_databases
def test_processes_that_share_a_name_are_told_apart_until_one_leaves(db) -> None:
    keep(db, SUBMITTER, ARCHIVER)
    assert read(db) == [SUBMITTER, ARCHIVER]
    with db.transaction() as connection:
        remove_worker(connection, ARCHIVER)
    assert read(db) == [SUBMITTER]
    with db.transaction() as connection:
        remove_worker(connection, SUBMITTER)
    assert read(db) == []


def test_process_that_took_the_place_of_a_killed_one_is_alone_after_a_minute(db) -> None:
    keep(db, SUBMITTER)
    later = replace(SUBMITTER, pid=2, last_seen_at=NOW + UNSEEN_AFTER + SECOND)
    keep(db, later)
    assert read(db) == [later]


def test_step_renews_a_worker_and_is_told(db) -> None:
    keep(db, SUBMITTER)
    with db.transaction() as connection:
        note_step(connection, "w@host", "submit", NOW + SECOND)
    at = NOW + SECOND
    assert read(db) == [replace(SUBMITTER, last_seen_at=at, last_step="submit", last_step_at=at)]


@pytest.mark.both_databases
def test_worker_of_an_earlier_release_writes_and_is_told_beside_the_new_one(db) -> None:
    keep(db, SUBMITTER)
    with db.transaction() as connection:
        connection.execute(
            text(
                "INSERT INTO workers (name, pid, queues, started_at, last_seen_at) "
                "VALUES ('w@host', 9, '[\"archive\"]', :now, :now) ON CONFLICT (name) "
                "DO UPDATE SET pid = excluded.pid, queues = excluded.queues, "
                "last_seen_at = excluded.last_seen_at"
            ),
            {"now": NOW if db.is_postgres else f"{NOW:%Y-%m-%d %H:%M:%S.%f}"},
        )
    earlier, new = read(db)
    assert (earlier.pid, earlier.queues, new.pid) == (9, ["archive"], SUBMITTER.pid)
