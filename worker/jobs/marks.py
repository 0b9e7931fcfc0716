"""SQL on `archive_marks`: which archive is meant by a location; by the rules of `table.py`."""

from datetime import datetime

from sqlalchemy import Connection, select

from worker.jobs.models import ArchiveMarkRow
from worker.jobs.rows import insert_for


def find_mark(connection: Connection, location: str) -> str | None:
    statement = select(ArchiveMarkRow.mark).where(ArchiveMarkRow.location == location)
    return connection.execute(statement).scalar_one_or_none()


def keep_mark(connection: Connection, location: str, mark: str, now: datetime) -> None:
    """Note it, unless the location has one already."""
    statement = insert_for(connection, ArchiveMarkRow).values(
        location=location, mark=mark, noted_at=now
    )
    connection.execute(statement.on_conflict_do_nothing(index_elements=["location"]))
