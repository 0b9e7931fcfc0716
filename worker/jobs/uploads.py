"""SQL on `uploads`: files that are at fal already, by the same rules as `table.py`."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from worker.jobs.models import UploadRow
from worker.jobs.rows import fetch_one, insert_for, name_values, table_of


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A file at fal, found by its content; `sha256` is hex."""

    sha256: str
    bytes: int
    content_type: str
    url: str
    uploaded_at: datetime


def find_upload(connection: Connection, sha256: str) -> Uploaded | None:
    statement = select(table_of(UploadRow)).where(UploadRow.sha256 == sha256)
    return fetch_one(connection, Uploaded, statement)


def record_upload(
    connection: Connection, new: Uploaded, fresh_since: datetime, *, lost_url: str | None = None
) -> Uploaded:
    """Keep it, unless another upload was faster: the same bytes have one URL while it is fresh.

    `lost_url` is where fal has them no more, however fresh that is.
    """
    values = name_values(new)
    connection.execute(
        insert_for(connection, UploadRow)
        .values(values)
        .on_conflict_do_update(
            index_elements=["sha256"],
            set_=values,
            where=(UploadRow.uploaded_at < fresh_since) | (UploadRow.url == lost_url),
        )
    )
    kept = find_upload(connection, new.sha256)
    assert kept is not None  # noqa: S101 - just written
    return kept
