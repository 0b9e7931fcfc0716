"""The way of a video's bytes into a sink: checked and counted, and written by a thread of its own.

So the next bytes are read while the last ones are hashed and written.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from queue import Queue
from threading import Thread
from types import TracebackType
from typing import Protocol, Self, TypeAlias

from worker.ground.errors import MediaRefusedError

HEAD_BYTES = 256
WAITING_CHUNKS = 8
"""How many chunks may wait to be written."""

Chunk: TypeAlias = bytes
OnProgress: TypeAlias = Callable[[int], object]


class Sink(Protocol):
    """Where a video goes. Called by one thread at a time, but not always by the same."""

    def write(self, chunk: Chunk, /) -> object: ...

    def restart(self) -> object:
        """Forget all that was written."""

    def sha256(self) -> str:
        """Hex, of all that was written since the beginning or the last restart."""


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """`total` bounds the whole download, all its pauses included; `max_bytes` bounds the body."""

    total: timedelta
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Download:
    """What was received: count, sha256 (hex), the header Content-Type, and the first bytes.

    `announced` is how many bytes its host said that it has, if it did; `coding` is what the host
    called the encoding of the bytes, if that is neither nothing nor a compression.
    """

    bytes: int
    sha256: str
    content_type: str | None
    head: Chunk
    announced: int | None = None
    coding: str | None = None


class Writer:
    """Writes chunks in their order; what the sink raises comes out of the next call."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._waiting: Queue[Chunk | None] = Queue(WAITING_CHUNKS)
        self._error: BaseException | None = None
        self._thread = Thread(target=self._work, name="media writer", daemon=True)
        self._thread.start()

    def write(self, chunk: Chunk) -> None:
        self._check()
        self._waiting.put(chunk)

    def drain(self) -> None:
        """Wait until all is written."""
        self._waiting.join()
        self._check()

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        for chunk in iter(self._waiting.get, None):
            if self._error is None:
                try:
                    self._sink.write(chunk)
                except BaseException as error:  # noqa: BLE001 - raised where the download runs
                    self._error = error
            self._waiting.task_done()


class Intake:
    """Passes chunks on to the sink, and checks and counts what goes through."""

    def __init__(self, sink: Sink, max_bytes: int, on_progress: OnProgress | None) -> None:
        self.received = 0
        self._sink = sink
        self._writer = Writer(sink)
        self._max_bytes = max_bytes
        self._on_progress = on_progress
        self._head = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()

    def take(self, chunk: Chunk) -> None:
        """Raises MediaRefusedError for one byte too many, and whatever the sink has raised."""
        self.check_size(self.received + len(chunk))
        self.received += len(chunk)
        if len(self._head) < HEAD_BYTES:
            self._head += chunk[: HEAD_BYTES - len(self._head)]
        self._writer.write(chunk)
        self.tell()

    def tell(self) -> None:
        """Let whoever looks on end the download."""
        if self._on_progress is not None:
            self._on_progress(self.received)

    def check_size(self, size: int) -> None:
        """Raises MediaRefusedError for more bytes than are allowed."""
        if size > self._max_bytes:
            raise MediaRefusedError(f"the video is larger than {self._max_bytes} bytes")

    def restart(self) -> None:
        """Begin anew; the count goes back to nothing."""
        if self.received == 0:
            return
        self._writer.drain()
        self._sink.restart()
        self.received, self._head = 0, b""

    def finish(
        self,
        content_type: str | None,
        announced: int | None = None,
        coding: str | None = None,
    ) -> Download:
        """Wait until all is written, and tell what it was."""
        self._writer.drain()
        sha256 = self._sink.sha256()
        return Download(self.received, sha256, content_type, self._head, announced, coding)
