"""The migrations: up, down, up; rows of each release kept; safe to run by anybody at any time."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, Engine, MetaData, event, insert, inspect, select, text
from sqlalchemy.exc import OperationalError
from uuid_utils.compat import uuid7

from tests.harness.ddl import check_by_alembic, compare_schemas, read_schema
from tests.harness.jobs import NOW, make_job
from tests.harness.together import call_together
from tests.harness.waiting import wait_until
from worker.ground import schema
from worker.ground.db import Database
from worker.ground.errors import MigrationBlockedError, OutdatedSchemaError
from worker.ground.schema import (
    build_config,
    check_schema,
    list_revisions,
    read_head,
    read_revision,
    upgrade_schema,
)
from worker.jobs import attempts, deliveries
from worker.jobs import table as jobs_sql
from worker.jobs.models import AttemptRow, JobRow
from worker.jobs.states import JobState
from worker.jobs.values import Outcome, Settlement

ROOT = Path(__file__).resolve().parents[2]
ADVISORY_LOCK = 0x6578_7476
TABLES = {
    "jobs",
    "attempts",
    "deliveries",
    "events",
    "gates",
    "uploads",
    "tallies",
    "workers",
    "observed_time",
    "restores",
    "stray_deliveries",
    "archive_marks",
    "job_requests",
    "limits",
    "pauses",
    "charges",
    "spend",
    "prices",
}


@pytest.fixture(params=["sqlite", "postgresql"])
def make_empty_url(request, tmp_path):
    """A function that gives the URL of another empty database each time, of both kinds in turn."""
    if request.param == "sqlite":
        yield lambda: f"sqlite:///{tmp_path / os.urandom(4).hex()}.db"
        return
    postgres, names = request.getfixturevalue("postgres"), []

    def create():
        names.append(postgres.create_database())
        return postgres.url_of(names[-1])

    yield create
    for name in names:
        postgres.drop_database(name)


@pytest.fixture
def empty_url(make_empty_url):
    return make_empty_url()


@contextmanager
def open_database(url):
    with closing(Database(url)) as db:
        yield db


def list_tables(db):
    return set(inspect(db.engine).get_table_names()) - {"alembic_version"}


# up and down


def test_migrations_up_down_up_make_the_same_schema(empty_url):
    assert upgrade_schema(empty_url) == read_head()
    with open_database(empty_url) as db:
        first = read_schema(db)
        assert list_tables(db) == TABLES
        make_job(db, JobState.ARCHIVED)
        upgrade_schema(empty_url)
        assert read_schema(db) == first
        with db.reading() as connection:
            assert connection.execute(text("SELECT count(*) FROM jobs")).scalar_one() == 1
        command.downgrade(build_config(empty_url), "base")
        assert (read_schema(db), read_revision(db)) == ({}, None)
        upgrade_schema(empty_url)
        assert (read_schema(db), read_revision(db)) == (first, read_head())


# rows that release 0.1.0 has written


# The revision that each release came with.
RELEASED = {"0.1.0": "0001", "0.2.0": "0003"}
FILLED = {"jobs", "attempts", "deliveries", "events"}
ATTEMPTED = ("submitted", "submission_unknown")


def fill_release_0_1_0(db):
    """Rows with the columns that release 0.1.0 knew; gives the ids of the jobs."""
    found = MetaData()
    found.reflect(db.engine)
    as_stored = str if db.engine.dialect.name == "postgresql" else lambda one: one.hex
    ids = [uuid7() for _ in ATTEMPTED]
    with db.transaction() as connection:
        for number, (job_id, state) in enumerate(zip(ids, ATTEMPTED, strict=True)):
            for name, row in build_rows(as_stored, job_id, state, number).items():
                connection.execute(insert(found.tables[name]).values(row))
    return ids


def build_rows(as_stored, job_id, state, number):
    sent = {"endpoint": "a/b", "input": {"seed": 7}}
    of_job = {"job_id": as_stored(job_id)}
    attempt_id = as_stored(uuid7())
    return {
        "jobs": {
            "id": as_stored(job_id),
            "fence": 1,
            "priority": 0,
            "state": state,
            "due_at": NOW,
            "tenant": "shop",
            "labels": {},
            "enqueued_at": NOW,
            **sent,
        },
        "attempts": {
            "id": attempt_id,
            "number": 1,
            "fence": 1,
            "token_hash": f"hash-{number}",
            "claimed_by": "w:1",
            "started_at": NOW,
            "outcome": "unknown",
            **of_job,
            **sent,
        },
        "deliveries": {
            "attempt_id": attempt_id,
            "received_at": NOW,
            "last_received_at": NOW,
            "times_received": 3,
            "fal_request_id": f"r-{number}",
            "status": "OK",
            **of_job,
            "body": b"{}",
            "body_sha256": "sha",
        },
        "events": {"at": NOW, "to_state": "queued", "reason": "enqueued", "fence": 0, **of_job},
    }


def read_rows(db, columns_of_tables):
    with db.reading() as connection:
        return {
            name: sorted(
                map(
                    str,
                    connection.execute(text(f"SELECT {', '.join(sorted(columns))} FROM {name}")),
                )
            )
            for name, columns in columns_of_tables.items()
        }


def list_columns(db):
    found = inspect(db.engine)
    return {
        name: {column["name"] for column in found.get_columns(name)} for name in list_tables(db)
    }


@pytest.mark.parametrize("released", RELEASED.values(), ids=list(RELEASED))
def test_upgrade_from_a_release_and_back_keeps_every_row(empty_url, released):
    """SQLite alters a table by a copy; dropping the old one must not take what refers to it."""
    command.upgrade(build_config(empty_url), released)
    with open_database(empty_url) as db:
        job_id, _ = fill_release_0_1_0(db)
        columns = {name: known for name, known in list_columns(db).items() if name in FILLED}
        before = read_rows(db, columns)
        assert {name: len(rows) for name, rows in before.items()} == dict.fromkeys(FILLED, 2)
        upgrade_schema(empty_url)
        assert read_rows(db, columns) == before
        with db.reading() as connection:
            job = jobs_sql.get_job(connection, job_id)
            (attempt,) = attempts.list_attempts(connection, job_id)
            (delivery,) = deliveries.list_deliveries(connection, job_id)
            if db.engine.dialect.name == "sqlite":
                assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
        assert (job.state, job.input) == (JobState.SUBMITTED, {"seed": 7})
        assert (attempt.outcome, attempt.ending, attempt.completed_at) == ("unknown", None, None)
        assert (delivery.body, delivery.verdict) == (b"{}", "recorded")
        command.downgrade(build_config(empty_url), released)
        assert read_rows(db, columns) == before
        upgrade_schema(empty_url)
        with db.transaction() as connection:
            connection.execute(text("DELETE FROM jobs"))
        left = read_rows(db, {"attempts": ["id"], "deliveries": ["id"], "events": ["id"]})
    assert left == {"attempts": [], "deliveries": [], "events": []}, "deleting a job takes its rows"


@pytest.mark.both_databases
def test_code_of_release_0_1_0_can_write_to_the_new_schema(db):
    """Old workers go on while a deployment is under way."""
    fill_release_0_1_0(db)
    with db.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM deliveries")).scalar_one() == 2


def test_downgrade_of_a_dead_attempt_makes_it_unknown_again(db, database_url):
    """0001 has no such outcome, and what is unknown is not sent again."""
    job = make_job(db, JobState.SUBMISSION_UNKNOWN)
    with db.transaction() as connection:
        (attempt,) = attempts.list_attempts(connection, job.id)
        dead = Settlement(Outcome.DEAD, attempt.started_at, error_message="nobody knows it")
        attempts.record_outcome(connection, attempt.id, dead)
    command.downgrade(build_config(database_url), "0001")
    rows = read_rows(db, {"attempts": ["outcome", "error_message"], "deliveries": ["id"]})
    assert rows == {"attempts": ["('nobody knows it', 'unknown')"], "deliveries": []}


def test_revisions_by_their_files_names_are_those_that_alembic_finds():
    scripts = ScriptDirectory(str(schema.SCRIPTS))
    assert scripts.get_heads() == [read_head()]
    found = [script.revision for script in scripts.walk_revisions()]
    assert list_revisions() == found[::-1]


# equal to the models: `make lint` compares; here is that it would see a difference


@pytest.mark.both_databases
def test_compare_schemas_sees_what_was_changed_by_hand(db):
    before = read_schema(db)
    found = " ".join(f"{name} {line}" for name, line in before.items())
    assert "ck_jobs_due_at" in found
    assert "uq_jobs_tenant_idempotency_key" in found
    changes = [
        ("DROP INDEX ix_jobs_late", "CREATE INDEX ix_jobs_late ON jobs (due_at)"),
        ("DROP INDEX ix_events_job_id",),
        ("ALTER TABLE attempts ADD COLUMN extra TEXT",),
        ("CREATE TABLE extra (id INTEGER)",),
    ]
    if db.engine.dialect.name == "postgresql":
        check = "ADD CONSTRAINT ck_jobs_fence CHECK (fence >= 1)"
        changes.append(
            ("ALTER TABLE jobs DROP CONSTRAINT ck_jobs_fence", f"ALTER TABLE jobs {check}")
        )
    for statements in changes:
        with db.transaction() as connection:
            for statement in statements:
                connection.execute(text(statement))
        after = read_schema(db)
        assert len(compare_schemas(before, after)) == 1, statements
        before = after


def test_check_by_alembic_sees_a_missing_column(db, database_url):
    with db.transaction() as connection:
        connection.execute(text("ALTER TABLE attempts DROP COLUMN http_status"))
    (difference,) = check_by_alembic(database_url)
    assert "http_status" in difference


# names


@pytest.mark.both_databases
def test_names_of_all_constraints_follow_the_convention(db):
    found = inspect(db.engine)
    names = [
        (table, name)
        for table in TABLES
        for name in (
            found.get_pk_constraint(table)["name"],
            *(one["name"] for one in found.get_foreign_keys(table)),
            *(one["name"] for one in found.get_unique_constraints(table)),
            *(one["name"] for one in found.get_check_constraints(table)),
            *(one["name"] for one in found.get_indexes(table)),
        )
    ]
    assert [
        (table, name)
        for table, name in names
        if not re.fullmatch(rf"(pk_{table}|(fk|uq|ck|ix)_{table}_\w+)", str(name))
    ] == []
    for table in TABLES - {"jobs", "gates"}:
        starts = {one["column_names"][0] for one in found.get_indexes(table)}
        starts |= {one["column_names"][0] for one in found.get_unique_constraints(table)}
        keys = {one["constrained_columns"][0] for one in found.get_foreign_keys(table)}
        assert keys <= starts, "every foreign key is indexed"
    checks = [
        constraint
        for table in JobRow.metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    ]
    assert len([name for _, name in names if str(name).startswith("ck_")]) == len(checks)


# what a process is told at its start


def test_check_schema_of_an_empty_database_says_to_migrate(empty_url):
    with open_database(empty_url) as db, pytest.raises(OutdatedSchemaError, match="not exist yet"):
        check_schema(db)


def test_check_schema_at_the_head_or_of_a_newer_database_is_content(db):
    """Old code runs on the new schema while a deployment is under way."""
    check_schema(db)
    assert read_revision(db) == read_head()
    with db.transaction() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    check_schema(db)


def test_check_schema_of_an_older_database_says_to_migrate(monkeypatch, tmp_path, db):
    head = read_head()
    add_revision(monkeypatch, tmp_path)
    with pytest.raises(OutdatedSchemaError, match=f"at {head}, not at 9998: run `extend-video mi"):
        check_schema(db)


def add_revision(monkeypatch, directory):
    """Let the code know one more revision than the database has."""
    newer = f'revision = "9998"\ndown_revision = "{read_head()}"\ndef upgrade(): pass\n'
    scripts = directory / "scripts"
    shutil.copytree(schema.SCRIPTS, scripts)
    (scripts / "versions" / "9998.py").write_text(newer)
    monkeypatch.setattr(schema, "SCRIPTS", scripts)


def test_upgrade_of_sqlite_that_fails_undoes_every_step(tmp_path):
    """All of them are one transaction, which a second migrator waits for."""
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    with open_database(url) as db:
        with db.transaction() as connection:
            connection.execute(text("CREATE TABLE archive_marks (id integer)"))
        with pytest.raises(OperationalError, match="already exists"):
            upgrade_schema(url)
        assert list_tables(db) == {"archive_marks"}


# by the command, and by two at once


def start_alembic(url, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process):
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def test_alembic_without_a_database_to_write_sql_for_is_refused(sqlite_url):
    with pytest.raises(SystemExit, match="migrations need the database"):
        command.upgrade(build_config(sqlite_url), "head", sql=True)


@pytest.mark.slow  # starts Alembic twice
def test_alembic_upgrade_by_two_at_once_migrates_once(make_empty_url):
    """The command of the project's root, with nothing but DATABASE_URL."""
    url = make_empty_url()
    processes = [start_alembic(url, "upgrade", "head") for _ in range(2)]
    ended = [wait_for(process) for process in processes]
    assert [code for code, _ in ended] == [0, 0], ended
    with open_database(url) as db:
        check_schema(db)
        assert list_tables(db) == TABLES
        with db.reading() as connection:
            rows = connection.execute(text("SELECT count(*) FROM alembic_version")).scalar_one()
    assert rows == 1


