"""HTTP requests, prepared beforehand and sent at fixed times: a process that costs little itself.

The time of an answer counts from when the request was to be sent. So a late answer also
counts for the requests that had to wait for it.
"""

import asyncio
import json
import math
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

from typing_extensions import override

from benchmarks.harness.report import REPOSITORY

HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length:"


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent where: whole requests as text, over so many connections that are kept open.

    `rate` a second; None: as fast as they are answered.
    """

    host: str
    port: int
    requests: Sequence[str]
    connections: int
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """How often each status came, and how long each answer took, in seconds."""

    seconds: float
    statuses: dict[str, int]
    latencies: list[float]

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def check(self) -> None:
        """Raise if anything but 200 was among them."""
        if set(self.statuses) != {"200"}:
            raise RuntimeError(f"answers were {self.statuses}")


def find_quantile(values: Sequence[float], part: float) -> float:
    """The least of the values below or at which so large a part of them lies."""
    return sorted(values)[math.ceil(part * len(values)) - 1]


def run_load(load: Load, directory: Path) -> Answers:
    """Send all of it, from a process of its own."""
    path = directory / "load.json"
    path.write_text(json.dumps(asdict(load)))
    command = [sys.executable, "-m", "benchmarks.harness.load", str(path)]
    ended = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)  # noqa: S603 - ours
    path.unlink()
    return Answers(**json.loads(ended.stdout))


@dataclass
class Sender:
    """Gives each request to a connection that has nothing to do, the oldest request first.

    One is opened when a request wants it, for a connection on which nothing comes holds up a thread
    of gunicorn's for seconds.
    """

    load: Load
    opened: int = 0
    opening: set[asyncio.Future[None]] = field(default_factory=set)
    idle: list["Line"] = field(default_factory=list)
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> Answers:
        began = time.monotonic()
        for number, request in enumerate(self.load.requests):
            due = began if self.load.rate is None else began + number / self.load.rate
            if (pause := due - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            self.waiting.append((due, request.encode()))
            self.send_waiting()
        await self.done.wait()
        for failed in self.opening:
            failed.result()
        return Answers(time.monotonic() - began, dict(self.statuses), self.latencies)

    def send_waiting(self) -> None:
        while self.waiting and (self.idle or self.opened < self.load.connections):
            due, request = self.waiting.popleft()
            if self.idle:
                self.idle.pop().send(due, request)
            else:
                self.open(due, request)

    def open(self, due: float, request: bytes) -> None:
        self.opened += 1
        opening = asyncio.ensure_future(self._connect(due, request))
        self.opening.add(opening)
        opening.add_done_callback(self._note_opened)

    async def _connect(self, due: float, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        made = loop.create_connection(lambda: Line(self), self.load.host, self.load.port)
        _, line = await made
        line.send(due, request)

    def _note_opened(self, opening: asyncio.Future[None]) -> None:
        if opening.exception() is None:
            self.opening.discard(opening)
        else:
            self.done.set()

    def take(self, due: float, status: str) -> None:
        self.latencies.append(time.monotonic() - due)
        self.statuses[status] += 1
        if len(self.latencies) == len(self.load.requests):
            self.done.set()


class Line(asyncio.Protocol):
    """One connection, with at most one request under way."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._sent: tuple[float, bytes] | None = None
        self._received = b""
        self._transport: asyncio.Transport

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send(self, due: float, request: bytes) -> None:
        self._sent = (due, request)
        self._transport.write(request)

    @override
    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(HEAD_END)
        if not end or len(body) < read_length(head) or self._sent is None:
            return
        due, self._sent, self._received = self._sent[0], None, b""
        self._sender.take(due, head[9:12].decode())
        self._sender.idle.append(self)
        self._sender.send_waiting()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """The server ends connections that rest; what it did not answer is sent again."""
        if self in self._sender.idle:
            self._sender.idle.remove(self)
        self._sender.opened -= 1
        if self._sent is not None:
            self._sender.waiting.appendleft(self._sent)
        if not self._sender.done.is_set():
            self._sender.send_waiting()


def read_length(head: bytes) -> int:
    """Of the body, by the answer's head."""
    _, _, rest = head.lower().partition(LENGTH)
    return int(rest.partition(b"\r\n")[0])


def main() -> None:
    load = Load(**json.loads(Path(sys.argv[1]).read_text()))
    print(json.dumps(asdict(asyncio.run(Sender(load).run()))))


if __name__ == "__main__":
    main()
