"""The archive: one interface to the places where videos are kept.

A name is relative to the archive, its parts separated by slashes (see `check_name`). Under a name
there is either nothing or a whole object, on every store and whenever a process is killed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from worker.ground.errors import StoreUnavailableError
from worker.media.layout import ListedObject, StoredObject
from worker.media.local_store import LocalStore, read_file_url
from worker.media.spool import Spool, SpoolFile

# A store that has failed so often in a row is unavailable.
MOST_FAILURES = 3
REMOTE = ("s3", "gs", "az", "memory")
SUPPORTED = (
    "allowed are file:./directory, file:///directory, s3://bucket/prefix, gs://bucket/prefix, "
    "az://container/prefix"
)


class Store(Protocol):
    """What the rest needs of an archive. All methods raise StoreUnavailableError with the reason.

    A wrong name is a ValueError.
    """

    @property
    def spool(self) -> Spool:
        """Where files are written before they are published."""

    def publish(self, file: SpoolFile, name: str, content_type: str) -> StoredObject:
        """Give the file its name, replacing an older object of that name.

        When this returns, the object survives a crash. A local archive takes the file itself, by
        a rename; others get a copy of it, in parts. Called once for each file.
        """

    def create(self, name: str, body: bytes, content_type: str) -> bool:
        """Make a small object, but never over another one: False if the name is taken.

        Of several at once exactly one gets True.
        """

    def put(self, name: str, body: bytes, content_type: str) -> StoredObject:
        """Make a small object, replacing an older one of that name."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The object's bytes, chunk by chunk; those from `start` to before `stop`.

        Raises StoreObjectMissingError at the first.
        """

    def stat(self, name: str) -> ListedObject | None:
        """What is under the name, if anything is."""

    def list(self, prefix: str = "") -> Iterator[ListedObject]:
        """Every object whose name begins with the parts of `prefix`, at any depth below it."""

    def delete(self, name: str) -> bool:
        """Remove the object; False if there was none."""

    def find_uri(self, name: str) -> str:
        """The URI of the object with this name, there or not."""

    def find_name(self, uri: str) -> str | None:
        """The name of the object with this URI, there or not; None if it is not of this archive."""


def open_store(archive_url: str, spool_dir: Path) -> Store:
    """Open the archive that `ARCHIVE_URL` names; nothing is written or sent yet.

    `file:./archive` is relative to the working directory. A local archive has its spool inside
    it, on the same file system; the others have theirs in `spool_dir`. Raises ValueError with the
    reason, which shows no password.
    """
    scheme, colon, _ = archive_url.partition(":")
    if colon and scheme.lower() == "file":
        return LocalStore(read_file_url(archive_url).absolute())
    if colon and scheme.lower() in REMOTE:
        # Only now: it is large, and an archive on local disk needs none of it.
        from worker.media.object_store import open_remote_store

        return open_remote_store(archive_url, Spool(spool_dir.absolute()))
    given = f"{scheme}: is not supported" if colon else "a scheme is missing"
    raise ValueError(f"{given}; {SUPPORTED}")


@dataclass
class ArchiveLook:
    """Checks many archived objects; once `is_over`, the store itself is unavailable."""

    store: Store
    failures: int = 0

    @property
    def is_over(self) -> bool:
        return self.failures >= MOST_FAILURES

    def find_fault(self, uri: str, size: int) -> str | None:
        """What is wrong with the object that a row says it has; None if it is there, whole."""
        name = self.store.find_name(uri)
        if name is None:
            return "it is not of the archive that ARCHIVE_URL names"
        try:
            found = self.store.stat(name)
        except StoreUnavailableError as error:
            self.failures += 1
            return f"it cannot be checked: {error}"
        self.failures = 0
        if found is None:
            return "there is no such file"
        return None if found.bytes == size else f"it has {found.bytes} bytes, the row says {size}"
