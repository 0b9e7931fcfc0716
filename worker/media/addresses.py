"""Where a host may lead: the addresses that a download may connect to, and finding them.

A host's name is resolved once, every address it has is checked, and the connection goes to one of
these and nowhere else. So a name that means something else the next moment changes nothing.
"""

import socket
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TypeAlias

from worker.ground.clock import call_within
from worker.ground.errors import MediaRefusedError, MediaUnavailableError
from worker.media.hosts import MediaHosts, MediaPlace, check_media_place

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
