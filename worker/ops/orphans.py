"""Beside the path. orphans: objects in the archive that no row names.

One pass over the store's own list, a batch of names at a time against the rows of the jobs whose
ids are in the names. Nothing is deleted.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from uuid import UUID

from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.jobs import archives
from worker.jobs.archives import Naming
from worker.media.layout import POSTER, QUARANTINE, SHEET, SIDECAR, ListedObject
from worker.media.store import Store

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
            # Its row may be gone because it is: what is pruned loses its objects first.
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
