"""The way out of this machine: proxies and certificate authorities, the same for every HTTP client.

They are the usual variables of the environment. API, uploads and downloads read them here, so that
a network that needs them carries a job to its end or submits nothing.
"""

import os
import re
import ssl
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import unquote, urlsplit

import certifi
import httpx
from typing_extensions import override

from worker.ground.errors import InvalidSettingsError, Violation

SCHEMES = ("http", "https", "all")
DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; its password is shown nowhere."""

    url: str = field(repr=False)

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return str(parts.hostname), parts.port or DEFAULT_PORTS["http"]

    @property
    def authorization(self) -> dict[str, str]:
        """The header that opens it, if it asks for a user."""
        parts = urlsplit(self.url)
        if parts.username is None:
            return {}
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return {"Proxy-Authorization": f"Basic {b64encode(user.encode()).decode()}"}


@dataclass(frozen=True, slots=True)
class Network:
    """Which proxy leads to a host, and whose certificates are believed."""

    proxies: Mapping[str, Proxy]
    """By the scheme of what is asked for, or `all`."""
    exempt: tuple[str, ...] = ()
    ca_file: str | None = None
    ca_directory: str | None = None

    def find_proxy(self, scheme: str, host: str, port: int) -> Proxy | None:
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
        """What an httpx client sends by; to be given together with `trust_env=False`."""
        return _Routes(self, limits)


def read_network(environ: Mapping[str, str] = os.environ) -> Network:
    """From the environment, capitals or not. InvalidSettingsError names each wrong variable."""
    wrong: list[Violation] = []
    proxies = dict[str, Proxy]()
    for scheme in SCHEMES:
        name, value = _read(environ, f"{scheme}_proxy")
        if value:
            url = value if "://" in value else f"http://{value}"
            proxies[scheme] = Proxy(url)
            if not _is_proxy(url):
                allowed = "must be an http:// URL of a proxy, such as http://proxy:3128"
                wrong.append(Violation(name, _hide_user(value), allowed))
    _, exempt = _read(environ, "no_proxy")
    entries = tuple(entry.strip().lower() for entry in exempt.split(",") if entry.strip())
    ca_file, ca_directory = environ.get("SSL_CERT_FILE"), environ.get("SSL_CERT_DIR")
    network = Network(proxies, entries, ca_file or None, ca_directory or None)
    wrong += _check_authorities(network)
    if wrong:
        raise InvalidSettingsError(tuple(wrong))
    return network


class _Routes(httpx.BaseTransport):
    """Sends each request by the proxy that leads to its host, or directly."""

    def __init__(self, network: Network, limits: httpx.Limits) -> None:
        self._network = network
        tls = network.build_tls()
        self._direct = httpx.HTTPTransport(verify=tls, limits=limits, trust_env=False)
        self._by_proxy = {
            proxy: httpx.HTTPTransport(
                verify=tls, limits=limits, trust_env=False, proxy=httpx.Proxy(proxy.url)
            )
            for proxy in set(network.proxies.values())
        }

    @override
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        port = url.port or DEFAULT_PORTS.get(url.scheme, 0)
        proxy = self._network.find_proxy(url.scheme, url.host, port)
        transport = self._direct if proxy is None else self._by_proxy[proxy]
        return transport.handle_request(request)

    @override
    def close(self) -> None:
        for transport in (self._direct, *self._by_proxy.values()):
            transport.close()


def _read(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    """The variable's name and value; as for other programs the one in small letters comes first."""
    for spelling in (name, name.upper()):
        if environ.get(spelling):
            return spelling, environ[spelling]
    return name.upper(), ""


def _is_proxy(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
        httpx.Proxy(url)
    except (ValueError, httpx.InvalidURL):
        return False
    return parts.scheme == "http" and bool(parts.hostname)


def _hide_user(value: str) -> str:
    user, at, place = value.rpartition("@")
    return f"{user.partition('://')[0]}://****{at}{place}" if user else value


def _check_authorities(network: Network) -> list[Violation]:
    if network.ca_directory and not os.path.isdir(network.ca_directory):  # noqa: PTH112 - any text
        return [Violation("SSL_CERT_DIR", network.ca_directory, "must be a directory")]
    if network.ca_file:
        try:
            network.build_tls()
        except (OSError, ValueError) as error:
            allowed = f"must be a readable file of certificates in PEM: {error}"
            return [Violation("SSL_CERT_FILE", network.ca_file, allowed)]
    return []


def _exempts(entry: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY means the host: `*`, an address or network, or a domain.

    A domain means what is below it, too; a port after it means just this one.
    """
    if entry == "*":
        return True
    entry = entry.rpartition("://")[2]
    host = host.strip("[]").lower()
    network = _parse_network(entry)
    if network is not None:
        address = _parse_address(host)
        return address is not None and address in network
    name, of_port = _split_port(entry)
    if of_port not in {None, port}:
        return False
    name = name.removeprefix("*").removeprefix(".")
    return host == name or host.endswith(f".{name}")


def _parse_network(entry: str) -> IPv4Network | IPv6Network | None:
    bare = re.sub(r"^\[([^\]]*)\](?=$|/)", r"\1", entry)
    try:
        return ip_network(bare, strict=False)
    except ValueError:
        return None


def _parse_address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _split_port(entry: str) -> tuple[str, int | None]:
    try:
        parts = urlsplit(f"//{entry}")
        name, port = parts.hostname, parts.port
    except ValueError:
        return entry, None
    return name or entry, port
