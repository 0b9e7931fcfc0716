"""Beside the path. mark: whether this is the archive that the job table means.

Two hosts with `ARCHIVE_URL=file:/archive` have the same URI for two directories. So an object in
the archive holds an id, which a row has, too; the first who asks writes both.
"""

import secrets

from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.ground.errors import ForeignArchiveError, StoreObjectMissingError, StoreUnavailableError
from worker.jobs import archives
from worker.media.layout import ARCHIVE_MARK
from worker.media.store import Store

MARK_BYTES = 16
TEXT = "text/plain"


def require_own_archive(*, db: Database, store: Store, clock: Clock = read_clock) -> None:
    """Raise ForeignArchiveError for the archive of another host or job table.

    Marks an archive that is new to the table, if it can be written. Raises StoreUnavailableError.
    """
    location = store.find_uri(ARCHIVE_MARK)
    with db.reading() as connection:
        known = archives.find_mark(connection, location)
    if known is None:
        mark = read_mark(store) or write_mark(store)
        if mark is None:
            return
        with db.transaction() as connection:
            archives.keep_mark(connection, location, mark, clock())
    if reason := find_foreign_mark(db=db, store=store):
        raise ForeignArchiveError(reason)


def find_foreign_mark(*, db: Database, store: Store) -> str | None:
    """Why this is not the archive that the table means; None if it is, or nobody has asked yet."""
    location = store.find_uri(ARCHIVE_MARK)
    with db.reading() as connection:
        known = archives.find_mark(connection, location)
    if known is None:
        return None
    found = read_mark(store)
    if found == known:
        return None
    has = "has no mark" if found is None else f"has the mark {found}"
    return (
        f"{location} {has}, the job table knows {known}: this is another host's directory, or its "
        "volume is not mounted; all hosts need one archive. If it is the right one, write "
        f"{known} into that file"
    )


def read_mark(store: Store) -> str | None:
    try:
        return b"".join(store.read(ARCHIVE_MARK)).decode("ascii", "replace").strip()
    except StoreObjectMissingError:
        return None


def write_mark(store: Store) -> str | None:
    """Of several at once one is first; the others take its mark. None if none can be written."""
    mark = secrets.token_hex(MARK_BYTES)
    try:
        is_first = store.create(ARCHIVE_MARK, mark.encode(), TEXT)
    except StoreUnavailableError:
        return None
    return mark if is_first else read_mark(store)
