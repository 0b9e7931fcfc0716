"""Beside the path. verify: read the archive again, and compare it with the table.

The table is walked in slices by id, with no open transaction while objects are read. Each copy that
was read is marked at once, so that a run that resumes after an interruption skips it.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import islice
from uuid import UUID

from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.ground.errors import ForeignArchiveError, StoreObjectMissingError, StoreUnavailableError
from worker.jobs import archives
from worker.jobs.archives import Copy, Naming, Scope
from worker.jobs.walks import offer, walk_slices
from worker.media.layout import ARCHIVE_MARK, POSTER, QUARANTINE, SHEET, SIDECAR, ListedObject
from worker.media.store import Store

# ------------------------------------------------------------------ damage


class Damage(StrEnum):
    """How a copy's `archive_error` begins."""

    MISSING = "missing"
    DIFFERENT = "different"


def is_elsewhere(copy: Copy, store: Store) -> bool:
    """Whether the copy is not in this archive, and cannot be read here."""
    return store.find_name(copy.uri) is None


def find_damage(
    copy: Copy, store: Store, on_read: Callable[[int], None] = lambda _: None
) -> str | None:
    """Read the whole copy and say what is wrong with it; None if it is intact.

    `on_read` gets the size of each chunk. Raises StoreUnavailableError: then nothing is known.
    """
    try:
        return _compare(copy, store, on_read)
    except StoreObjectMissingError as error:
        return f"{Damage.MISSING}: {error}"


def _compare(copy: Copy, store: Store, on_read: Callable[[int], None]) -> str | None:
    """How the video or its sidecar differs. Raises StoreObjectMissingError."""
    digest, size = hashlib.sha256(), 0
    for chunk in store.read(_find_name(store, copy.uri)):
        digest.update(chunk)
        size += len(chunk)
        on_read(len(chunk))
    if size != copy.bytes:
        return f"{Damage.DIFFERENT}: it has {size} bytes, the row says {copy.bytes}"
    if (found := digest.hexdigest()) != copy.sha256:
        return f"{Damage.DIFFERENT}: its SHA-256 is {found}, the row says {copy.sha256}"
    if copy.poster_uri and store.stat(_find_name(store, copy.poster_uri)) is None:
        return f"{Damage.MISSING}: the archive has no {copy.poster_uri}"
    if copy.sidecar_uri is None:
        return None
    sidecar = b"".join(store.read(_find_name(store, copy.sidecar_uri)))
    try:
        stated = json.loads(sidecar)["video"]["sha256"]
    except (ValueError, RecursionError, LookupError, TypeError):
        stated = "unreadable"
    if stated == copy.sha256:
        return None
    return f"{Damage.DIFFERENT}: the SHA-256 in the sidecar is {stated}, the row says {copy.sha256}"


def _find_name(store: Store, uri: str) -> str:
    name = store.find_name(uri)
    if name is None:
        raise StoreObjectMissingError(f"the archive has no {uri}")
    return name


# ------------------------------------------------------------------ orphans


# Far more than it takes from an object's first byte to the row that names it.
ORPHAN_AGE = timedelta(days=1)
LISTED_BATCH = 500
# What lies beside a video of the same stem.
COMPANIONS = (SIDECAR, POSTER, SHEET)
_ID = re.compile(r"(?=([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}))")


@dataclass
class Inventory:
    """How many objects were listed; the young ones may still get their row."""

    objects: int = 0
    young: int = 0
    orphans: int = 0
    orphan_bytes: int = 0


def find_orphans(
    inventory: Inventory,
    *,
    db: Database,
    store: Store,
    age: timedelta = ORPHAN_AGE,
    clock: Clock = read_clock,
) -> Iterator[ListedObject]:
    """Each object older than `age` that belongs to no row. Raises StoreUnavailableError."""
    limit = clock() - age
    listed = store.list()
    while batch := list(islice(listed, LISTED_BATCH)):
        old = [one for one in batch if one.modified_at <= limit]
        inventory.objects += len(batch)
        inventory.young += len(batch) - len(old)
        ids_of = {one.name: {UUID(found) for found in _ID.findall(one.name)} for one in old}
        with db.reading() as connection:
            found = archives.list_namings(connection, set().union(*ids_of.values()))
        namings = {naming.job_id: naming for naming in found}
        for one in old:
            owners = [namings[job_id] for job_id in ids_of[one.name] if job_id in namings]
            if any(names_object(naming, one.name, store) for naming in owners):
                continue
            # Its row may be gone because the object is: pruning deletes objects first.
            if store.stat(one.name) is not None:
                inventory.orphans += 1
                inventory.orphan_bytes += one.bytes
                yield one