# locks that are not got


@pytest.fixture
def postgres_empty_url(postgres):
    name = postgres.create_database()
    yield postgres.url_of(name)
    postgres.drop_database(name)


@contextmanager
def connect_to(url, **options):
    with psycopg.connect(url.replace("+psycopg", ""), **options) as connection:
        yield connection


def test_migration_waits_for_another_migrator_without_a_snapshot(postgres_empty_url):
    """CREATE INDEX CONCURRENTLY of the one would wait for a statement of the other that waits."""
    url = postgres_empty_url
    others = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'extend-video migrate' "
        "AND query = 'ROLLBACK' AND state = 'idle' AND backend_xmin IS NULL"
    )
    with connect_to(url) as holder, connect_to(url, autocommit=True) as watcher:
        holder.execute("SELECT pg_advisory_xact_lock(%s)", [ADVISORY_LOCK])

        def release():
            wait_until(lambda: watcher.execute(others).fetchone())
            holder.commit()

        call_together(lambda: upgrade_schema(url), release)
    with open_database(url) as db:
        assert read_revision(db) == read_head()


def test_migration_behind_another_that_does_not_end_says_so(postgres_empty_url):
    url = postgres_empty_url
    with connect_to(url) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(%s)", [ADVISORY_LOCK])
        with pytest.raises(MigrationBlockedError, match="another migration is still running"):
            upgrade_schema(url, lock_timeout=timedelta(seconds=0.2))


