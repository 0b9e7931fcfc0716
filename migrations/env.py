"""Run migrations: on PostgreSQL a transaction each, with short locks; one migrator at a time."""

import time
from collections.abc import Callable
from datetime import timedelta

from alembic import context
from alembic.util import CommandError
from psycopg.errors import LockNotAvailable, QueryCanceled
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import OperationalError

from worker.ground.db import PROGRAM, Database, describe_database_error
from worker.ground.errors import (
    InvalidSettingsError,
    MigrationBlockedError,
    UnsuitableDatabaseError,
)
from worker.ground.log import configure_logging
from worker.ground.settings import load_settings
from worker.jobs.models import JobRow

# All others queue up behind a lock that is waited for. So a migration waits for so long only, rolls
# its step back, pauses for the others, and tries again.
STEP_LOCK_TIMEOUT = timedelta(milliseconds=100)
LOCK_PAUSE = timedelta(milliseconds=500)
STATEMENT_TIMEOUT = timedelta(seconds=60)
# For another migrator, and for a table in use, unless the caller gives another one.
LOCK_TIMEOUT = timedelta(seconds=60)
MIGRATOR_PAUSE = timedelta(milliseconds=200)
ADVISORY_LOCK = 0x6578_7476


def run_migrations() -> None:
    database_url = context.config.attributes.get("database_url")
    if database_url is not None:
        migrate_database(database_url)
        return
    try:
        settings = load_settings()
        configure_logging(settings.log_level, settings.log_format)
        migrate_database(settings.database_url)
    except (InvalidSettingsError, UnsuitableDatabaseError, MigrationBlockedError) as error:
        raise CommandError(str(error)) from None


def migrate_database(database_url: str) -> None:
    db = Database(database_url, program=f"{PROGRAM} migrate")
    try:
        if db.is_postgres:
            migrate_postgres(db, context.config.attributes.get("lock_timeout", LOCK_TIMEOUT))
        else:
            migrate_sqlite(db)
    finally:
        db.close()


def migrate_sqlite(db: Database) -> None:
    """In one transaction, which the next migrator waits for.

    It holds what is read of the revision as well as what is changed. A changed table is copied and
    the old one dropped, which must not take the rows of others along that refer to it.
    """
    with db.engine.connect() as connection:
        connection.connection.cursor().execute("PRAGMA foreign_keys=OFF")
        run_steps(connection, transaction_per_migration=False, render_as_batch=True)


def migrate_postgres(db: Database, lock_timeout: timedelta) -> None:
    """Hold the migrators' lock in one connection and migrate in another.

    The lock is a transaction's, so that PgBouncer may give each transaction another session. The
    transaction stands idle, without a snapshot that CREATE INDEX CONCURRENTLY would wait for.
    """
    event.listen(db.engine, "begin", set_timeouts)
    with db.engine.connect() as guard:
        # As simple queries: a prepared one leaves its portal open, and with it its snapshot.
        guard.connection.driver_connection.prepare_threshold = None  # type: ignore[union-attr]
        wait_for_other_migrators(guard, lock_timeout)
        gives_up_at = time.monotonic() + lock_timeout.total_seconds()
        while not try_to_migrate(db, guard, gives_up_at):
            time.sleep(LOCK_PAUSE.total_seconds())


def wait_for_other_migrators(guard: Connection, lock_timeout: timedelta) -> None:
    """Ask again and again: a statement that waits has a snapshot, and would stop the other one."""
    gives_up_at = time.monotonic() + lock_timeout.total_seconds()
    lock = text("SELECT pg_try_advisory_xact_lock(:key)")
    while not guard.execute(lock, {"key": ADVISORY_LOCK}).scalar_one():
        guard.rollback()
        if time.monotonic() > gives_up_at:
            raise MigrationBlockedError(
                "another migration is still running: wait for its end, then run it again"
            )
        time.sleep(MIGRATOR_PAUSE.total_seconds())
    guard.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))


def try_to_migrate(db: Database, guard: Connection, gives_up_at: float) -> bool:
    """Whether all steps are done; False if a table was in use and there is time to try again."""

    def check_guard(**_: object) -> None:
        """Fail before a step is committed without the lock."""
        guard.execute(text("SELECT 1"))

    try:
        with db.engine.connect() as connection:
            run_steps(connection, transaction_per_migration=True, on_version_apply=check_guard)
    except OperationalError as error:
        if not isinstance(error.orig, (LockNotAvailable, QueryCanceled)):
            raise
        if isinstance(error.orig, LockNotAvailable) and time.monotonic() < gives_up_at:
            return False
        raise MigrationBlockedError(
            f"{describe_database_error(error)}; the step was undone, and nobody waited behind it "
            f"for more than {STEP_LOCK_TIMEOUT / timedelta(milliseconds=1):.0f} ms at a time: end "
            "what holds the table (pg_stat_activity shows it), then run it again"
        ) from None
    return True


def set_timeouts(connection: Connection) -> None:
    """For one transaction; what runs outside of one holds up nobody and may take hours."""
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        return
    for name, value in (
        ("lock_timeout", STEP_LOCK_TIMEOUT),
        ("statement_timeout", STATEMENT_TIMEOUT),
    ):
        milliseconds = round(value / timedelta(milliseconds=1))
        connection.exec_driver_sql(f"SET LOCAL {name} = {milliseconds}")


def is_compared(_object: object, _name: str | None, kind: str, *_: object) -> bool:
    """SQLite does not tell whether an index descends, so indices are not compared there."""
    return kind != "index" or context.get_context().dialect.name != "sqlite"


def run_steps(
    connection: Connection,
    *,
    transaction_per_migration: bool,
    render_as_batch: bool = False,
    on_version_apply: Callable[..., None] | None = None,
) -> None:
    context.configure(
        connection=connection,
        target_metadata=JobRow.metadata,
        transaction_per_migration=transaction_per_migration,
        # Of SQLite Alembic does not know, and commits after each step.
        transactional_ddl=True,
        render_as_batch=render_as_batch,
        on_version_apply=on_version_apply,
        compare_server_default=True,
        include_object=is_compared,
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("migrations need the database; write no SQL scripts with --sql")
run_migrations()
