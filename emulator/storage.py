"""The CDN's files on disk.

`files/` is what the CDN serves; whatever a person drops there has a URL. Results are written to
`scratch/` first and moved into `files/` whole.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Storage:
    directory: Path

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
        """The file the CDN serves under this name; None for anything outside `files/`."""
        root = self.files.resolve()
        if "\0" in name:
            return None
        path = (root / name).resolve()
        return path if path.is_relative_to(root) and path.is_file() else None

    def publish(self, path: Path) -> str:
        """Move a finished scratch file to where results live; returns the name it is served by."""
        folder = self.files / "b" / secrets.token_hex(4)
        folder.mkdir(parents=True, exist_ok=True)
        published = path.rename(folder / f"{secrets.token_urlsafe(16)}{path.suffix}")
        return published.relative_to(self.files).as_posix()
