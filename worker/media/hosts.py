"""Which hosts a video may be downloaded from: the list `FAL_MEDIA_HOSTS`, and the check of a URL.

Hosts are compared by their spelling and nothing is resolved here, so a loopback or private address
is refused for the same reason as any stranger: nobody named it. Where a name may lead is another
matter, see `addresses.py`.
"""

import ipaddress
import re
from dataclasses import dataclass

import httpx
from typing_extensions import override

from worker.ground.errors import MediaRefusedError

DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_PORT = 65535
MAX_NAME_LENGTH = 253

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# resolvers read 2130706433, 0x7f.1 and 127.1 as addresses: a last label like these marks one
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ENTRY = re.compile(r"(?P<host>(?:\*\.)?\[[^\[\]]*\]|[^:\[\]]+)(?::(?P<port>.*))?")


@dataclass(frozen=True, slots=True)
class HostRule:
    """One entry of the list; `name` is in lower case, without `*.` and without brackets."""

    name: str
    wildcard: bool
    port: int | None

    def allows(self, scheme: str, host: str, port: int) -> bool:
        """Say whether this entry names the host.

        Without a port only https on 443 is meant; a named port allows http as well.
        """
        named = host.endswith(f".{self.name}") if self.wildcard else host == self.name
        if self.port is None:
            return named and scheme == "https" and port == DEFAULT_PORTS["https"]
        return named and port == self.port

    @property
    def is_pointed(self) -> bool:
        """Whether whoever wrote it meant one place, which may be this machine or its network."""
        return not self.wildcard and (self.port is not None or _is_address(self.name))

    @override
    def __str__(self) -> str:
        star = "*." if self.wildcard else ""
        return f"{star}{_join_port(self.name, self.port)}"


@dataclass(frozen=True, slots=True)
class MediaHosts:
    """All entries of the list; its text reads back as the same value."""

    rules: tuple[HostRule, ...]

    @override
    def __str__(self) -> str:
        return ",".join(map(str, self.rules))


@dataclass(frozen=True, slots=True)
class MediaPlace:
    """A URL that may be downloaded from, and the host in the one spelling that was compared."""

    url: httpx.URL
    host: str
    port: int
    is_pointed: bool
    """An entry means just this host, so it may be on this machine or its network."""


def parse_media_hosts(text: str) -> MediaHosts:
    """Read a comma list such as `*.fal.media,127.0.0.1:8123,[::1]:80`.

    Raises ValueError that names the first bad entry and the reason.
    """
    return MediaHosts(tuple(_parse_rule(entry.strip()) for entry in text.split(",")))


def check_media_url(url: str, hosts: MediaHosts) -> httpx.URL:
    """Return the parsed URL if it may be downloaded from; raises MediaRefusedError.

    The message never holds path or query, because a signed URL is a secret.
    """
    return check_media_place(url, hosts).url


def check_media_place(url: str, hosts: MediaHosts) -> MediaPlace:
    """As `check_media_url`, and where it leads."""
    parsed = _parse_url(url)
    host = _spell_host(parsed.raw_host.decode("ascii"))
    if host is None:
        raise MediaRefusedError("the video URL names no plain host name or address")
    port = DEFAULT_PORTS[parsed.scheme] if parsed.port is None else parsed.port
    rules = [rule for rule in hosts.rules if rule.allows(parsed.scheme, host, port)]
    if not rules:
        place = f"{parsed.scheme}://{_join_port(host, port)}"
        raise MediaRefusedError(f"{place} is not allowed by FAL_MEDIA_HOSTS ({hosts})")
    return MediaPlace(parsed, host, port, any(rule.is_pointed for rule in rules))


def _parse_url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise MediaRefusedError("the video URL cannot be read") from error
    if parsed.scheme not in DEFAULT_PORTS:
        raise MediaRefusedError("the video URL is neither https nor http")
    if parsed.userinfo:
        raise MediaRefusedError("the video URL carries a user name or password")
    return parsed


def _parse_rule(entry: str) -> HostRule:
    if not entry:
        raise ValueError("an empty entry; write host or host:port, separated by single commas")
    if "://" in entry:
        raise ValueError(f"{entry!r}: leave out the scheme")
    if found := re.search(r"[/?#@\\%]", entry):
        raise ValueError(f"{entry!r}: {found[0]!r} is not allowed, write host or host:port")
    parts = _ENTRY.fullmatch(entry.lower())
    if parts is None:
        raise ValueError(f"{entry!r}: not host or host:port; IPv6 addresses stand in brackets")
    name, wildcard = _parse_name(parts["host"], entry)
    return HostRule(name, wildcard, _parse_port(parts["port"], entry))


def _parse_name(text: str, entry: str) -> tuple[str, bool]:
    wildcard = text.startswith("*.")
    bare = text.removeprefix("*.")
    if "*" in bare:
        raise ValueError(f"{entry!r}: '*' may only be the whole first label, as in *.fal.media")
    bracketed = bare.startswith("[")
    name = _spell_host(bare[1:-1] if bracketed else bare)
    if name is None or bracketed != (":" in name):
        raise ValueError(f"{entry!r}: neither an ASCII host name nor an IP address")
    if wildcard and _is_address(name):
        raise ValueError(f"{entry!r}: '*.' cannot stand before an IP address")
    return name, wildcard


def _parse_port(text: str | None, entry: str) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= MAX_PORT:
        raise ValueError(f"{entry!r}: the port must be a number from 1 to {MAX_PORT}")
    return int(text)


def _spell_host(host: str) -> str | None:
    """Give the one spelling in which hosts are compared; None for all that is not plain.

    Not plain are escapes, empty labels (also a trailing dot), addresses in short, octal,
    hexadecimal or decimal form, and IPv6 zones.
    """
    if ":" not in host and not _NAME.fullmatch(host):
        return None
    if len(host) > MAX_NAME_LENGTH or "%" in host:
        return None
    if not _is_address(host):
        return host
    try:
        return ipaddress.ip_address(host).compressed
    except ValueError:
        return None


def _is_address(host: str) -> bool:
    return ":" in host or _NUMBER.fullmatch(host.rpartition(".")[2]) is not None


def _join_port(host: str, port: int | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"