def test_migration_of_a_table_in_use_gives_up_and_is_undone(postgres_empty_url):
    url = postgres_empty_url
    command.upgrade(build_config(url), "0001")
    with open_database(url) as db, connect_to(url) as holder:
        holder.execute("LOCK TABLE jobs IN ACCESS SHARE MODE")
        before = read_schema(db)
        with pytest.raises(MigrationBlockedError, match=r"more than 100 ms .*pg_stat_activity"):
            upgrade_schema(url, lock_timeout=timedelta(0))
        assert read_schema(db) == before


def test_migration_tries_again_once_a_table_is_free(postgres_empty_url):
    url = postgres_empty_url
    command.upgrade(build_config(url), "0001")
    waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'jobs'::regclass"
    with connect_to(url) as holder, connect_to(url, autocommit=True) as watcher:
        holder.execute("LOCK TABLE jobs IN ACCESS SHARE MODE")

        def release():
            wait_until(lambda: watcher.execute(waiting).fetchone())
            wait_until(lambda: not watcher.execute(waiting).fetchone())
            holder.commit()

        call_together(lambda: upgrade_schema(url), release)
    with open_database(url) as db:
        assert read_revision(db) == read_head()


# on tables that others write to


WEAK_LOCKS = re.compile(r"CREATE (UNIQUE )?INDEX CONCURRENTLY|.* VALIDATE CONSTRAINT|.* NOT VALID$")


