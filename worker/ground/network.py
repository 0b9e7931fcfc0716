"""Proxies and certificate authorities, by the usual variables, the same for every HTTP client.

API, uploads and downloads read them here, so that a network that needs them carries a job to its
end or submits nothing.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import certifi
from typing_extensions import override

from worker.ground.errors import InvalidSettingsError, Violation
from worker.ground.log import mask_url

if TYPE_CHECKING:
    import httpx

SCHEMES = ("http", "https", "all")
DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Network:
    """Which proxy leads to a host, and whose certificates are believed."""

    proxies: Mapping[str, httpx.Proxy]
    """By the scheme of the requested URL, or `all`."""
    exempt: tuple[str, ...] = ()
    ca_file: str | None = None
    ca_directory: str | None = None

    def find_proxy(self, scheme: str, host: str, port: int) -> httpx.Proxy | None:
        proxy = self.proxies.get(scheme) or self.proxies.get("all")
        if proxy is None or any(_exempts(entry, host, port) for entry in self.exempt):
            return None
        return proxy

    def build_tls(self) -> ssl.SSLContext:
        """Checks certificates and names, from TLS 1.2 on. Raises OSError for unreadable files."""
        ca_file = self.ca_file or (None if self.ca_directory else certifi.where())
        context = ssl.create_default_context(cafile=ca_file, capath=self.ca_directory)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    def build_transport(self, limits: httpx.Limits) -> httpx.BaseTransport:
        """What an httpx client sends by; to be given together with `trust_env=False`.

        It sends each request by the proxy that leads to its host, or directly.
        """
        import httpx  # settings read the network, too, and start without it

        options: dict[str, Any] = {"verify": self.build_tls(), "limits": limits, "trust_env": False}
        ways = {
            proxy: httpx.HTTPTransport(**options, proxy=proxy)
            for proxy in (None, *self.proxies.values())
        }
        find_proxy = self.find_proxy

        class Routes(httpx.BaseTransport):
            @override
            def handle_request(self, request: httpx.Request) -> httpx.Response:
                url = request.url
                port = url.port or DEFAULT_PORTS.get(url.scheme, 0)
                return ways[find_proxy(url.scheme, url.host, port)].handle_request(request)

            @override
            def close(self) -> None:
                for transport in ways.values():
                    transport.close()

        return Routes()


def read_network(environ: Mapping[str, str] = os.environ) -> Network:
    """From the environment, in capitals or not. InvalidSettingsError names each wrong variable."""
    wrong: list[Violation] = []
    proxies = dict[str, "httpx.Proxy"]()
    for scheme in SCHEMES:
        name, value = _read(environ, f"{scheme}_proxy")
        if value and (proxy := _parse_proxy(value)):
            proxies[scheme] = proxy
        elif value:
            allowed = "must be an http:// URL of a proxy, such as http://proxy:3128"
            wrong.append(Violation(name, mask_url(value), allowed))
    exempt = _read(environ, "no_proxy")[1].lower().replace(" ", "").split(",")
    ca_file = environ.get("SSL_CERT_FILE") or None
    ca_directory = environ.get("SSL_CERT_DIR") or None
    network = Network(proxies, tuple(filter(None, exempt)), ca_file, ca_directory)
    if ca_directory and not os.path.isdir(ca_directory):  # noqa: PTH112 - any text
        wrong.append(Violation("SSL_CERT_DIR", ca_directory, "must be a directory"))
    elif ca_file:
        try:
            network.build_tls()
        except (OSError, ValueError) as error:
            allowed = f"must be a readable file of certificates in PEM: {error}"
            wrong.append(Violation("SSL_CERT_FILE", ca_file, allowed))
    if wrong:
        raise InvalidSettingsError(tuple(wrong))
    return network


def parse_date(text: str | None) -> datetime | None:
    """The time in a header such as `Date`; None if it holds none."""
    try:
        at = parsedate_to_datetime(text or "")
    except (ValueError, OverflowError):
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def read_retry_after(text: str | None, longest: timedelta, now: datetime) -> timedelta:
    """How long the header `Retry-After` says to wait, in seconds or until a date, up to `longest`.

    Zero if it says nothing of use.
    """
    text = (text or "").strip()
    if text.isascii() and text.isdecimal():
        return timedelta(seconds=min(float(text), longest.total_seconds()))
    at = parse_date(text)
    return timedelta() if at is None else min(max(at - now, timedelta()), longest)


def _read(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    """The variable's name and value; as for other programs the one in small letters comes first."""
    for spelling in (name, name.upper()):
        if environ.get(spelling):
            return spelling, environ[spelling]
    return name.upper(), ""


def _parse_proxy(text: str) -> httpx.Proxy | None:
    import httpx

    try:
        proxy = httpx.Proxy(text if "://" in text else f"http://{text}")
    except (ValueError, httpx.InvalidURL):
        return None
    return proxy if proxy.url.scheme == "http" and proxy.url.host else None


def _exempts(entry: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY means the host: `*`, an address or network, or a domain.

    A domain includes its subdomains; with a port it means that port alone.
    """
    host = host.strip("[]").lower()
    with suppress(ValueError):
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    try:
        parts = urlsplit(f"//{entry.rpartition('://')[2]}")
        name, of_port = parts.hostname or "", parts.port
    except ValueError:
        return False
    name = name.removeprefix("*").removeprefix(".")
    is_meant = entry == "*" or host == name or host.endswith(f".{name}")
    return is_meant and of_port in {None, port}
