"""Run migrations: on PostgreSQL a transaction each, with short locks; one migrator at a time."""

from datetime import timedelta

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, text

from worker.db import Database
from worker.errors import InvalidSettingsError, UnsuitableDatabaseError
from worker.jobs.models import Base
from worker.log import configure_logging
from worker.settings import load_settings

LOCK_TIMEOUT = "4s"
STATEMENT_TIMEOUT = "60s"
# Of waiting for another migrator, unless the caller says otherwise.
PATIENCE = timedelta(seconds=60)
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
    except (InvalidSettingsError, UnsuitableDatabaseError) as error:
        raise CommandError(str(error)) from None


def migrate_database(database_url: str) -> None:
    db = Database(database_url)
    try:
        with db.engine.connect() as connection:
            prepare_connection(connection)
            is_sqlite = connection.dialect.name == "sqlite"
            context.configure(
                connection=connection,
                target_metadata=Base.metadata,
                # SQLite has no advisory lock: one transaction, which the next migrator waits for,
                # holds what is read of the revision as well as what is changed.
                transaction_per_migration=not is_sqlite,
                render_as_batch=is_sqlite,
                compare_server_default=True,
            )
            with context.begin_transaction():
                context.run_migrations()
    finally:
        db.close()


def prepare_connection(connection: Connection) -> None:
    """On PostgreSQL a migration gives up rather than queueing everybody behind its lock.

    On SQLite a changed table is copied and the old one dropped, which must not take the rows of
    others along that refer to it.
    """
    if connection.dialect.name != "postgresql":
        connection.connection.cursor().execute("PRAGMA foreign_keys=OFF")
        return
    patience: timedelta = context.config.attributes.get("patience", PATIENCE)
    connection.execute(text(f"SET statement_timeout = {int(patience.total_seconds() * 1000)}"))
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
    # Set last: another migrator is waited for longer than a table.
    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
    connection.execute(text(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'"))
    connection.commit()


if context.is_offline_mode():
    raise SystemExit("migrations need the database; write no SQL scripts with --sql")
run_migrations()