class Watch:
    """Notes what migrations do to a table in time that grows with its rows, and under its lock."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.new: set[str] = set()
        self._locked: set[str] = set()

    def note(self, _connection, _cursor, statement, *_) -> None:
        line = " ".join(statement.split())
        if made := re.match(r"CREATE TABLE (\w+)", line):
            self.new.add(made[1])
        if altered := re.match(r"ALTER TABLE (\w+)", line):
            self._locked.add(altered[1])
        if self._rewrites(line) or self._changes_rows(line):
            self.found.append(line)

    def _rewrites(self, line: str) -> bool:
        table = re.match(
            r"CREATE (?:UNIQUE )?INDEX .*? ON (\w+)|ALTER TABLE (\w+) .*ADD CONST", line
        )
        if table and not {*table.groups()} & self.new and not WEAK_LOCKS.match(line):
            return True
        return bool(re.match(r"ALTER TABLE .*(ALTER COLUMN|TYPE|random|now\(\))", line))

    def _changes_rows(self, line: str) -> bool:
        """Permitted are batches of rows that are given by their ids, while no table is locked."""
        change = re.match(r"UPDATE (?!alembic)\w+ SET .*? WHERE (id IN \(%)?", line)
        return change is not None and bool(self._locked or not change[1])

    def end(self, _connection) -> None:
        self._locked.clear()


def list_strong_statements(db, url):
    watch = Watch()
    listeners: dict[str, Callable[..., Any]] = {
        "before_cursor_execute": watch.note,
        "commit": watch.end,
        "rollback": watch.end,
    }
    for name, listener in listeners.items():
        event.listen(Engine, name, listener)
    try:
        for revision in list_revisions():
            watch.new.clear()
            command.upgrade(build_config(url), revision)
            if revision == RELEASED["0.1.0"]:
                fill_release_0_1_0(db)
    finally:
        for name, listener in listeners.items():
            event.remove(Engine, name, listener)
    return watch.found


def test_no_migration_reads_a_whole_table_while_it_holds_up_its_writers(postgres_empty_url):
    with open_database(postgres_empty_url) as db:
        assert list_strong_statements(db, postgres_empty_url) == []
        # There was something to change.
        (rows,) = read_rows(db, {"attempts": ["slot_until IS NULL"]}).values()
        assert rows == ["(False,)"] * 2


# what 0014 makes of the sentences of earlier releases, and of what is at fal


# (state, blocked_reason, outcome of its attempt): (blocked_by, whether it is in flight)
EARLIER = {
    ("submission_unknown", "held: nobody knows it", "dead"): ("hold", False),
    ("submission_unknown", "fal may or may not have it: no reply", "unknown"): (None, True),
    ("submitted", "unrecordable: a number out of range", "accepted"): ("unrecordable", True),
    ("submitted", "unanswered: 502", "accepted"): ("unanswered", True),
    ("submitted", None, "accepted"): (None, True),
    ("submitting", None, None): (None, True),
    ("completed", "the disk is full", "accepted"): ("retry", False),
    ("completed", None, "accepted"): (None, False),
    ("queued", "account: fal refuses the account", "postponed"): (None, False),
    ("failed", "held: long ago", "dead"): (None, False),
}


def test_admission_takes_over_what_earlier_releases_wrote_as_sentences(empty_url):
    """What they held up as shared trouble is admitted; a row's own reason is its own."""
    command.upgrade(build_config(empty_url), "0013")
    with open_database(empty_url) as db:
        found = MetaData()
        found.reflect(db.engine)
        as_stored = str if db.engine.dialect.name == "postgresql" else lambda one: one.hex
        with db.transaction() as connection:
            for number, (state, reason, outcome) in enumerate(EARLIER):
                rows = build_rows(as_stored, uuid7(), state, number)
                is_failed = state == "failed"
                rows["jobs"] |= {"blocked_reason": reason, "fal_request_id": str(number)}
                rows["jobs"] |= {"failed_at": NOW, "due_at": None} if is_failed else {}
                rows["attempts"] |= {"outcome": outcome}
                for name in ("jobs", "attempts"):
                    connection.execute(insert(found.tables[name]).values(rows[name]))
        upgrade_schema(empty_url)
        statement = text(
            "SELECT j.blocked_by, a.slot_until IS NOT NULL AS is_in_flight, j.blocked_reason "
            "FROM jobs j JOIN attempts a ON a.job_id = j.id ORDER BY a.token_hash"
        )
        with db.reading() as connection:
            made = [tuple(row) for row in connection.execute(statement)]
            slots = select(AttemptRow.slot_until).where(AttemptRow.slot_until.is_not(None))
            assert set(connection.scalars(slots)) == {NOW + timedelta(minutes=90)}
    expected = [(by, flies, reason) for (_, reason, _), (by, flies) in EARLIER.items()]
    assert made == expected


