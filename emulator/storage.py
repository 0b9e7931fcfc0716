"""The CDN's files on disk.

`files/` is what the CDN serves; whatever a person drops there has a URL. Results and uploads are
written to `scratch/` first and moved into `files/` whole. What is known of a file beside its bytes
lives in memory: after a restart it is public, without end, and its type is guessed.
"""

import re
import secrets
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from emulator.lifecycle import Acl, Lifecycle

LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What is known of a file beside its bytes."""

    content_type: str | None = None
    acl: Acl = field(default_factory=Acl)
    expires_at: datetime | None = None

    @property
    def is_over(self) -> bool:
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)


UNKNOWN = FileRecord()


@dataclass(frozen=True, slots=True)
class Storage:
    directory: Path
    records: dict[str, FileRecord] = field(default_factory=dict)
    expired: dict[str, int] = field(default_factory=dict)
    """Names that lead nowhere any more, and the code that says so."""

    def __post_init__(self) -> None:
        for folder in (self.files, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def files(self) -> Path:
        return self.directory / "files"

    @property
    def scratch(self) -> Path:
        return self.directory / "scratch"

    def find(self, name: str) -> Path | None:
        """The file the CDN serves under this name; None for anything outside `files/`.

        Whoever comes after its end finds it gone for good.
        """
        path = self._resolve(name)
        if path is None or not path.is_file():
            return None
        if self.find_record(name).is_over:
            path.unlink(missing_ok=True)
            return None
        return path

    def find_record(self, name: str) -> FileRecord:
        return self.records.get(name, UNKNOWN)

    def set_acl(self, name: str, acl: Acl) -> None:
        self.records[name] = replace(self.find_record(name), acl=acl)

    def publish(self, path: Path, lifecycle: Lifecycle | None = None) -> str:
        """Move a finished result to where files live; returns the name it is served by."""
        name = self._invent_name(path.suffix)
        self.place(path, name, lifecycle or Lifecycle())
        return name

    def rename(self, name: str, code: int) -> str:
        """Serve a file under a fresh name only; the old one is answered with `code` from now on."""
        fresh = self._invent_name(Path(name).suffix)
        target = self.files / fresh
        target.parent.mkdir(parents=True, exist_ok=True)
        (self.files / name).replace(target)
        self.records[fresh] = self.find_record(name)
        self.expired[name] = code
        return fresh

    def choose_name(self, file_name: str) -> str:
        """The name under which a file to be uploaded will be served."""
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", file_name.rpartition("/")[2])[-LONGEST_NAME:]
        return f"b/{secrets.token_hex(4)}/{secrets.token_urlsafe(16)}_{plain or 'upload'}"

    def place(
        self, path: Path, name: str, lifecycle: Lifecycle, content_type: str | None = None
    ) -> None:
        """Move a finished scratch file to this name, over whatever is there."""
        target = self.files / name
        target.parent.mkdir(parents=True, exist_ok=True)
        life = lifecycle.expires_after
        end = None if life is None else datetime.now(UTC) + life
        self.records[name] = FileRecord(content_type, lifecycle.acl, end)
        path.replace(target)

    @staticmethod
    def _invent_name(suffix: str) -> str:
        return f"b/{secrets.token_hex(4)}/{secrets.token_urlsafe(16)}{suffix}"

    def _resolve(self, name: str) -> Path | None:
        root = self.files.resolve()
        if "\0" in name:
            return None
        path = (root / name).resolve()
        return path if path.is_relative_to(root) else None
