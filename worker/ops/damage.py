"""Beneath the path. What is wrong with an archived copy, by its very bytes."""

import hashlib
import json
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
    """Whether the sidecar tells how another video was made."""
    name = None if copy.sidecar_uri is None else store.find_name(copy.sidecar_uri)
    if name is None:
        return None
    try:
        told = json.loads(b"".join(store.read(name)))
        sha256 = told["video"]["sha256"]
    except StoreObjectMissingError:
        return f"{Damage.MISSING}: there is no sidecar {copy.sidecar_uri}"
    except (ValueError, RecursionError, LookupError, TypeError):
        return f"{Damage.DIFFERENT}: the sidecar {name} cannot be read"
    if sha256 != copy.sha256:
        return f"{Damage.DIFFERENT}: the sidecar {name} is of SHA-256 {sha256}, not {copy.sha256}"
    return None
