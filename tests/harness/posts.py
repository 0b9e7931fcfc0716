"""A webhook POST as it arrives at the receiver: handed to it as WSGI, or sent to it as bytes."""

from dataclasses import dataclass, replace
from io import BytesIO, StringIO
from typing import Any
from urllib.parse import unquote_to_bytes

from tests.harness.webhooks import PREFIX, SignedDelivery

SIGNED = ("Request-Id", "User-Id", "Timestamp", "Signature")

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Post:
    """One request; texts of its head are latin-1, as they are on the wire."""

    target: str
    headers: Headers
    body: bytes
    method: str = "POST"
    # None: what the body has; without any where it is "".
    length: str | None = None
    chunked: bool = False

    @property
    def announced(self) -> str:
        if self.length is None:
            return "" if self.chunked else str(len(self.body))
        return self.length

    def find(self, name: str) -> str | None:
        """The header as WSGI has it: repeated ones joined."""
        values = [value for known, value in self.headers if known.lower() == name.lower()]
        return ",".join(values) if values else None

    def means_same_as(self, delivery: SignedDelivery) -> bool:
        """Whether nothing that counts has changed; case of hexadecimal and blanks around do not."""
        path = unquote_to_bytes(self.target.partition("?")[0].encode("latin-1"))
        names = (PREFIX + name for name in SIGNED)
        ours = [(self.find(name) or "").strip(" \t").lower() for name in names]
        theirs = [delivery.headers[PREFIX + name].lower() for name in SIGNED]
        # A length that is none, or too long, leaves the body as it is: it is what is signed.
        # A shorter one is where the body ends.
        length = self.announced
        cut = not self.chunked and length.isascii() and length.isdecimal()
        body = self.body[: int(length)] if cut else self.body
        return (
            self.method.upper() == "POST"
            # Slashes at the beginning are one to the router.
            and b"/" + path.lstrip(b"/") == delivery.path.encode()
            and ours == theirs
            and body == delivery.body
        )

    def to_environ(self) -> dict[str, Any]:
        path, _, query = self.target.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": self.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path.encode("latin-1")).decode("latin-1"),
            "QUERY_STRING": query,
            "RAW_URI": self.target,
            "REMOTE_ADDR": "127.0.0.1",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": BytesIO(self.body),
            "wsgi.errors": StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
        }
        for name, _ in self.headers:
            key = name.upper().replace("-", "_")
            key = key if key == "CONTENT_TYPE" else f"HTTP_{key}"
            environ[key] = self.find(name)
        if self.chunked:
            environ |= {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
        if self.announced:
            environ["CONTENT_LENGTH"] = self.announced
        return environ

    def to_bytes(self) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines += ["Transfer-Encoding: chunked"] if self.chunked else []
        lines += [f"Content-Length: {self.announced}"] if self.announced else []
        head = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
        if not self.chunked:
            return head + self.body
        return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(self.body), self.body)


def write_post(delivery: SignedDelivery, **changes: Any) -> Post:
    post = Post(delivery.path, tuple(delivery.headers.items()), delivery.body)
    return replace(post, **changes)


def drop(headers: Headers, name: str) -> Headers:
    return tuple(one for one in headers if one[0].lower() != name.lower())


def swap(post: Post, name: str, value: str) -> Post:
    return replace(post, headers=(*drop(post.headers, name), (name, value)))
