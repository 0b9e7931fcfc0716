"""Uploads under way: bytes go to disk as they come, parts in any order, then one whole file."""

import asyncio
import hashlib
import secrets
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from emulator.lifecycle import Lifecycle
from emulator.storage import Storage

COPY_BYTES = 1024 * 1024
MOST_PARTS = 10_000


@dataclass(frozen=True, slots=True)
class Part:
    number: int
    etag: str
    """In quotes, as in the header."""
    size: int
    path: Path


@dataclass(frozen=True, slots=True, eq=False)
class Upload:
    """A file to be: `name` is what the CDN will serve it by."""

    id: str
    name: str
    content_type: str
    lifecycle: Lifecycle
    is_multipart: bool
    parts: dict[int, Part] = field(default_factory=dict)
    files: list[tuple[int, int]] = field(default_factory=list)
    """Parts and bytes of each whole file made of it; more than one if the caller tried again."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def is_completed(self) -> bool:
        return bool(self.files)

    def to_json(self) -> dict[str, object]:
        parts, size = self.files[-1] if self.files else (len(self.parts), None)
        return {
            "id": self.id,
            "name": self.name,
            "content_type": self.content_type,
            "multipart": self.is_multipart,
            "parts": parts,
            "bytes": size,
            "completed": self.is_completed,
            "lifecycle": self.lifecycle.to_json(),
        }


class WrongPartsError(ValueError):
    """What is to be put together is not what was received; the message says why."""


class Uploads:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._uploads: dict[str, Upload] = {}

    def start(
        self, file_name: str, content_type: str, lifecycle: Lifecycle, *, is_multipart: bool = False
    ) -> Upload:
        name = self._storage.choose_name(file_name)
        upload = Upload(secrets.token_hex(16), name, content_type, lifecycle, is_multipart)
        self._uploads[upload.id] = upload
        return upload

    def find(self, upload_id: str) -> Upload | None:
        return self._uploads.get(upload_id)

    async def receive_whole(self, upload: Upload, chunks: AsyncIterator[bytes]) -> Part:
        """The file at once; sent again, it replaces what was there."""
        part = await self._receive(upload, 1, chunks)
        place = self._storage.place
        place(part.path, upload.name, upload.lifecycle, upload.content_type)
        upload.files.append((1, part.size))
        return part

    async def receive_part(self, upload: Upload, number: int, chunks: AsyncIterator[bytes]) -> Part:
        """One part; sent again, it replaces the earlier one.

        Raises WrongPartsError: no such number, or the file is already complete.
        """
        if not 1 <= number <= MOST_PARTS:
            raise WrongPartsError(f"a part's number is from 1 to {MOST_PARTS}, not {number}")
        check_open(upload)
        part = await self._receive(upload, number, chunks)
        async with upload.turn:
            try:
                check_open(upload)
            except WrongPartsError:
                part.path.unlink()
                raise
            old = upload.parts.get(number)
            upload.parts[number] = part
        if old is not None:
            old.path.unlink()
        return part

    async def complete(self, upload: Upload, named: Sequence[tuple[int, str]]) -> None:
        """Put the parts together, in the order of their numbers. Done twice, it is done once.

        Raises WrongPartsError: not the parts 1 to n as received.
        """
        async with upload.turn:
            parts = choose_parts(upload, named)
            if upload.is_completed:
                return
            whole = self._make_path(upload, "whole")
            size = await asyncio.to_thread(join_parts, parts, whole)
            place = self._storage.place
            place(whole, upload.name, upload.lifecycle, upload.content_type)
            upload.files.append((len(parts), size))

    def to_json(self) -> list[dict[str, object]]:
        return [upload.to_json() for upload in self._uploads.values()]

    async def _receive(self, upload: Upload, number: int, chunks: AsyncIterator[bytes]) -> Part:
        """Whatever breaks off leaves nothing behind."""
        path = self._make_path(upload, f"{number}-{secrets.token_hex(4)}")
        digest, size = hashlib.md5(usedforsecurity=False), 0
        try:
            with await asyncio.to_thread(path.open, "wb") as file:
                async for chunk in chunks:
                    size += len(chunk)
                    await asyncio.to_thread(_keep, file, digest, chunk)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return Part(number, f'"{digest.hexdigest()}"', size, path)

    def _make_path(self, upload: Upload, end: str) -> Path:
        return self._storage.scratch / f"upload-{upload.id}-{end}"


def check_open(upload: Upload) -> None:
    """Raises WrongPartsError: the file is already complete."""
    if upload.is_completed:
        raise WrongPartsError("the upload is already completed")


def choose_parts(upload: Upload, named: Sequence[tuple[int, str]]) -> list[Part]:
    """The named parts in the order of their numbers.

    Raises WrongPartsError: not the parts 1 to n, or one with another ETag than was given for it.
    """
    tags = dict(named)
    if not named or sorted(number for number, _ in named) != list(range(1, len(named) + 1)):
        raise WrongPartsError("the parts must be numbered from 1 on, each once, without a gap")
    for number, tag in tags.items():
        if number not in upload.parts:
            raise WrongPartsError(f"part {number} was not received")
        if tag.strip('"') != upload.parts[number].etag.strip('"'):
            raise WrongPartsError(f"part {number} was received with another etag than {tag}")
    return [upload.parts[number] for number in sorted(tags)]


def join_parts(parts: Sequence[Part], target: Path) -> int:
    """The size of the whole. Each part's file goes once it is copied."""
    with target.open("wb") as whole:
        for part in parts:
            with part.path.open("rb") as file:
                shutil.copyfileobj(file, whole, COPY_BYTES)
            part.path.unlink()
        return whole.tell()


def _keep(file: BinaryIO, digest: "hashlib._Hash", chunk: bytes) -> None:
    file.write(chunk)
    digest.update(chunk)
