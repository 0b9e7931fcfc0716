"""The schema of the job table: bring it up to date, and say whether it is.

Each process checks it at its start, and few migrate: Alembic, a tenth of the start time, is loaded
by these alone.
"""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg.errors import UndefinedTable
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError

import migrations
from worker.ground.db import Database, describe_database_error
from worker.ground.errors import OutdatedSchemaError

if TYPE_CHECKING:
    from alembic.config import Config

SCRIPTS = Path(migrations.__file__).parent
LOCK_TIMEOUT = timedelta(seconds=60)


def build_config(database_url: str) -> "Config":
    """Alembic's configuration for one database; the same scripts as `alembic upgrade head` runs."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["database_url"] = database_url
    return config


def upgrade_schema(database_url: str, *, lock_timeout: timedelta = LOCK_TIMEOUT) -> str:
    """Run the missing migrations; returns the revision the schema then has.

    Waits up to `lock_timeout` for another migrator, and for a table in use. Raises
    OutdatedSchemaError for a table that is newer than the code, MigrationBlockedError if it did not
    get a lock.
    """
    from alembic import command
    from alembic.util import CommandError

    config = build_config(database_url)
    config.attributes["lock_timeout"] = lock_timeout
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise OutdatedSchemaError(f"{error}: a newer release has migrated the job table") from None
    return read_head()


def list_revisions() -> list[str]:
    """Those that this code knows, the oldest first; each file's name begins with its own."""
    files = (SCRIPTS / "versions").glob("[0-9]*.py")
    return sorted(path.stem.partition("_")[0] for path in files)


def read_head() -> str:
    """The newest revision that this code knows."""
    return list_revisions()[-1]


def read_revision(db: Database) -> str | None:
    """The revision that the database has; None for an empty one."""
    with db.reading() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        version = text("SELECT version_num FROM alembic_version")
        return connection.execute(version).scalar_one_or_none()


def check_schema(db: Database) -> None:
    """Raise OutdatedSchemaError unless the database is at a revision this code can work with."""
    revision, head = read_revision(db), read_head()
    if revision is None:
        raise OutdatedSchemaError("the job table does not exist yet: run `extend-video migrate`")
    # A revision unknown to this code is newer; migrations are written for old code on them.
    if revision != head and revision in list_revisions():
        raise OutdatedSchemaError(
            f"the job table is at {revision}, not at {head}: run `extend-video migrate`"
        )


def explain_database_error(error: DBAPIError) -> str:
    """A line for people: what is wrong, and what to run where the table is missing."""
    reason = describe_database_error(error)
    if "no such table" in reason or isinstance(error.orig, UndefinedTable):
        return "outdated_schema: the job table does not exist yet: run `extend-video migrate`"
    return f"database_unavailable: {reason}"
