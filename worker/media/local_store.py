"""An archive in one directory of this machine, or one mounted there.

An object gets its name by a rename, or by a link if the name has to be free, of a file that is on
disk by then. So a name never shows a part of an object, whenever the process or machine dies.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from worker.ground.errors import StoreObjectMissingError
from worker.media.layout import ListedObject, StoredObject, check_name, is_name
from worker.media.spool import Spool, SpoolFile, make_directory, naming_reason, sync_directory

PARTIAL_DIRECTORY = ".partial"
READ_BYTES = 1024 * 1024
UNWRITABLE = "the archive cannot be written"
UNREADABLE = "the archive cannot be read"
SMALL = "object"  # the spool's label of what is no video
# How often a directory that a deletion has just removed is made again.
MOST_ATTEMPTS = 20
# Nothing is there, or what is there is no part of a path.
ABSENT = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A Store below `root`, which is made when the first file is begun.

    Needs a file system with hard links and flock. Several machines may share one.
    """

    root: Path

    @property
    def spool(self) -> Spool:
        """Inside the archive, for only then is a rename no copy."""
        return Spool(self.root / PARTIAL_DIRECTORY)

    def publish(self, file: SpoolFile, name: str, content_type: str) -> StoredObject:
        """Rename the file out of the spool; it is closed then."""
        del content_type  # a file has none but its name's ending
        final = self._place(name)
        file.flush()
        with naming_reason(UNWRITABLE):
            self._enter(file, final, is_new=False)
            sync_directory(file.path.parent)
        # Only now: with its lock gone, the partial could have been taken for one left behind.
        file.close()
        return StoredObject(final.as_uri(), file.sha256(), file.bytes)

    def create(self, name: str, body: bytes, content_type: str) -> bool:
        del content_type
        final = self._place(name)
        with self.spool.begin(SMALL) as file:
            file.write(body)
            file.flush()
            with naming_reason(UNWRITABLE):
                return self._enter(file, final, is_new=True)

    def put(self, name: str, body: bytes, content_type: str) -> StoredObject:
        with self.spool.begin(SMALL) as file:
            file.write(body)
            return self.publish(file, name, content_type)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        place = self._place(name)
        with naming_reason(UNREADABLE):
            try:
                file = place.open("rb", buffering=0)
            except (*ABSENT, IsADirectoryError):
                raise StoreObjectMissingError(f"the archive has no {name}") from None
        with file:
            at = file.seek(start)
            end = os.fstat(file.fileno()).st_size if stop is None else stop
            while chunk := file.read(max(0, min(READ_BYTES, end - at))):
                at += len(chunk)
                yield chunk

    def stat(self, name: str) -> ListedObject | None:
        place = self._place(name)
        with naming_reason(UNREADABLE):
            return _stat(place, name)

    def list(self, prefix: str = "") -> Iterator[ListedObject]:
        """In order of their names, directory by directory. What is hidden is left out."""
        top = self._place(prefix) if prefix else self.root
        with naming_reason(UNREADABLE):
            yield from self._walk(top, f"{prefix}/" if prefix else "")

    def delete(self, name: str) -> bool:
        """Remove the file, and the directories that are empty without it."""
        place = self._place(name)
        with naming_reason(UNWRITABLE):
            if not place.is_file():
                return False
            place.unlink(missing_ok=True)
            directory = place.parent
            with suppress(OSError):  # something is in it
                while directory != self.root.absolute():
                    with suppress(FileNotFoundError):  # another deletion was faster
                        directory.rmdir()
                    directory = directory.parent
            with suppress(FileNotFoundError):  # another deletion has removed it, and flushed
                sync_directory(directory)
        return True

    def find_uri(self, name: str) -> str:
        return self._place(name).as_uri()

    def find_name(self, uri: str) -> str | None:
        """A file that lies flat in the root, as older versions put it there, has a name too."""
        try:
            path = local_path(uri) or Path()
            return check_name(path.relative_to(self.root.absolute()).as_posix())
        except ValueError:
            return None

    def _place(self, name: str) -> Path:
        return self.root.absolute() / check_name(name)

    def _enter(self, file: SpoolFile, final: Path, *, is_new: bool) -> bool:
        """Give the file its final name, and flush every directory on the way to it.

        False if the name has to be new and is taken. A deletion may remove the directory before
        anything is in it: then it is made again.
        """
        is_named = True
        for rest in reversed(range(MOST_ATTEMPTS)):
            try:
                make_directory(final.parent)
                if is_new:
                    is_named = _link(file.path, final)
                else:
                    file.path.replace(final)
                break
            except (FileNotFoundError, FileExistsError):
                if not rest or not file.path.exists():
                    raise
        for directory in final.parents:
            with suppress(FileNotFoundError):  # another process has deleted the object since
                sync_directory(directory)
            if directory == self.root.absolute():
                break
        return is_named

    def _walk(self, directory: Path, before: str) -> Iterator[ListedObject]:
        try:
            with os.scandir(directory) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except ABSENT:
            return
        for entry in entries:
            name = before + entry.name
            if not is_name(name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(directory / entry.name, f"{name}/")
            elif (found := _stat(directory / entry.name, name)) is not None:
                yield found


def local_path(uri: str) -> Path | None:
    """Give the path of a `file:` URI, None for an object that is not on this machine."""
    return read_file_url(uri) if uri.lower().startswith("file:") else None


def read_file_url(url: str) -> Path:
    """The path in a `file:` URL. Raises ValueError with the reason."""
    parts = urlsplit(url)
    path = os.fsdecode(unquote_to_bytes(parts.path))
    if parts.netloc or parts.query or parts.fragment or not path or "\0" in path:
        raise ValueError(
            "a file: URL has a path and nothing else: file:./directory or file:///directory"
        )
    return Path(path)


def _link(partial: Path, final: Path) -> bool:
    """False if the name is taken."""
    try:
        final.hardlink_to(partial)
    except FileExistsError:
        return False
    return True


def _stat(place: Path, name: str) -> ListedObject | None:
    """None if there is no file; a link to one is as good as a file."""
    try:
        found = place.stat()
    except ABSENT:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return ListedObject(name, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))
