"""Server-sent events out of a stream of bytes, as far as fal uses them: their data."""

import re
from collections.abc import Iterator

MAX_EVENT_BYTES = 8 * 1024 * 1024
_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventParser:
    """Gives each event's data as soon as it is complete, however the bytes were cut into chunks.

    Lines end with LF, CR or both; comments and fields other than `data` are passed over.
    """

    def __init__(self) -> None:
        self._line = b""
        self._data: list[bytes] = []
        self._bytes = 0
        self._ends_with_cr = False
        self._begins = True

    def feed(self, chunk: bytes) -> Iterator[str]:
        """The events that this chunk completes. Raises ValueError for one that is too long."""
        if not chunk:
            return
        if self._ends_with_cr:
            chunk = chunk.removeprefix(b"\n")
        self._ends_with_cr = chunk.endswith(b"\r")
        *lines, self._line = _LINE_END.split(self._line + chunk)
        for line in lines:
            yield from self._take(line)
        if self._bytes + len(self._line) > MAX_EVENT_BYTES:
            raise ValueError(f"an event has more than {MAX_EVENT_BYTES} bytes")

    def _take(self, line: bytes) -> Iterator[str]:
        if self._begins:
            line, self._begins = line.removeprefix(b"\xef\xbb\xbf"), False
        if not line:
            if self._data:
                yield b"\n".join(self._data).decode("utf-8", "replace")
            self._data, self._bytes = [], 0
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._bytes += len(line)
