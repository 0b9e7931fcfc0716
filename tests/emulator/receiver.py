"""A little HTTP server that collects webhooks and answers as it was told."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from typing_extensions import override


class Quiet(BaseHTTPRequestHandler):
    @override
    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output clean."""


@dataclass(frozen=True, slots=True)
class Received:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Receiver:
    """`answers` are the codes of the next responses, 200 once they are used up."""

    url: str
    answers: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)
    received: queue.SimpleQueue[Received] = field(default_factory=queue.SimpleQueue)

    def take(self) -> Received:
        return self.received.get(timeout=20)

    def next_answer(self) -> int:
        try:
            return self.answers.get_nowait()
        except queue.Empty:
            return 200


@dataclass(frozen=True, slots=True)
class Meeting:
    """A receiver that answers nobody before as many are there as were asked for.

    `present` holds how many were there each time somebody came.
    """

    url: str
    present: list[int]


@contextmanager
def start_meeting(size: int) -> Iterator[Meeting]:
    complete = threading.Barrier(size)
    inside: set[int] = set()
    present: list[int] = []

    class Meet(Quiet):
        def do_POST(self) -> None:
            inside.add(threading.get_ident())
            present.append(len(inside))
            complete.wait(timeout=10)
            inside.discard(threading.get_ident())
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with serve(Meet) as url:
        yield Meeting(url, present)


@contextmanager
def start_receiver() -> Iterator[Receiver]:
    class Collect(Quiet):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.received.put(Received(self.path, headers, body))
            self.send_response(receiver.next_answer())
            self.send_header("Location", f"{receiver.url}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

    with serve(Collect) as url:
        receiver = Receiver(url)
        yield receiver


@contextmanager
def serve(answering: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server with a thread for each connection."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), answering)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
