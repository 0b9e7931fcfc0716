"""What a setting may be: its checks, and the types made of them."""

import re
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from psycopg.pq import Conninfo
from pydantic import AfterValidator, BeforeValidator, SecretStr
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

MAX_SECONDS = 7 * 24 * 3600
MAX_WEBHOOK_BYTES = 256 * 1024 * 1024
# 10 000 parts of 10 MiB.
MOST_UPLOAD_BYTES = 100_000 * 1024 * 1024
# What a field of the model's input takes at most.
MOST_INLINE_BYTES = 8 * 1024 * 1024

SHORTEST_TOKEN = 16
# As long as the digest it is the key of.
SHORTEST_SECRET = 32


DEFAULT_LAYOUT = "{yyyy}/{mm}/{dd}/{job_id}.{ext}"


class UnknownPolicy(StrEnum):
    """What follows once an unknown submission is proven dead."""

    RESUBMIT = "resubmit"
    HOLD = "hold"


def read_seconds(value: object) -> timedelta:
    """Seconds as text or number; nothing else, so that `1h` is refused instead of guessed."""
    try:
        seconds = value.total_seconds() if isinstance(value, timedelta) else float(str(value))
    except ValueError:
        seconds = float("nan")
    if not 1 <= seconds <= MAX_SECONDS:
        raise ValueError(f"a number of seconds from 1 to {MAX_SECONDS}")
    return timedelta(seconds=seconds)


def check_http_url(value: str) -> str:
    allowed = "an http:// or https:// URL without user, query and fragment"
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", value):
        raise ValueError(allowed)
    try:
        _ = urlsplit(value).port
    except ValueError:
        raise ValueError(allowed) from None
    return value.rstrip("/")


def check_key(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]+", value.get_secret_value()):
        raise ValueError("visible ASCII characters without spaces and line ends")
    return value


def check_long(value: SecretStr) -> SecretStr:
    """A secret that opens a page on the internet has to be hard to guess."""
    if len(value.get_secret_value()) < SHORTEST_TOKEN:
        raise ValueError(f"at least {SHORTEST_TOKEN} characters")
    return value


def check_secrets(value: SecretStr) -> SecretStr:
    """A comma list; each of them is as good as the others."""
    if min(map(len, value.get_secret_value().split(","))) < SHORTEST_SECRET:
        raise ValueError(f"a comma list of secrets with at least {SHORTEST_SECRET} characters each")
    return value


def check_password_hash(value: SecretStr) -> SecretStr:
    """As `werkzeug.security.generate_password_hash` writes it."""
    if not re.fullmatch(
        r"(scrypt:[0-9]+:[0-9]+:[0-9]+|pbkdf2:sha(256|512):[0-9]+)\$[^$\s]+\$[0-9a-f]+",
        value.get_secret_value(),
    ):
        raise ValueError(
            "a hash of werkzeug's: scrypt:N:R:P$SALT$HASH or pbkdf2:sha256:N$SALT$HASH"
        )
    return value


def check_database_url(value: str) -> str:
    try:
        url = make_url(value)
    except (ArgumentError, ValueError):
        url = make_url("none://")
    if url.drivername not in {"sqlite", "sqlite+pysqlite", "postgresql+psycopg"}:
        raise ValueError("sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME")
    if url.drivername == "postgresql+psycopg":
        known = {option.keyword.decode() for option in Conninfo.get_defaults()}
        unknown = sorted(url.query.keys() - known)
        if unknown:
            raise ValueError(
                f"without {', '.join(unknown)}, which libpq does not know; settings of the server "
                "go into options=, such as options=-csearch_path%3DNAME"
            )
    return value


def check_broker_url(value: str) -> str:
    if not re.match(r"(rediss?|amqps?|sentinel)://|redis\+socket://", value):
        raise ValueError("a redis://, rediss://, sentinel:// or amqp:// URL")
    return value


def check_file(value: str) -> str:
    try:
        Path(value).open("rb").close()
    except (OSError, ValueError):
        raise ValueError("a readable file") from None
    return value


def check_endpoint(value: str) -> str:
    """Of extend-video's family, a variant such as `/lora` too: no other takes these fields."""
    if not re.fullmatch(r"(\w[\w.-]*/){2,}extend-video(/\w[\w.-]*)?", value):
        raise ValueError("an extend-video endpoint such as owner/app/extend-video")
    return value


Seconds = Annotated[timedelta, BeforeValidator(read_seconds)]
Key = Annotated[SecretStr, AfterValidator(check_key)]
HttpUrl = Annotated[str, AfterValidator(check_http_url)]
