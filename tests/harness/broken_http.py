"""Requests damaged below what WSGI knows of."""

import random
from collections.abc import Callable

Rng = random.Random
HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(200)
HEAD_LINES = (
    b"Content-Length: 5",
    b"Content-Length: -5",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: identity, chunked",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: \x0bchunked",
    b"Expect: 100-continue",
    b"Expect: a miracle",
    b"Upgrade: h2c",
    b"no colon",
    b": no name",
    b"X_Fal_Webhook_Signature: 00",
    b"Folded: a\r\n b",
    b"Long: " + b"x" * 9000,
    b"Nul: \0",
    b"\xff\xfe: x",
    b"Host: x\r\nHost: y",
    b"Connection: keep-alive",
)


def break_http(rng: Rng, raw: bytes) -> bytes:
    """The bytes of a request, damaged by chance."""
    head, _, body = raw.partition(b"\r\n\r\n")
    line, _, lines = head.partition(b"\r\n")
    place = rng.randrange(len(raw))
    breaks: list[Callable[[], bytes]] = [
        lambda: raw[:place],
        lambda: raw[:place] + rng.randbytes(1 + rng.randrange(20)) + raw[place:],
        lambda: raw[:place] + bytes([rng.randrange(256)]) + raw[place + 1 :],
        lambda: raw[: place // 2] + raw[place:],
        lambda: raw.replace(b"\r\n", rng.choice([b"\n", b"\r", b"\r\r\n", b"\0\r\n"])),
        lambda: b"\r\n" * rng.randrange(1, 9) + raw,
        lambda: raw + raw,
        lambda: raw + rng.randbytes(30),
        lambda: line.replace(b"HTTP/1.1", draw_version(rng)) + b"\r\n" + lines + b"\r\n\r\n" + body,
        lambda: b"\r\n".join([line, rng.choice(HEAD_LINES), lines]) + b"\r\n\r\n" + body,
        lambda: b"\r\n".join([line, lines, rng.choice(HEAD_LINES)]) + b"\r\n\r\n" + body,
        lambda: line + (b"\r\nX: y" * rng.choice([50, 200])) + b"\r\n" + lines + b"\r\n\r\n" + body,
        lambda: spoil_chunks(rng, head, body),
        lambda: rng.choice([HELLO, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"PROXY TCP4 x\r\n" + raw]),
        lambda: rng.randbytes(rng.randrange(400)),
    ]
    return rng.choice(breaks)()


def draw_version(rng: Rng) -> bytes:
    return rng.choice([b"", b"HTTP/0.9", b"HTTP/1.0", b"HTTP/9.9", b"HTTP/1.1 x", b"ICY", b"\xff"])


def spoil_chunks(rng: Rng, head: bytes, body: bytes) -> bytes:
    """A chunked body whose chunks are not what they say."""
    kept = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    size = rng.choice(
        [
            b"zz",
            b"-1",
            b"",
            b"0x5",
            b"f" * 17,
            b"5;a=\0",
            b"%x" % (len(body) + 9),
            b"1",
            b"5 ",
            b"\xb2",
        ]
    )
    end = rng.choice([b"\r\n0\r\n\r\n", b"0\r\n\r\n", b"\r\n0\r\nA: b\r\n\r\n", b"", b"\r\n0"])
    lines = [*kept, b"Transfer-Encoding: chunked", b"", size, body]
    return b"\r\n".join(lines) + end