@pytest.mark.parametrize("revision", ["0002", "0006", "0014"])
def test_interrupted_migration_begins_again_and_makes_a_broken_index_anew(
    postgres, postgres_template, postgres_empty_url, revision
):
    """Killed before its step was noted, when all was there and one index not yet whole."""
    url = postgres_empty_url
    with open_database(postgres.url_of(postgres_template)) as db:
        whole = read_schema(db)
    script = ScriptDirectory(str(schema.SCRIPTS)).get_revision(revision)
    text_of = Path(script.path).read_text()
    # Those of a table that the step makes itself are there with it, or not at all.
    on_old_tables = re.split(r"def downgrade|op.create_table", text_of)[0]
    indices = re.findall(r'"((?:ix|uq)_\w+)"', on_old_tables)
    command.upgrade(build_config(url), str(script.down_revision))
    interrupt_at_last_index(url, revision, indices)
    with connect_to(url, autocommit=True) as connection:
        connection.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", [indices[0]]
        )
    upgrade_schema(url)
    with open_database(url) as db, connect_to(url) as connection:
        assert read_schema(db) == whole
        broken = "SELECT count(*) FROM pg_index WHERE NOT indisvalid"
        assert connection.execute(broken).fetchone() == (0,)


def interrupt_at_last_index(url, revision, indices):
    def end(_connection, _cursor, statement, *_):
        if f"CONCURRENTLY {indices[-1]}" in statement:
            raise InterruptedError

    event.listen(Engine, "after_cursor_execute", end)
    try:
        with pytest.raises(InterruptedError):
            command.upgrade(build_config(url), revision)
    finally:
        event.remove(Engine, "after_cursor_execute", end)
