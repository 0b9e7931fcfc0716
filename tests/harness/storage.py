"""fal's storage, and the stranger its signed URLs lead to, as two hosts that record everything."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any

from typing_extensions import override

SIGNATURE = "signature=secret%2Fsignature&x=1"
TOKEN = "token-of-the-cdn"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request; `body` is what was read of it."""

    method: str
    path: str
    query: str
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Host"

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def reply(self, status: int, body: object = None, **headers: str) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        step = path.rpartition("/")[2]
        length = int(self.headers.get("content-length", "0"))
        cut = self.server.take_cut(step)
        body = self.rfile.read(length // 2 if cut else length)
        self.server.note(Asked(self.command, path, query, self.headers, body))
        if cut:
            self.close_connection = True
            return
        if step in self.server.held:
            self.server.held[step].wait(timeout=30)
        refusal = self.server.take_refusal(step)
        if refusal is not None:
            self.reply(refusal, {"detail": "no"})
            return
        try:
            self.server.answer(self, step, body)
        except ConnectionError:
            return

    @override
    def log_message(self, *_: object) -> None:
        """Keep the test output clean."""


class Host(ThreadingHTTPServer):
    """`refusals` and `cuts` are used up one by one; both go by the last word of the path."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[Asked] = []
        self.refusals: dict[str, list[int]] = {}
        self.cuts: Counter[str] = Counter()
        self.held: dict[str, Event] = {}
        self.answers: dict[str, Any] = {}
        self.tag_in_header = False
        self._lock = Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @override
    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever hung up has not asked."""

    def note(self, asked: Asked) -> None:
        with self._lock:
            self.asked.append(asked)

    def take_cut(self, step: str) -> bool:
        with self._lock:
            self.cuts[step] -= 1
            return self.cuts[step] >= 0

    def take_refusal(self, step: str) -> int | None:
        with self._lock:
            waiting = self.refusals.get(step, [])
            return waiting.pop(0) if waiting else None

    def answer(self, handler: Handler, step: str, body: bytes) -> None:
        if step in self.answers:
            handler.reply(200, self.answers[step])
        elif handler.command == "PUT" and step.isdecimal():
            tag = f'"tag-{step}-{len(body)}"'
            told = None if self.tag_in_header else {"partNumber": int(step), "etag": tag}
            handler.reply(200, told, **({"ETag": tag} if self.tag_in_header else {}))
        else:
            handler.reply(200)

    def count(self, step: str) -> int:
        return sum(one.path.rpartition("/")[2] == step for one in self.asked)

    def join_parts(self) -> bytes:
        """What the whole parts come to, the latest of each number."""
        parts = {}
        for one in self.asked:
            step = one.path.rpartition("/")[2]
            whole = len(one.body) == int(one.headers.get("content-length", "0"))
            if one.method == "PUT" and step.isdecimal() and whole:
                parts[int(step)] = one.body
        return b"".join(parts[number] for number in sorted(parts))


@dataclass(frozen=True, slots=True)
class Storage:
    """`rest` is fal's, `bytes` is where the signed URLs, and those of the CDN, lead."""

    rest: Host
    bytes: Host
    file_url: str = "https://files.example/b/1/video.mp4"


@contextmanager
def run_storage() -> Iterator[Storage]:
    with ExitStack() as stack:
        storage = Storage(stack.enter_context(_serve()), stack.enter_context(_serve()))
        signed = f"{storage.bytes.url}/upload/video.mp4?{SIGNATURE}"
        place = {"upload_url": signed, "file_url": storage.file_url}
        storage.rest.answers = {
            "initiate": place,
            "initiate-multipart": place,
            "token": {"token": TOKEN, "token_type": "Bearer", "base_url": storage.bytes.url},
        }
        access_url = f"{storage.bytes.url}/files/b/1/video.mp4"
        storage.bytes.answers = {
            "upload": {"access_url": access_url},
            "multipart": {"access_url": access_url, "uploadId": "7"},
        }
        yield storage


@contextmanager
def _serve() -> Iterator[Host]:
    host = Host()
    thread = Thread(target=host.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield host
    finally:
        for event in host.held.values():
            event.set()
        host.shutdown()
        host.server_close()
        thread.join()
