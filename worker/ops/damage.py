"""Beneath the path. What is wrong with an archived copy, by its very bytes."""

import hashlib
from collections.abc import Callable, Iterator
from enum import StrEnum

from worker.ground.errors import StoreObjectMissingError
from worker.jobs.archives import Copy
from worker.media.store import Store

OnRead = Callable[[int], None]


class Damage(StrEnum):
    """How a copy's `archive_error` begins."""

    MISSING = "missing"
    DIFFERENT = "different"


def is_elsewhere(copy: Copy, store: Store) -> bool:
    """Whether the copy is not in this archive, and cannot be read here."""
    return store.find_name(copy.uri) is None


def find_damage(copy: Copy, store: Store, on_read: OnRead | None = None) -> str | None:
    """Read the whole copy; what is wrong with it, None if nothing is.

    `on_read` is told of each chunk. Raises StoreUnavailableError: then nothing is known.
    """
    damage = _find_damaged_video(copy, store, on_read)
    return damage or next(_find_missing_companions(copy, store), None)


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
    """The sidecar and the poster; what they hold cannot be told from the row."""
    for kind, uri in (("sidecar", copy.sidecar_uri), ("poster", copy.poster_uri)):
        name = None if uri is None else store.find_name(uri)
        if uri is not None and (name is None or store.stat(name) is None):
            yield f"{Damage.MISSING}: there is no {kind} {uri}"
