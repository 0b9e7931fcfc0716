"""Beside the path. verify: read the archive again, and hold it against the table.

The table is walked in slices by id, outside of any transaction while objects are read. Each copy
that was read is marked at once, so that whoever goes on after an interruption passes over it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.jobs import archives
from worker.jobs.archives import Copy, Scope
from worker.jobs.walks import offer, walk_slices
from worker.media.store import Store
from worker.ops.damage import find_damage, is_elsewhere

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
    """Reads copies, and tells of them: bytes as they come, damage as it is found."""

    db: Database
    store: Store
    on_read: Callable[[int], None] = lambda _: None
    on_damage: Callable[[DamagedCopy], None] = lambda _: None
    clock: Clock = read_clock

    def verify(self, scope: Scope, verification: Verification) -> None:
        """Every copy in the scope; what was found damaged since its time is told of again.

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
        """Tell of what an interrupted run of the same scope has found."""
        told = {one.job_id for one in verification.damaged}
        for part in walk_slices(self.db):
            with self.db.reading() as connection:
                damaged = archives.list_damaged(connection, scope, part)
            for copy in damaged:
                if copy.job_id not in told:
                    self._tell(copy, str(copy.error), verification)

    def _take(self, copy: Copy, scope: Scope, verification: Verification) -> None:
        if copy.verified_at is not None and copy.verified_at >= scope.not_since:
            if copy.error is not None:
                self._tell(copy, copy.error, verification)
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
            self._tell(copy, damage, verification)

    def _tell(self, copy: Copy, reason: str, verification: Verification) -> None:
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
    """A run that begins now, or goes on with the one that began then."""
    return Scope(not_since or clock(), tenant, is_resumed=not_since is not None)
