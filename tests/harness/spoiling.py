"""The parts of a webhook POST, spoilt by chance: values, times, bodies, and what is beside them."""

import base64
import gzip
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from tests.harness.jobs import REQUEST_ID
from tests.harness.posts import Post, drop
from tests.harness.webhooks import build_body

Rng = random.Random


def spoil_value(rng: Rng, value: str) -> str:
    place = rng.randrange(len(value) + 1)
    odd = rng.choice(
        ["\0", "\x7f", "\t", " ", "\xa0", "\xfc", "\xff", ",", "\n", "\r\n", "\xb2", "%"]
    )
    changed = chr(rng.randrange(256))
    return rng.choice(
        [
            "",
            " ",
            f" {value}",
            f"{value} ",
            f"{value}{odd}",
            f"{odd}{value}",
            value[:place] + odd + value[place:],
            value[:place],
            value[:place] + changed + value[place + 1 :],
            value.swapcase() + "z",
            value[::-1],
            value * 2,
            f'"{value}"',
            "x" * rng.choice([255, 256, 257, 5000, 100_000]),
            "".join(chr(rng.randrange(256)) for _ in range(rng.randrange(200))),
        ]
    )


def spoil_time(rng: Rng, value: str) -> str:
    now = int(value) if value.isascii() and value.isdecimal() and len(value) < 11 else 0
    return rng.choice(
        [
            f"{now}.0",
            f"{now:e}",
            f"+{now}",
            f"-{now}",
            f"0{now}",
            f"{now:_}",
            hex(now),
            f"{now}000",
            f" {now}",
            str(now + rng.choice([-1, 1, -301, 301, -10_000, 10_000])),
            datetime.fromtimestamp(now, UTC).isoformat(),
            "0",
            "-0",
            "NaN",
            "inf",
            "9" * rng.choice([12, 13, 5000]),
            "\xb9\xb2\xb3",
        ]
    )


def spoil_bytes(rng: Rng, body: bytes, limit: int) -> bytes:
    place = rng.randrange(len(body) + 1)
    spoils: list[Callable[[], bytes]] = [
        lambda: b"",
        lambda: body[:place],
        lambda: body[place:],
        lambda: body[:place] + rng.randbytes(1 + rng.randrange(8)) + body[place:],
        lambda: body[:place] + bytes([rng.randrange(256)]) + body[place + 1 :],
        lambda: body + rng.choice([b" ", b"\n", b"\0", b"}", body]),
        lambda: rng.choice([b" ", b"\xef\xbb\xbf", b"\0", b"\xff\xfe"]) + body,
        lambda: recode(body, rng.choice(["utf-16", "utf-32", "utf-16-be", "utf-7"])),
        lambda: gzip.compress(body, 1),
        lambda: base64.b64encode(body),
        lambda: body.replace(b'"', b"'"),
        lambda: body.replace(b": ", b":"),
        body.swapcase,
        lambda: draw_shapeless(rng, limit),
    ]
    # Large ones are slow to make, and few are enough.
    if rng.random() < 0.02:
        size = limit + rng.choice([-1, 0, 1, 2, limit])
        return body.ljust(size, rng.choice([b" ", b"x", b"\0"]))
    return rng.choice(spoils)()


def recode(body: bytes, encoding: str) -> bytes:
    return body.decode("latin-1").encode(encoding)


def draw_content(rng: Rng) -> dict[str, Any]:
    """The JSON of a delivery that may hold anything where anything may stand."""
    odd: list[Any] = [
        None,
        float("nan"),
        float("inf"),
        1e400,
        10**400,
        -(2**63),
        "\0",
        "\ud800",
        "\udfff\ud800",
        "\U0001f600",
        "x" * 3000,
        [],
        [[[]]],
        {"": {"\0": "\ud800"}},
        {"detail": [{"loc": ["body"], "msg": "\0", "type": "\ud800"}]},
        {"video": {"url": "https://v3.fal.media/a.mp4"}, "seed": 10**300, "prompt": "\0"},
    ]
    names = ["payload", "error", "payload_error", "gateway_request_id", "status", "more", "\0"]
    changes = {rng.choice(names): rng.choice(odd) for _ in range(rng.randrange(4))}
    return build_body(status=rng.choice(["OK", "ERROR"])) | changes


def draw_shapeless(rng: Rng, limit: int) -> bytes:
    """What is no delivery, whoever signs it."""
    depth = rng.choice([1, 50, 500, 5000, limit // 3])
    wrong: list[Mapping[str, Any]] = [
        build_body(status=...),
        build_body(status="FAILED"),
        build_body(status=["OK"]),
        build_body(request_id=...),
        build_body(request_id=None),
        build_body(request_id=10**100),
        build_body(request_id={"\0": "\ud800"}),
    ]
    return rng.choice(
        [
            json.dumps(rng.choice(wrong)).encode(),
            b"[" * depth,
            b"[" * depth + b"]" * depth,
            b'{"a":' * (depth // 2) + b"1" + b"}" * (depth // 2),
            b'{"request_id": ' + b"9" * 5000 + b"}",
            b'{"request_id": 1e999999999, "status": "OK"}',
            b'{"status": "OK", "status": "NO", "request_id": "a"}',
            b'{"request_id": "' + REQUEST_ID.encode() + b'", "status": NaN}',
            b'"\\ud800"',
            b"NaN",
            b"-",
            b"nul",
            b"\xff\xfe",
            b"\xef\xbb\xbf{}",
            rng.randbytes(rng.randrange(300)),
        ]
    )


CONTENT_TYPES = (
    "application/json",
    "application/json; charset=utf-16",
    "application/json; charset=\xfc",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "multipart/form-data; boundary=" + "x" * 300,
    "text/plain",
    "\0",
    "",
)
BESIDE = (
    ("Content-Encoding", "gzip"),
    ("Accept", "\xfc/*;q=NaN"),
    ("Accept-Encoding", "gzip;q=x"),
    ("Cookie", "a=b; =; \xfc=\xff; session=" + "x" * 500),
    ("Authorization", "Basic \xfc"),
    ("Authorization", "Digest username=x, ="),
    ("Range", "bytes=-1-"),
    ("If-None-Match", 'W/"*'),
    ("If-Modified-Since", "yesterday"),
    ("X-Forwarded-For", "127.0.0.1, \xfc"),
    ("X-Forwarded-Host", "evil.test"),
    ("X-Http-Method-Override", "DELETE"),
    ("Max-Forwards", "-1"),
    ("Referer", "http://[::"),
    ("Date", "\x7f"),
)


def dress(rng: Rng, post: Post) -> Post:
    """What no receiver should mind: other types, other headers, another order and case."""
    headers = list(post.headers)
    if rng.random() < 0.2:
        kept = drop(post.headers, "Content-Type")
        headers = [*kept, ("Content-Type", rng.choice(CONTENT_TYPES))]
    if rng.random() < 0.2:
        headers += rng.sample(BESIDE, rng.randrange(1, 4))
    if rng.random() < 0.2:
        rng.shuffle(headers)
        headers = [
            (rng.choice([name.lower(), name.upper(), name]), value) for name, value in headers
        ]
    return replace(post, headers=tuple(headers))