def names_object(naming: Naming, name: str, store: Store) -> bool:
    """Whether the object belongs to this job: by name, beside its video, or still on its way."""
    if naming.is_live or name.startswith(f"{QUARANTINE}/"):
        return True
    known = {found for uri in naming.uris if (found := store.find_name(uri)) is not None}
    return name in known or any(name in list_companions(one) for one in known)


def list_companions(name: str) -> tuple[str, ...]:
    """What may lie beside a video: sidecar, poster and contact sheet; nothing without a name."""
    stem, _, _ = name.rpartition(".")
    return tuple(stem + ending for ending in COMPANIONS) if name else ()


# ------------------------------------------------------------------ mark


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
        mark = _ensure_mark(store)
        if mark is None:
            return
        with db.transaction() as connection:
            archives.keep_mark(connection, location, mark, clock())
    if reason := find_foreign_mark(db=db, store=store):
        raise ForeignArchiveError(reason)


def find_foreign_mark(*, db: Database, store: Store) -> str | None:
    """Why this is not the archive that the table means; None if it is, or has no mark yet."""
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


def _ensure_mark(store: Store) -> str | None:
    """The archive's mark, which is written if it has none; None if none can be written."""
    if found := read_mark(store):
        return found
    try:
        # Of several at once one is first; all read its mark.
        store.create(ARCHIVE_MARK, secrets.token_hex(MARK_BYTES).encode(), TEXT)
    except StoreUnavailableError:
        return None
    return read_mark(store)


# ------------------------------------------------------------------ verify


# So many are listed one by one for programs; the others are counted.
MOST_LISTED = 1000


@dataclass(frozen=True, slots=True)
class DamagedCopy:
    """An archived job whose copy is not what its row says."""

    job_id: UUID
    uri: str
    reason: str


@dataclass
class Verification:
    """What a run has read and found so far; it is also there after an interruption."""

    checked: int = 0
    bytes: int = 0
    elsewhere: int = 0
    moved: int = 0
    damages: int = 0
    damaged: list[DamagedCopy] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Verifier:
    """Reads copies, and reports the bytes as they are read and damage as it is found."""

    db: Database
    store: Store
    on_read: Callable[[int], None] = lambda _: None
    on_damage: Callable[[DamagedCopy], None] = lambda _: None
    clock: Clock = read_clock

    def verify(
        self, scope: Scope, verification: Verification, *, sample: int | None = None
    ) -> None:
        """Every copy in the scope, or so many of them, each as likely as any other.

        Damage found since the scope's time, by an interrupted run, is reported again. Raises
        StoreUnavailableError, after which it can go on with the same scope.
        """
        for copy in self._choose(scope, sample):
            damage = copy.error
            if not _was_read(copy, scope):
                if is_elsewhere(copy, self.store):
                    verification.elsewhere += 1
                    continue
                damage = find_damage(copy, self.store, self.on_read)
                with self.db.transaction() as connection:
                    is_same = archives.record_check(connection, copy, damage, self.clock())
                if not is_same:
                    # Replaced or pruned while it was read: what was read says nothing.
                    verification.moved += 1
                    continue
                verification.checked += 1
                verification.bytes += copy.bytes
            if damage is not None:
                damaged = DamagedCopy(copy.job_id, copy.uri, damage)
                verification.damages += 1
                if verification.damages <= MOST_LISTED:
                    verification.damaged.append(damaged)
                self.on_damage(damaged)

    def _choose(self, scope: Scope, sample: int | None) -> Iterator[Copy]:
        """A sample is read at the end. Memory does not grow with the table."""
        chosen: list[Copy] = []
        offered = 0
        for part in walk_slices(self.db):
            with self.db.reading() as connection:
                copies = archives.list_copies(connection, scope, part)
            for copy in copies:
                if sample is None or _was_read(copy, scope):
                    yield copy
                else:
                    offered += 1
                    offer(chosen, copy, offered=offered, size=sample)
        yield from chosen


def _was_read(copy: Copy, scope: Scope) -> bool:
    return copy.verified_at is not None and copy.verified_at >= scope.not_since


def measure_copies(db: Database, scope: Scope) -> tuple[int, int]:
    """How many copies are to be read, and their bytes together."""
    count = total = 0
    for part in walk_slices(db):
        with db.reading() as connection:
            more, more_bytes = archives.measure_copies(connection, scope, part)
        count += more
        total += more_bytes
    return count, total


def is_fine(verification: Verification) -> bool:
    """Whether all that was to be read was read, and is as its rows say."""
    nothing_read = verification.checked == 0 and verification.elsewhere > 0
    return verification.damages == 0 and not nothing_read


def start_scope(tenant: str | None, not_since: datetime | None, clock: Clock = read_clock) -> Scope:
    """A run that begins now, or resumes the one that began at `not_since`."""
    return Scope(not_since or clock(), tenant)
