"""Beside the path. verify: read the archive again, and compare it with the table.

The table is walked in slices by id, with no open transaction while objects are read. Each copy that
was read is marked at once, so that a run that resumes after an interruption skips it.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
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


OnRead = Callable[[int], None]


class Damage(StrEnum):
    """How a copy's `archive_error` begins."""

    MISSING = "missing"
    DIFFERENT = "different"


def is_elsewhere(copy: Copy, store: Store) -> bool:
    """Whether the copy is not in this archive, and cannot be read here."""
    return store.find_name(copy.uri) is None


def find_damage(copy: Copy, store: Store, on_read: OnRead | None = None) -> str | None:
    """Read the whole copy and say what is wrong with it; None if it is intact.

    `on_read` gets the size of each chunk. Raises StoreUnavailableError: then nothing is known.
    """
    damage = _find_damaged_video(copy, store, on_read)
    damage = damage or next(_find_missing_companions(copy, store), None)
    return damage or _find_other_sidecar(copy, store)


def _find_damaged_video(copy: Copy, store: Store, on_read: OnRead | None) -> str | None:
    name = store.find_name(copy.uri)
    if name is None:
        return f"{Damage.MISSING}: {copy.uri} is not in this archive"
    digest, size = hashlib.sha256(), 0
    try:
        for chunk in store.read(name):
            digest.update(chunk)
            size += len(chunk)
            if on_read is not None:
                on_read(len(chunk))
    except StoreObjectMissingError:
        return f"{Damage.MISSING}: there is no {name}"
    if size != copy.bytes:
        return f"{Damage.DIFFERENT}: it has {size} bytes, the row says {copy.bytes}"
    if digest.hexdigest() != copy.sha256:
        return (
            f"{Damage.DIFFERENT}: its SHA-256 is {digest.hexdigest()}, the row says {copy.sha256}"
        )
    return None


def _find_missing_companions(copy: Copy, store: Store) -> Iterator[str]:
    """The sidecar and the poster."""
    for kind, uri in (("sidecar", copy.sidecar_uri), ("poster", copy.poster_uri)):
        name = None if uri is None else store.find_name(uri)
        if uri is not None and (name is None or store.stat(name) is None):
            yield f"{Damage.MISSING}: there is no {kind} {uri}"


def _find_other_sidecar(copy: Copy, store: Store) -> str | None:
    """Whether the sidecar belongs to another video."""
    name = None if copy.sidecar_uri is None else store.find_name(copy.sidecar_uri)
    if name is None:
        return None
    try:
        sidecar = json.loads(b"".join(store.read(name)))
        sha256 = sidecar["video"]["sha256"]
    except StoreObjectMissingError:
        return f"{Damage.MISSING}: there is no sidecar {copy.sidecar_uri}"
    except (ValueError, RecursionError, LookupError, TypeError):
        return f"{Damage.DIFFERENT}: the sidecar {name} cannot be read"
    if sha256 != copy.sha256:
        return f"{Damage.DIFFERENT}: the sidecar {name} is of SHA-256 {sha256}, not {copy.sha256}"
    return None


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
        inventory.objects += len(batch)
        old = [one for one in batch if one.modified_at <= limit]
        inventory.young += len(batch) - len(old)
        for one in _find_unnamed(db, store, old):
            # Its row may be gone because the object is: pruning deletes objects first.
            if store.stat(one.name) is not None:
                inventory.orphans += 1
                inventory.orphan_bytes += one.bytes
                yield one


def _find_unnamed(db: Database, store: Store, listed: Sequence[ListedObject]) -> list[ListedObject]:
    ids_of = {one.name: [UUID(found) for found in _ID.findall(one.name)] for one in listed}
    wanted = {job_id for ids in ids_of.values() for job_id in ids}
    if not wanted:
        return list(listed)
    with db.reading() as connection:
        namings = {one.job_id: one for one in archives.list_namings(connection, wanted)}
    return [
        one
        for one in listed
        if not any(
            job_id in namings and names_object(namings[job_id], one.name, store)
            for job_id in ids_of[one.name]
        )
    ]


def names_object(naming: Naming, name: str, store: Store) -> bool:
    """Whether the object belongs to this job: by name, beside its video, or still on its way."""
    if naming.is_live or name.startswith(f"{QUARANTINE}/"):
        return True
    known = {found for uri in naming.uris if (found := store.find_name(uri)) is not None}
    return name in known or any(name in list_companions(one) for one in known)


def list_companions(name: str) -> tuple[str, ...]:
    """What may lie beside a video: sidecar, poster and contact sheet."""
    stem, _, _ = name.rpartition(".")
    return tuple(stem + ending for ending in COMPANIONS)


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
        mark = read_mark(store) or write_mark(store)
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


