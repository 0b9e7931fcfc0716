"""The migrations: up, down, up; equal to the models; safe to run by anybody at any time."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, MetaData, insert, inspect, text
from uuid_utils.compat import uuid7

from tests.harness.ddl import (
    check_by_alembic,
    compare_schemas,
    create_by_migrations,
    create_by_models,
    find_drift,
    read_schema,
)
from tests.harness.jobs import NOW, insert_job, make_job
from tests.harness.waiting import wait_until
from worker import schema
from worker.db import Database
from worker.errors import MigrationBlockedError, OutdatedSchemaError
from worker.jobs import attempts, deliveries
from worker.jobs import table as jobs_sql
from worker.jobs.models import Base
from worker.jobs.states import JobState
from worker.jobs.values import Outcome, Settlement
from worker.schema import (
    build_config,
    check_schema,
    list_revisions,
    read_head,
    read_revision,
    upgrade_schema,
)

ROOT = Path(__file__).resolve().parents[2]
ADVISORY_LOCK = 0x6578_7476
TABLES = {"jobs", "attempts", "deliveries", "events", "gates", "uploads", "tallies", "workers"}
TABLES |= {"restores", "stray_deliveries"}


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
        command.downgrade(build_config(empty_url), "base")
        assert (read_schema(db), read_revision(db)) == ({}, None)
        upgrade_schema(empty_url)
        assert (read_schema(db), read_revision(db)) == (first, read_head())


def test_downgrade_with_rows_in_every_table_succeeds(db, database_url):
    make_job(db, JobState.ARCHIVED)
    command.downgrade(build_config(database_url), "base")
    assert list_tables(db) == set()


def test_upgrade_schema_again_keeps_the_rows(db, database_url):
    job = insert_job(db)
    before = read_schema(db)
    assert upgrade_schema(database_url) == read_head()
    assert read_schema(db) == before
    with db.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar_one() == 1
    assert job.state is JobState.QUEUED


# rows that release 0.1.0 has written


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


def test_migration_from_release_0_1_0_and_back_keeps_every_row(empty_url):
    """SQLite alters a table by a copy; dropping the old one must not take what refers to it."""
    command.upgrade(build_config(empty_url), "0001")
    with open_database(empty_url) as db:
        fill_release_0_1_0(db)
        columns = list_columns(db)
        before = read_rows(db, columns)
        assert {name: len(rows) for name, rows in before.items()} == dict.fromkeys(columns, 2)
        upgrade_schema(empty_url)
        assert read_rows(db, columns) == before
        with db.reading() as connection:
            verdicts = connection.execute(text("SELECT verdict FROM deliveries")).scalars()
            assert set(verdicts) == {"recorded"}
            if db.engine.dialect.name == "sqlite":
                assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
        command.downgrade(build_config(empty_url), "0001")
        assert read_rows(db, columns) == before


def test_rows_of_release_0_1_0_are_read_as_they_are_after_the_migration(empty_url):
    command.upgrade(build_config(empty_url), "0001")
    with open_database(empty_url) as db:
        job_id, _ = fill_release_0_1_0(db)
        upgrade_schema(empty_url)
        with db.reading() as connection:
            job = jobs_sql.get_job(connection, job_id)
            (attempt,) = attempts.list_attempts(connection, job.id)
            (delivery,) = deliveries.list_deliveries(connection, job.id)
        with db.transaction() as connection:
            connection.execute(text("DELETE FROM jobs"))
        left = read_rows(db, {"attempts": ["id"], "deliveries": ["id"], "events": ["id"]})
    assert (job.state, job.input, job.due_at) == (JobState.SUBMITTED, {"seed": 7}, job.enqueued_at)
    assert (attempt.outcome, attempt.ending, attempt.completed_at) == ("unknown", None, None)
    assert (delivery.body, delivery.times_received) == (b"{}", 3)
    assert left == {"attempts": [], "deliveries": [], "events": []}, "deleting a job takes its rows"


def test_code_of_release_0_1_0_can_write_to_the_new_schema(empty_url):
    """Old workers go on while a deployment is under way."""
    upgrade_schema(empty_url)
    with open_database(empty_url) as db:
        fill_release_0_1_0(db)
        with db.reading() as connection:
            assert connection.execute(text("SELECT count(*) FROM deliveries")).scalar_one() == 2


def test_downgrade_of_a_dead_attempt_makes_it_unknown_again(empty_url):
    """0001 has no such outcome, and what is unknown is not sent again."""
    upgrade_schema(empty_url)
    with open_database(empty_url) as db:
        job = make_job(db, JobState.SUBMISSION_UNKNOWN)
        with db.transaction() as connection:
            (attempt,) = attempts.list_attempts(connection, job.id)
            dead = Settlement(Outcome.DEAD, attempt.started_at, error_message="nobody knows it")
            attempts.settle_attempt(connection, attempt.id, dead)
        command.downgrade(build_config(empty_url), "0001")
        rows = read_rows(db, {"attempts": ["outcome", "error_message"], "deliveries": ["id"]})
    assert rows == {"attempts": ["('nobody knows it', 'unknown')"], "deliveries": []}


def test_revisions_by_their_files_names_are_those_that_alembic_finds():
    scripts = ScriptDirectory(str(schema.SCRIPTS))
    assert scripts.get_heads() == [read_head()]
    found = [script.revision for script in scripts.walk_revisions()]
    assert list_revisions() == found[::-1]


# equal to the models


def test_models_equal_migrations(make_empty_url):
    assert find_drift(make_empty_url(), make_empty_url()) == []


def test_read_schema_holds_every_table_constraint_and_index(empty_url):
    found = " ".join(f"{name} {line}" for name, line in create_by_migrations(empty_url).items())
    assert "ck_jobs_due_at" in found
    assert "ix_jobs_due_at" in found
    assert "uq_jobs_tenant_idempotency_key" in found
    assert "submission_unknown" in found
    assert "alembic" not in found


@pytest.mark.parametrize(
    "statements",
    [
        ["DROP INDEX ix_jobs_due_at", "CREATE INDEX ix_jobs_due_at ON jobs (due_at)"],
        ["DROP INDEX ix_events_job_id"],
        ["ALTER TABLE attempts ADD COLUMN extra TEXT"],
        ["CREATE TABLE extra (id INTEGER)"],
    ],
)
def test_compare_schemas_sees_a_change_by_hand(db, database_url, make_url_of_same_kind, statements):
    models = create_by_models(make_url_of_same_kind())
    assert compare_schemas(models, read_schema(db)) == []
    with db.transaction() as connection:
        for statement in statements:
            connection.execute(text(statement))
    assert len(compare_schemas(models, read_schema(db))) == 1


@pytest.fixture
def make_url_of_same_kind(request, database_url, tmp_path):
    """As `make_empty_url`, of the kind that `db` is of."""
    if database_url.startswith("sqlite"):
        yield lambda: f"sqlite:///{tmp_path / 'models.db'}"
        return
    postgres = request.getfixturevalue("postgres")
    name = postgres.create_database()
    yield lambda: postgres.url_of(name)
    postgres.drop_database(name)


def test_compare_schemas_sees_a_changed_check(postgres_url):
    with open_database(postgres_url) as db:
        before = read_schema(db)
        with db.transaction() as connection:
            connection.execute(text("ALTER TABLE jobs DROP CONSTRAINT ck_jobs_fence"))
            check = "ADD CONSTRAINT ck_jobs_fence CHECK (fence >= 1)"
            connection.execute(text(f"ALTER TABLE jobs {check}"))
        (difference,) = compare_schemas(before, read_schema(db))
    assert "ck_jobs_fence" in difference


def test_check_by_alembic_sees_a_missing_column(db, database_url):
    assert check_by_alembic(database_url) == []
    with db.transaction() as connection:
        connection.execute(text("ALTER TABLE attempts DROP COLUMN http_status"))
    (difference,) = check_by_alembic(database_url)
    assert "http_status" in difference


# names


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
    checks = [
        constraint
        for table in Base.metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    ]
    assert len([name for _, name in names if str(name).startswith("ck_")]) == len(checks)


def test_every_foreign_key_is_indexed(db):
    found = inspect(db.engine)
    for table in TABLES - {"jobs", "gates"}:
        starts = {one["column_names"][0] for one in found.get_indexes(table)}
        starts |= {one["column_names"][0] for one in found.get_unique_constraints(table)}
        keys = {one["constrained_columns"][0] for one in found.get_foreign_keys(table)}
        assert keys <= starts


# what a process is told at its start


def test_check_schema_of_an_empty_database_says_to_migrate(empty_url):
    with open_database(empty_url) as db, pytest.raises(OutdatedSchemaError, match="not exist yet"):
        check_schema(db)


def test_check_schema_at_the_head_is_content(db):
    check_schema(db)
    assert read_revision(db) == read_head()


def test_check_schema_of_a_newer_database_is_content(db):
    """Old code runs on the new schema while a deployment is under way."""
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


def test_alembic_upgrade_head_in_the_project_root_migrates(empty_url):
    code, output = wait_for(start_alembic(empty_url, "upgrade", "head"))
    assert code == 0, output
    with open_database(empty_url) as db:
        check_schema(db)
        assert list_tables(db) == TABLES


def test_alembic_without_a_database_to_write_sql_for_is_refused(sqlite_url):
    code, output = wait_for(start_alembic(sqlite_url, "upgrade", "head", "--sql"))
    assert code != 0
    assert "migrations need the database" in output


def test_alembic_upgrade_by_two_at_once_migrates_once(make_empty_url):
    url = make_empty_url()
    processes = [start_alembic(url, "upgrade", "head") for _ in range(2)]
    ended = [wait_for(process) for process in processes]
    assert [code for code, _ in ended] == [0, 0], ended
    with open_database(url) as db:
        assert read_revision(db) == read_head()
        with db.reading() as connection:
            rows = connection.execute(text("SELECT count(*) FROM alembic_version")).scalar_one()
    assert rows == 1


def test_alembic_upgrade_waits_for_another_migrator_longer_than_for_a_table(postgres):
    """A migration may take minutes; whoever comes meanwhile waits for it, instead of failing."""
    name = postgres.create_database()
    url = postgres.url_of(name)
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [ADVISORY_LOCK])
        process = start_alembic(url, "upgrade", "head")
        waiting = (
            "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory' "
            "AND now() - query_start > interval '4500 milliseconds'"
        )
        wait_until(lambda: process.poll() is not None or holder.execute(waiting).fetchone())
        holder.execute("SELECT pg_advisory_unlock(%s)", [ADVISORY_LOCK])
        code, output = wait_for(process)
    postgres.drop_database(name)
    assert code == 0, output


# locks that are not got


def test_migration_behind_another_that_does_not_end_says_so(postgres):
    name = postgres.create_database()
    url = postgres.url_of(name)
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [ADVISORY_LOCK])
        with pytest.raises(MigrationBlockedError, match="another migration is still running"):
            upgrade_schema(url, patience=timedelta(seconds=0.5))
    assert upgrade_schema(url) == read_head()
    postgres.drop_database(name)


def test_migration_of_a_table_in_use_gives_up_and_is_undone(postgres):
    """Behind its lock everybody else would queue up."""
    name = postgres.create_database()
    url = postgres.url_of(name)
    command.upgrade(build_config(url), "0001")
    with open_database(url) as db, psycopg.connect(url.replace("+psycopg", "")) as holder:
        holder.execute("LOCK TABLE jobs IN ACCESS SHARE MODE")
        before = read_schema(db)
        with pytest.raises(MigrationBlockedError, match="pg_stat_activity"):
            upgrade_schema(url)
        assert read_schema(db) == before
        holder.rollback()
        assert upgrade_schema(url) == read_head()
    postgres.drop_database(name)
