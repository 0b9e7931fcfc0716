"""Bytes of a local file on their way to somewhere else: slices, their progress, and their end."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import BinaryIO

import httpx

from worker.ground.errors import UploadRefusedError

CHUNK_BYTES = 128 * 1024
OnProgress = Callable[[int, int], object]


class StoppedError(Exception):
    """Another part has failed for good: this one need not go on."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a file, or all of it; parts are numbered from 1."""

    path: Path
    number: int
    start: int
    length: int


def slice_file(path: Path, size: int, part_bytes: int) -> list[Slice]:
    """Parts of equal length but the last, in the order of the file."""
    starts = range(0, size, part_bytes)
    return [
        Slice(path, number, start, min(part_bytes, size - start))
        for number, start in enumerate(starts, start=1)
    ]


class Meter:
    """Counts what has been sent over all slices, and tells it; safe between threads.

    A slice that is sent again counts once: what is told never goes back.
    """

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self._total = total
        self._on_progress = on_progress
        self._sent: dict[int, int] = {}
        self._told = 0
        self._lock = Lock()

    def set_sent(self, number: int, sent: int) -> None:
        with self._lock:
            self._sent[number] = sent
            total = sum(self._sent.values())
            if total <= self._told or self._on_progress is None:
                return
            self._told = total
            self._on_progress(total, self._total)


def read_slice(part: Slice, meter: Meter, stop: Event, deadline: float) -> Iterator[bytes]:
    """The slice chunk by chunk, never more than one in memory.

    Raises StoppedError once `stop` is set, httpx.WriteTimeout once `deadline` (monotonic) has
    passed, and UploadRefusedError if the file has become shorter.
    """
    sent = 0
    with _open(part) as file:
        while sent < part.length:
            if stop.is_set():
                raise StoppedError
            if time.monotonic() > deadline:
                raise httpx.WriteTimeout("the file is taken too slowly")
            chunk = _read(file, min(CHUNK_BYTES, part.length - sent))
            yield chunk
            sent += len(chunk)
            meter.set_sent(part.number, sent)


def _open(part: Slice) -> BinaryIO:
    try:
        file = part.path.open("rb")
        file.seek(part.start)
    except OSError as error:
        raise UploadRefusedError(f"the file can be read no more: {error.strerror}") from error
    return file


def _read(file: BinaryIO, size: int) -> bytes:
    try:
        chunk = file.read(size)
    except OSError as error:
        raise UploadRefusedError(f"the file can be read no more: {error.strerror}") from error
    if not chunk:
        raise UploadRefusedError("the file became shorter while it was uploaded")
    return chunk


def send_slices(
    parts: Sequence[Slice], send: Callable[[Slice], None], parallel: int, stop: Event
) -> None:
    """Send several at a time. The first that fails sets `stop`, and its error is raised."""
    lanes = _Lanes(parts, send, stop)
    lanes.start(min(parallel, len(parts)))
    try:
        lanes.watch(len(parts))
    except Exception:
        lanes.join()
        raise
    except BaseException:
        stop.set()
        raise


class _Lanes:
    """Threads that take one slice after the other."""

    def __init__(self, parts: Sequence[Slice], send: Callable[[Slice], None], stop: Event) -> None:
        self._send = send
        self._stop = stop
        self._waiting: SimpleQueue[Slice] = SimpleQueue()
        self._ended: SimpleQueue[Exception | None] = SimpleQueue()
        self._threads: list[Thread] = []
        for part in parts:
            self._waiting.put(part)

    def start(self, count: int) -> None:
        """Daemons, for whoever is interrupted does not wait for a host that says nothing."""
        for _ in range(count):
            thread = Thread(target=self._work, name="upload", daemon=True)
            self._threads.append(thread)
            thread.start()

    def watch(self, parts: int) -> None:
        for _ in range(parts):
            error = self._ended.get()
            if error is not None:
                raise error

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                self._send(self._waiting.get_nowait())
                self._ended.put(None)
        except Empty:
            pass
        except Exception as error:  # noqa: BLE001 - raised where the upload was asked for
            # In this order: what the stop does to the others is told after its cause.
            self._ended.put(error)
            self._stop.set()
