"""Short transactions on both databases: all or nothing, bounded waits, durable SQLite."""

import os
import sqlite3
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

import worker.ground.db
from tests.harness.together import call_together
from worker.ground.db import PEER_CHECKS, TRANSIENT_DB_ERRORS, Database, name_sqlite

COUNTER = "UPDATE counters SET value = value + 1"
BOTH = pytest.mark.both_databases


@pytest.fixture
def on_postgres(postgres_url) -> Iterator[Database]:
    db = Database(postgres_url)
    yield db
    db.close()


@pytest.fixture
def counting(db) -> Database:
    with db.transaction() as connection:
        connection.execute(text("CREATE TABLE counters (value integer NOT NULL)"))
        connection.execute(text("INSERT INTO counters VALUES (0)"))
    assert isinstance(db, Database)
    return db


def read_counter(db: Database) -> int:
    with db.reading() as connection:
        return int(connection.execute(text("SELECT value FROM counters")).scalar_one())


def read_parameters(connection: Connection) -> dict[str, str]:
    """What libpq was given."""
    dbapi_connection = connection.connection.driver_connection
    assert dbapi_connection is not None
    return dict(dbapi_connection.info.get_parameters())


@BOTH
def test_transaction_commits_at_its_end(counting) -> None:
    with counting.transaction() as connection:
        connection.execute(text(COUNTER))
        assert read_counter(counting) == 0, "nobody else sees it before"
    assert read_counter(counting) == 1


@BOTH
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_transaction_that_raises_writes_nothing(counting, error) -> None:
    def fail() -> None:
        with counting.transaction() as connection:
            connection.execute(text(COUNTER))
            raise error

    with pytest.raises(error):
        fail()
    assert read_counter(counting) == 0


@BOTH
def test_transactions_at_once_lose_no_update(counting) -> None:
    def count() -> None:
        for _ in range(10):
            with counting.transaction() as connection:
                value = connection.execute(
                    text("SELECT value FROM counters" + lock_clause(counting))
                ).scalar_one()
                connection.execute(text("UPDATE counters SET value = :v"), {"v": value + 1})

    call_together(*[count] * 4)
    assert read_counter(counting) == 40


def lock_clause(db: Database) -> str:
    return " FOR UPDATE" if db.engine.dialect.name == "postgresql" else ""


@BOTH
def test_reading_is_not_held_up_by_writer(counting) -> None:
    with counting.transaction() as connection:
        connection.execute(text(COUNTER))
        started = time.monotonic()
        assert read_counter(counting) == 0
        assert time.monotonic() - started < 1


@BOTH
def test_foreign_keys_are_enforced(db) -> None:
    insert = (
        "INSERT INTO events (job_id, at, to_state, reason, fence)"
        " VALUES (:id, :at, 'queued', 'x', 0)"
    )
    absent = {"id": "0" * 32, "at": "2026-11-23 12:00:00"}
    with pytest.raises(IntegrityError), db.transaction() as connection:
        connection.execute(text(insert), absent)


@pytest.mark.parametrize("name", ["with space.db", "ü?x#y%41@b:c.db"])
def test_sqlite_file_of_odd_name_is_found_by_its_url(tmp_path, name) -> None:
    db = Database(name_sqlite(tmp_path / name))
    with db.transaction() as connection:
        connection.execute(text("CREATE TABLE t (x integer)"))
    db.close()
    assert (tmp_path / name).exists()


def test_sqlite_is_durable_and_concurrent(db) -> None:
    pragmas = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}
    with db.reading() as connection:
        for name, value in pragmas.items():
            assert connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() == value, name


def test_new_sqlite_file_that_another_program_is_making_is_waited_for(
    tmp_path, monkeypatch
) -> None:
    other = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(time, "sleep", lambda _: other.execute("ROLLBACK"))
    db = Database(name_sqlite(tmp_path / "jobs.db"))
    with db.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
    db.close()
    other.close()


