"""Ended jobs with their objects in a real archive, made fast and in numbers."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

from sqlalchemy import insert, update
from uuid_utils.compat import uuid7

from tests.harness.jobs import ENDPOINT, NOW, build_result, read_job
from worker.ground.db import Database
from worker.jobs.models import EventRow, JobRow
from worker.jobs.states import JobState
from worker.jobs.values import Job
from worker.media.layout import SIDECAR, ListedObject, StoredObject
from worker.media.spool import Spool, SpoolFile
from worker.media.store import Store

VIDEO = b"\0\0\0\x20ftypisom" + bytes(range(256)) * 40
ENDS = {
    JobState.ARCHIVED: ("archived_at", "archive_recorded", JobState.ARCHIVING),
    JobState.FAILED: ("failed_at", "submission_rejected", JobState.SUBMITTING),
    JobState.CANCELLED: ("cancelled_at", "job_cancelled", JobState.QUEUED),
}


def insert_ended(
    db: Database,
    state: JobState = JobState.ARCHIVED,
    *,
    ended_at: datetime = NOW,
    **columns: Any,
) -> UUID:
    """A row at its end, with its first and its last event."""
    job_id: UUID = columns.pop("id", None) or uuid7()
    insert_all_ended(db, [{"id": job_id, **columns}], state, ended_at)
    return job_id


def insert_all_ended(
    db: Database, jobs: Sequence[Mapping[str, Any]], state: JobState, ended_at: datetime
) -> None:
    """As `insert_ended`, in one transaction; each of the jobs gives its id."""
    column, reason, source = ENDS[state]
    usual = {
        "state": state,
        "tenant": "default",
        "labels": {},
        "endpoint": ENDPOINT,
        "input": {"seed": 7},
        "enqueued_at": ended_at,
        column: ended_at,
        **({"result": build_result()} if state is JobState.ARCHIVED else {}),
    }
    moves = [(None, JobState.QUEUED, "enqueued"), (source, state, reason)]
    events = [
        {
            "job_id": job["id"],
            "at": ended_at,
            "fence": 0,
            "from_state": before,
            "to_state": after,
            "reason": why,
        }
        for job in jobs
        for before, after, why in moves
    ]
    with db.transaction() as connection:
        connection.execute(insert(JobRow), [{**usual, **job} for job in jobs])
        connection.execute(insert(EventRow), events)


def archive_ended(
    db: Database, store: Store, body: bytes = VIDEO, *, ended_at: datetime = NOW, **columns: Any
) -> Job:
    """An archived job with video, poster, contact sheet and sidecar."""
    job_id = columns.pop("id", None) or uuid7()
    stem = f"{ended_at:%Y/%m/%d}/{job_id}"
    stored = store.put(f"{stem}.mp4", body, "video/mp4")
    poster = store.put(f"{stem}.jpg", b"a poster", "image/jpeg")
    store.put(f"{stem}.sheet.jpg", b"a sheet", "image/jpeg")
    sidecar = store.put(f"{stem}.json", describe_video(stored.sha256), "application/json")
    described: dict[str, Any] = {
        "archive_uri": stored.uri,
        "archive_sha256": stored.sha256,
        "archive_bytes": stored.bytes,
        "archive_poster_uri": poster.uri,
        "archive_sidecar_uri": sidecar.uri,
    }
    insert_ended(db, ended_at=ended_at, id=job_id, **(described | columns))
    return read_job(db, job_id)


def describe_video(sha256: str) -> bytes:
    """Of a sidecar what `verify` reads."""
    return json.dumps({"video": {"sha256": sha256}}).encode()


def fail_with_quarantine(db: Database, store: Store, **columns: Any) -> Job:
    """A failed job whose bytes were kept."""
    job_id = uuid7()
    kept = store.put(f"quarantine/{job_id}.mp4", VIDEO, "video/mp4")
    store.put(f"quarantine/{job_id}.json", b"{}", "application/json")
    insert_ended(db, JobState.FAILED, id=job_id, quarantine_uri=kept.uri, **columns)
    return read_job(db, job_id)


def set_columns(db: Database, job_id: UUID, **columns: Any) -> None:
    with db.transaction() as connection:
        connection.execute(update(JobRow).where(JobRow.id == job_id).values(**columns))


def name_of(store: Store, uri: str | None) -> str:
    name = store.find_name(str(uri))
    assert name is not None
    return name


def list_names(store: Store) -> list[str]:
    return sorted(one.name for one in store.list())


def hash_object(store: Store, name: str) -> str:
    return sha256(b"".join(store.read(name))).hexdigest()


@dataclass
class WatchedStore:
    """A store that notes which videos are read and what is deleted, and lets a test act before."""

    inner: Store
    reads: list[str] = field(default_factory=list)
    deletes: list[str] = field(default_factory=list)
    before_read: Callable[[str], object] = lambda _: None
    before_delete: Callable[[str], object] = lambda _: None

    @property
    def spool(self) -> Spool:
        return self.inner.spool

    def publish(self, file: SpoolFile, name: str, content_type: str) -> StoredObject:
        return self.inner.publish(file, name, content_type)

    def create(self, name: str, body: bytes, content_type: str) -> bool:
        return self.inner.create(name, body, content_type)

    def put(self, name: str, body: bytes, content_type: str) -> StoredObject:
        return self.inner.put(name, body, content_type)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        if not name.endswith(SIDECAR):
            self.reads.append(name)
        self.before_read(name)
        return self.inner.read(name, start, stop)

    def stat(self, name: str) -> ListedObject | None:
        return self.inner.stat(name)

    def find_uri(self, name: str) -> str:
        return self.inner.find_uri(name)

    def list(self, prefix: str = "") -> Iterator[ListedObject]:
        return self.inner.list(prefix)

    def delete(self, name: str) -> bool:
        self.deletes.append(name)
        self.before_delete(name)
        return self.inner.delete(name)

    def find_name(self, uri: str) -> str | None:
        return self.inner.find_name(uri)
