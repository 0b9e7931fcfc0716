"""Which hosts a video may be downloaded from: the list `FAL_MEDIA_HOSTS`, and the check of a URL.

Hosts are compared by their spelling first, so a loopback or private address is refused for the same
reason as any other host: it is not on the list. Then a host's name is resolved once, every address
it has is checked, and the connection goes to one of these and nowhere else (`pinned.py`). So a name
that means something else the next moment changes nothing.
"""

import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

import httpx
from typing_extensions import override

from worker.ground.clock import call_within
from worker.ground.errors import MediaRefusedError, MediaUnavailableError

DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_PORT = 65535
MAX_NAME_LENGTH = 253

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# resolvers read 2130706433, 0x7f.1 and 127.1 as addresses: a last label like these marks one
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ENTRY = re.compile(
    r"(?P<star>\*\.)?(?:\[(?P<v6>[^\[\]]*)\]|(?P<name>[^:\[\]*]+))(?::(?P<port>[0-9]{1,5}))?"
)


@dataclass(frozen=True, slots=True)
class HostRule:
    """One entry of the list; `name` is in lower case, without `*.` and without brackets."""

    name: str
    wildcard: bool
    port: int | None

    def allows(self, scheme: str, host: str, port: int) -> bool:
        """Whether this entry names the host.

        Without a port only https on 443 is meant; a named port allows http as well.
        """
        named = host.endswith(f".{self.name}") if self.wildcard else host == self.name
        if self.port is None:
            return named and scheme == "https" and port == DEFAULT_PORTS["https"]
        return named and port == self.port

    @property
    def is_pointed(self) -> bool:
        """Whether it names one place alone, which may be this machine or its network."""
        return not self.wildcard and (self.port is not None or is_address(self.name))

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


def _parse_rule(entry: str) -> HostRule:
    parts = _ENTRY.fullmatch(entry.lower())
    name = None if parts is None else _spell_host(parts["v6"] or parts["name"] or "")
    if parts is not None and name is not None:
        port = None if parts["port"] is None else int(parts["port"])
        is_spelt = (parts["v6"] is not None) == (":" in name)
        is_name = parts["star"] is None or not is_address(name)
        if is_spelt and is_name and (port is None or 1 <= port <= MAX_PORT):
            return HostRule(name, parts["star"] is not None, port)
    raise ValueError(
        f"{entry!r}: must be an ASCII host name, which may begin with *. as its first label, or an "
        f"IP address, IPv6 in brackets; then perhaps a port from 1 to {MAX_PORT}, as in host:port"
    )


def check_media_place(url: str, hosts: MediaHosts) -> MediaPlace:
    """Where the URL leads, if it may be downloaded from; raises MediaRefusedError.

    The message never holds path or query, because a signed URL is a secret.
    """
    try:
        parsed = httpx.URL(url)
        host = _spell_host(parsed.raw_host.decode("ascii"))
    except (httpx.InvalidURL, ValueError) as error:
        raise MediaRefusedError("the video URL cannot be read") from error
    if parsed.scheme not in DEFAULT_PORTS or parsed.userinfo or host is None:
        reason = "must be https or http, name a plain host or address, and carry no user name"
        raise MediaRefusedError(f"the video URL {reason}")
    port = DEFAULT_PORTS[parsed.scheme] if parsed.port is None else parsed.port
    rules = [rule for rule in hosts.rules if rule.allows(parsed.scheme, host, port)]
    if not rules:
        place = f"{parsed.scheme}://{_join_port(host, port)}"
        raise MediaRefusedError(f"{place} is not allowed by FAL_MEDIA_HOSTS ({hosts})")
    return MediaPlace(parsed, host, port, any(rule.is_pointed for rule in rules))


def _spell_host(host: str) -> str | None:
    """Give the one spelling in which hosts are compared; None for all that is not plain.

    Not plain are escapes, empty labels (also a trailing dot), addresses in short, octal,
    hexadecimal or decimal form, and IPv6 zones.
    """
    if len(host) > MAX_NAME_LENGTH or "%" in host:
        return None
    if not is_address(host):
        return host if _NAME.fullmatch(host) else None
    try:
        return ip_address(host).compressed
    except ValueError:
        return None


def is_address(host: str) -> bool:
    """Whether resolvers read it as an address and not as a name."""
    return ":" in host or _NUMBER.fullmatch(host.rpartition(".")[2]) is not None


def _join_port(host: str, port: int | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"


Resolve: TypeAlias = Callable[[str, int], Iterable[str]]
"""All addresses of a host, as text; raises OSError or UnicodeError."""

# Never connected to, even if the list names the host.
_NEVER = [
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # this network; most systems take 0.0.0.0 for themselves
        "100.100.100.200",  # metadata of Alibaba Cloud
        "168.63.129.16",  # the host beneath a machine of Azure
        "169.254.0.0/16",  # link-local: metadata of nearly all clouds
        "192.0.0.0/24",  # protocol assignments: metadata of Oracle Cloud
        "fd00:ec2::/32",  # metadata of Amazon
        "fd20:ce::/32",  # metadata of Google
        *("224.0.0.0/4", "240.0.0.0/4"),  # multicast; reserved, and broadcast
        *("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15"),  # documentation
        *("2001:db8::/32", "3fff::/20"),  # and benchmarks
        *("192.31.196.0/24", "192.175.48.0/24", "2620:4f:8000::/48"),  # AS112
        *("192.88.99.0/24", "2002::/16", "2001::/23"),  # 6to4, Teredo: they wrap IPv4
    )
]
# Only for a host that is named with its port, or by its address.
_NEAR = [
    ip_network(text)
    for text in (
        *("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
        *("::1", "fc00::/7"),
    )
]
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
    only one of them is not to be connected to: the name may be an attacker's.
    """
    found: Sequence[str] = (place.host,)
    if not is_address(place.host):
        try:
            found = call_within(limit, lambda: list(resolve(place.host, place.port)))
        except TimeoutError:
            raise MediaUnavailableError(f"{place.host} was not resolved in time") from None
        except (OSError, UnicodeError) as error:
            raise MediaUnavailableError(f"{place.host} cannot be resolved: {error}") from error
    addresses = tuple(dict.fromkeys(found))
    if not addresses:
        raise MediaUnavailableError(f"{place.host} has no address")
    for address in addresses:
        if not may_connect(address, is_pointed=place.is_pointed):
            raise MediaRefusedError(f"{place.host} leads to {address}, which is no public address")
    return addresses


def leads_to(url: str, hosts: MediaHosts, resolve: Resolve, limit: timedelta) -> bool:
    """Whether the URL names one of the hosts, and all its addresses may be connected to.

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
    """Whether the address is public or, for a host that an entry names alone, near."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return False
        if address in _NAT64:
            return may_connect(str(IPv4Address(address.packed[-4:])), is_pointed=False)
    if any(address in network for network in _NEVER):
        return False
    if any(address in network for network in _NEAR):
        return is_pointed
    return isinstance(address, IPv4Address) or address in _PUBLIC_V6