def test_sqlite_locked_too_long_raises_at_begin(sqlite_url, monkeypatch) -> None:
    monkeypatch.setattr(worker.ground.db, "BUSY_TIMEOUT_MS", 50)
    db = Database(sqlite_url)
    writer = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(OperationalError, match="locked"), db.transaction():
        raise AssertionError("the block must not be entered")
    writer.execute("ROLLBACK")
    writer.close()
    with db.transaction():
        pass
    db.close()


def test_postgres_speaks_utc_and_bounds_statements(postgres_url, monkeypatch) -> None:
    monkeypatch.setattr(worker.ground.db, "STATEMENT_TIMEOUT_MS", 50)
    db = Database(postgres_url)
    with db.reading() as connection:
        assert connection.execute(text("SHOW timezone")).scalar_one() == "UTC"
        with pytest.raises(OperationalError, match="statement timeout"):
            connection.execute(text("SELECT pg_sleep(5)"))
    db.close()


def test_what_the_url_says_of_the_connection_is_kept(postgres_url) -> None:
    """Ours is only what the operator leaves open; the bound of statements stays, unless named."""
    options = "options=-csearch_path%3Dapp,public -c lock_timeout%3D7s"
    theirs = f"{options}&connect_timeout=3&keepalives_idle=60"
    db = Database(f"{postgres_url}&{theirs}", program="extend-video worker")
    shown = ("search_path", "lock_timeout", "statement_timeout", "application_name")
    with db.reading() as connection:
        known = read_parameters(connection)
        values = [connection.execute(text(f"SHOW {name}")).scalar_one() for name in shown]
    db.close()
    assert values == ["app,public", "7s", "10s", "extend-video worker"]
    assert (known["connect_timeout"], known["keepalives_idle"]) == ("3", "60")
    db = Database(f"{postgres_url}&options=-cstatement_timeout%3D2s&application_name=mine")
    with db.reading() as connection:
        values = [connection.execute(text(f"SHOW {name}")).scalar_one() for name in shown[2:]]
    db.close()
    assert values == ["2s", "mine"]


def test_connection_that_postgres_dropped_is_replaced_at_its_next_use(
    on_postgres, postgres
) -> None:
    with on_postgres.reading() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    postgres.execute(f"SELECT pg_terminate_backend({pid})")
    with on_postgres.reading() as connection:
        assert connection.execute(text("SELECT pg_backend_pid()")).scalar_one() != pid


def test_connection_that_postgres_drops_in_use_fails_once(on_postgres, postgres) -> None:
    def use_dropped() -> None:
        with on_postgres.reading() as connection:
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            postgres.execute(f"SELECT pg_terminate_backend({pid})")
            connection.execute(text("SELECT 1"))

    with pytest.raises(TRANSIENT_DB_ERRORS):
        use_dropped()
    with on_postgres.reading() as connection:
        connection.execute(text("SELECT 1"))


def test_failing_statement_keeps_its_values_to_itself(db) -> None:
    """They are prompts and signed URLs, and errors end in logs."""
    with pytest.raises(DBAPIError) as caught, db.transaction() as connection:
        connection.execute(text("INSERT INTO nowhere VALUES (:url)"), {"url": "https://secret"})
    assert "secret" not in str(caught.value)


def test_kernel_is_to_notice_a_server_whose_machine_is_gone(on_postgres) -> None:
    """A connection over TCP would otherwise wait for the answer to a query for hours."""
    with on_postgres.reading() as connection:
        known = read_parameters(connection)
    assert {name: int(known[name]) for name in PEER_CHECKS} == PEER_CHECKS
    seconds = known["keepalives_idle"], known["keepalives_interval"], known["keepalives_count"]
    idle, interval, count = map(int, seconds)
    assert idle + interval * count <= 30


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o640), (0o077, 0o600)])
def test_sqlite_file_and_its_companions_are_for_owner_and_group(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        db = Database(name_sqlite(tmp_path / "jobs.db"))
        with db.transaction() as connection:
            connection.execute(text("CREATE TABLE counters (value integer)"))
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        db.close()
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(["jobs.db", "jobs.db-wal", "jobs.db-shm"], mode)
