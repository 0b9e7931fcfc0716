"""Which hosts a video may be downloaded from: the list `FAL_MEDIA_HOSTS`, and the check of a URL.

Hosts are compared by their spelling and nothing is resolved here, so a loopback or private address
is refused for the same reason as any stranger: nobody named it. Where a name may lead is another
matter, see `addresses.py`.
"""

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TypeAlias

import httpx
from typing_extensions import override

from worker.ground.deadline import call_within
from worker.ground.errors import MediaRefusedError, MediaUnavailableError

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


Address: TypeAlias = IPv4Address | IPv6Address
Resolve: TypeAlias = Callable[[str, int], Iterable[str]]
"""All addresses of a host, as text; raises OSError or UnicodeError."""

# Where nobody's video is, whoever named it.
_NEVER_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network; most systems take 0.0.0.0 for themselves
            "100.100.100.200",  # metadata of Alibaba Cloud
            "168.63.129.16",  # the host beneath a machine of Azure
            "169.254.0.0/16",  # link-local: metadata of nearly all clouds
            "192.0.0.0/24",  # protocol assignments: metadata of Oracle Cloud
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112: answers for private addresses
            "192.88.99.0/24",  # relays of 6to4
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
_NEVER_V6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, which wraps IPv4, and others
            "2001:4:112::/48",  # AS112
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, which wraps IPv4
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
            "fd00:ec2::/32",  # metadata of Amazon
            "fd20:ce::/32",  # metadata of Google
        ),
    )
)
# Only for a host that is named with its port, or by its address.
_NEAR_V4 = tuple(
    map(
        IPv4Network,
        ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
    )
)
_NEAR_V6 = (IPv6Network("::1"), IPv6Network("fc00::/7"))
# All that is given out for the public Internet; mapped and compatible addresses lie outside.
_PUBLIC_V6 = IPv6Network("2000::/3")
# The prefix by which machines without IPv4 reach it (RFC 6052).
_NAT64 = IPv6Network("64:ff9b::/96")


def resolve_by_system(host: str, port: int) -> Sequence[str]:
    """As the system does; takes as long as it takes."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def find_addresses(place: MediaPlace, resolve: Resolve, limit: timedelta) -> tuple[str, ...]:
    """The addresses to connect to, each once, all of them checked.

    Raises MediaUnavailableError if there is none or `limit` has passed, and MediaRefusedError if
    only one of them is not to be connected to: then somebody plays with the name.
    """
    if is_literal(place.host):
        found: Iterable[str] = (place.host,)
    else:
        found = _resolve_within(place, resolve, limit)
    addresses = tuple(dict.fromkeys(found))
    if not addresses:
        raise MediaUnavailableError(f"{place.host} has no address")
    for address in addresses:
        if not may_connect(address, is_pointed=place.is_pointed):
            raise MediaRefusedError(f"{place.host} leads to {address}, which is no public address")
    return addresses


def leads_to(url: str, hosts: MediaHosts, resolve: Resolve, limit: timedelta) -> bool:
    """Whether the URL names one of the hosts, and no address of it that nobody meant.

    A name that cannot be resolved here leads nowhere by itself; a proxy may be able to.
    """
    try:
        find_addresses(check_media_place(url, hosts), resolve, limit)
    except MediaUnavailableError:
        return True
    except MediaRefusedError:
        return False
    return True


def may_connect(text: str, *, is_pointed: bool) -> bool:
    """Whether the address is public or, for a host that was pointed at, this machine or nearby."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv4Address):
        is_near = _lies_in(address, _NEAR_V4)
        return not _lies_in(address, _NEVER_V4) and (is_pointed or not is_near)
    if address.scope_id is not None:
        return False
    if address in _NAT64:
        return may_connect(str(IPv4Address(address.packed[-4:])), is_pointed=False)
    is_meant = address in _PUBLIC_V6 or (is_pointed and _lies_in(address, _NEAR_V6))
    return is_meant and not _lies_in(address, _NEVER_V6)


def _lies_in(address: Address, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    return any(address in network for network in networks)


def is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _resolve_within(place: MediaPlace, resolve: Resolve, limit: timedelta) -> Sequence[str]:
    try:
        return call_within(limit, lambda: list(resolve(place.host, place.port)))
    except TimeoutError:
        raise MediaUnavailableError(f"{place.host} was not resolved in time") from None
    except (OSError, UnicodeError) as error:
        raise MediaUnavailableError(f"{place.host} cannot be resolved: {error}") from error
