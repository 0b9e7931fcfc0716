"""Sinks of downloads that keep everything, or nothing but what a test looks at."""

import hashlib
from collections.abc import Callable

from typing_extensions import override


class MemorySink:
    """Keeps what was written, and how often it had to begin anew."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.restarts = 0

    def write(self, chunk: bytes, /) -> None:
        self.content += chunk

    def restart(self) -> None:
        self.restarts += 1
        self.content.clear()

    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


class HashSink:
    """Keeps a digest only: a test of memory wants no bytes kept."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def write(self, chunk: bytes, /) -> None:
        self._digest.update(chunk)

    def restart(self) -> None:
        self._digest = hashlib.sha256()

    def sha256(self) -> str:
        return self._digest.hexdigest()


class CallSink(MemorySink):
    """Calls back for each chunk."""

    def __init__(self, call: Callable[[bytes], object]) -> None:
        super().__init__()
        self._call = call

    @override
    def write(self, chunk: bytes, /) -> None:
        self._call(chunk)
        super().write(chunk)