def write_mark(store: Store) -> str | None:
    """Of several at once one is first; the others take its mark. None if none can be written."""
    mark = secrets.token_hex(MARK_BYTES)
    try:
        is_first = store.create(ARCHIVE_MARK, mark.encode(), TEXT)
    except StoreUnavailableError:
        return None
    return mark if is_first else read_mark(store)


# So many are listed one by one for programs; the others are counted.
MOST_LISTED = 1000
BATCH = 100


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

    def add(self, damaged: DamagedCopy) -> None:
        self.damages += 1
        if len(self.damaged) < MOST_LISTED:
            self.damaged.append(damaged)


@dataclass(frozen=True, slots=True)
class Verifier:
    """Reads copies, and reports the bytes as they are read and damage as it is found."""

    db: Database
    store: Store
    on_read: Callable[[int], None] = lambda _: None
    on_damage: Callable[[DamagedCopy], None] = lambda _: None
    clock: Clock = read_clock

    def verify(self, scope: Scope, verification: Verification) -> None:
        """Every copy in the scope; damage found since its start is reported again.

        Raises StoreUnavailableError, after which it can go on with the same scope.
        """
        for part in walk_slices(self.db):
            with self.db.reading() as connection:
                copies = archives.list_copies(connection, scope, part)
            for copy in copies:
                self._take(copy, scope, verification)

    def verify_sample(self, scope: Scope, size: int, verification: Verification) -> None:
        """As `verify`, of so many copies, each as likely as any other."""
        ids = draw_sample(self.db, scope, size)
        for start in range(0, len(ids), BATCH):
            with self.db.reading() as connection:
                copies = archives.find_copies(connection, ids[start : start + BATCH])
            for copy in copies:
                self._take(copy, scope, verification)
        if scope.is_resumed:
            self._repeat_damage(scope, verification)

    def _repeat_damage(self, scope: Scope, verification: Verification) -> None:
        """Report what an interrupted run of the same scope has found."""
        reported = {one.job_id for one in verification.damaged}
        for part in walk_slices(self.db):
            with self.db.reading() as connection:
                damaged = archives.list_damaged(connection, scope, part)
            for copy in damaged:
                if copy.job_id not in reported:
                    self._report(copy, str(copy.error), verification)

    def _take(self, copy: Copy, scope: Scope, verification: Verification) -> None:
        if copy.verified_at is not None and copy.verified_at >= scope.not_since:
            if copy.error is not None:
                self._report(copy, copy.error, verification)
            return
        if is_elsewhere(copy, self.store):
            verification.elsewhere += 1
            return
        damage = find_damage(copy, self.store, self.on_read)
        with self.db.transaction() as connection:
            is_same = archives.record_check(connection, copy, damage, self.clock())
        if not is_same:
            # Replaced or pruned while it was read: what was read says nothing.
            verification.moved += 1
            return
        verification.checked += 1
        verification.bytes += copy.bytes
        if damage is not None:
            self._report(copy, damage, verification)

    def _report(self, copy: Copy, reason: str, verification: Verification) -> None:
        damaged = DamagedCopy(copy.job_id, copy.uri, reason)
        verification.add(damaged)
        self.on_damage(damaged)


def measure_copies(db: Database, scope: Scope) -> tuple[int, int]:
    """How many copies are to be read, and their bytes together."""
    count = total = 0
    for part in walk_slices(db):
        with db.reading() as connection:
            more, more_bytes = archives.measure_copies(connection, scope, part)
        count += more
        total += more_bytes
    return count, total


def draw_sample(db: Database, scope: Scope, size: int) -> list[UUID]:
    """So many ids of copies in the scope, each as likely as any other; sorted.

    Memory does not grow with the table.
    """
    sample: list[UUID] = []
    offered = 0
    for part in walk_slices(db):
        with db.reading() as connection:
            found = archives.list_copy_ids(connection, scope, part)
        for job_id in found:
            offered += 1
            offer(sample, job_id, offered=offered, size=size)
    return sorted(sample)


def is_fine(verification: Verification) -> bool:
    """Whether all that was to be read was read, and is as its rows say."""
    nothing_read = verification.checked == 0 and verification.elsewhere > 0
    return verification.damages == 0 and not nothing_read


def start_scope(tenant: str | None, not_since: datetime | None, clock: Clock = read_clock) -> Scope:
    """A run that begins now, or resumes the one that began at `not_since`."""
    return Scope(not_since or clock(), tenant, is_resumed=not_since is not None)
