"""One GET to an address that was checked, and its response as a stream.

httpcore connects through a network backend of ours: to an address that was checked and to no other,
while certificate and `Host` are the name's. Every read and write of the connection ends at the
deadline of the whole download (ADR 22). No connection is kept for another request.
"""

import random
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Lock

import httpcore
from typing_extensions import override

from worker.ground.clock import Backoff, Draw
from worker.ground.errors import MediaRefusedError, MediaUnavailableError
from worker.ground.network import Network, read_network
from worker.media.hosts import MediaPlace, Resolve, find_addresses, is_address, resolve_by_system

SECOND = timedelta(seconds=1)
RESUMPTIONS = 5
REPETITIONS = 2
MOST_ADDRESSES = 4
"""How many of a host's addresses are tried for one request."""
LARGEST_CHUNK = 256 * 1024
CHUNKS_PER_SECOND = 8
# Nothing of the client's own headers, cookies or credentials goes to a media host.
REQUEST_HEADERS = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "extend-video",
}
HTTP_ERRORS = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.ProxyError,
)


class BrokenError(MediaUnavailableError):
    """No connection, silence, or a response that broke off: the download may be resumed."""

    tries = RESUMPTIONS
    backoff = Backoff(SECOND / 5, 5 * SECOND)

    def __init__(self, message: str, retry_after: timedelta = timedelta(0)) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BusyError(BrokenError):
    """408, 425, 429 or 5xx: the host cannot just now."""

    tries = REPETITIONS
    backoff = Backoff(SECOND, 5 * SECOND)


class Deadline:
    """The end of a whole download."""

    def __init__(self, limit: timedelta) -> None:
        self._end = time.monotonic() + limit.total_seconds()

    def check(self) -> float:
        """The seconds left. Raises MediaUnavailableError if there are none."""
        remaining = self._end - time.monotonic()
        if remaining <= 0:
            raise MediaUnavailableError("the download took longer than its time limit")
        return remaining

    def bound(self, seconds: float | None) -> float:
        """The fewer of these seconds and those left."""
        remaining = self.check()
        return remaining if seconds is None else min(seconds, remaining)


class Pace:
    """A bound on bytes per second, shared by all downloads of a process.

    A bucket that fills at `rate` and holds a second of it. A download that takes more than there is
    waits until the debt is paid, so those who come at the same time wait one after the other.
    """

    def __init__(
        self,
        rate: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._left = 0.0
        self._at = clock()
        self._lock = Lock()

    @property
    def chunk_bytes(self) -> int:
        """The most to read at once, so that no wait is long."""
        return max(1, min(LARGEST_CHUNK, self._rate // CHUNKS_PER_SECOND))

    def take(self, size: int) -> None:
        """Return when so many bytes may have come."""
        with self._lock:
            now = self._clock()
            filled = self._left + (now - self._at) * self._rate
            self._left, self._at = min(filled, self._rate) - size, now
            wait = -self._left / self._rate
        if wait > 0:
            self._sleep(wait)


@dataclass(frozen=True, slots=True)
class MediaClient:
    """What all downloads of a process share; it holds no connections."""

    network: Network = field(default_factory=read_network)
    tls: ssl.SSLContext = field(default_factory=lambda: read_network().build_tls())
    resolve: Resolve = resolve_by_system
    connect_time: timedelta = timedelta(seconds=5)
    """Bounds resolving a name, connecting to each of its addresses, and agreeing on TLS."""
    read_time: timedelta = timedelta(seconds=30)
    """The longest silence."""
    pace: Pace | None = None
    sleep: Callable[[float], object] = time.sleep
    draw: Draw = random.random


@dataclass(frozen=True, slots=True)
class Response:
    """What a media host answers: status and headers, then the body as it comes."""

    host: str
    status: int
    headers: list[tuple[bytes, bytes]]
    stream: Iterable[bytes]

    def find_header(self, name: str) -> str | None:
        """All values of the header, joined as the standard says; None if there is none."""
        wanted = name.encode()
        values = [value for key, value in self.headers if key.lower() == wanted]
        return ", ".join(value.decode("latin-1").strip() for value in values) if values else None


class _Stream(httpcore.NetworkStream):
    """Every read and write ends at the deadline, so that not even single bytes hold it up."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline, most: int) -> None:
        self._stream, self._deadline, self._most = stream, deadline, most
        self.close, self.get_extra_info = stream.close, stream.get_extra_info  # type: ignore[method-assign]

    @override
    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """More than httpcore requests, or less where there is a pace: it takes what it gets."""
        return self._stream.read(self._most, self._deadline.bound(timeout))

    @override
    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.bound(timeout))

    @override
    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """The brackets of an IPv6 address are the URL's, not the certificate's."""
        name = None if server_hostname is None else server_hostname.strip("[]")
        stream = self._stream.start_tls(ssl_context, name, self._deadline.bound(timeout))
        return _Stream(stream, self._deadline, self._most)


class _PinnedBackend(httpcore.SyncBackend):
    """Connects to one of the given addresses, wherever the host's name leads by now."""

    def __init__(self, addresses: tuple[str, ...], deadline: Deadline, most: int) -> None:
        self._addresses, self._deadline, self._most = addresses, deadline, most

    @override
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """By the first address that takes the connection; raises the last one's error."""
        failure: Exception = httpcore.ConnectError("no address")
        for address in self._addresses:
            try:
                bound = self._deadline.bound(timeout)
                stream = super().connect_tcp(address, port, bound, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _Stream(stream, self._deadline, self._most)
        raise failure


@contextmanager
def send_request(
    place: MediaPlace, headers: dict[str, str], client: MediaClient, deadline: Deadline
) -> Iterator[Response]:
    """Resolve the host, check where it leads, connect there and send a GET.

    Where a proxy leads to the host, it connects to that one, which resolves the name.

    Raises BrokenError, MediaRefusedError and, at the deadline, MediaUnavailableError; also while
    the body is read.
    """
    connect, read = client.connect_time.total_seconds(), client.read_time.total_seconds()
    proxy = client.network.find_proxy(place.url.scheme, place.host, place.port)
    addresses: tuple[str, ...] = ()
    if proxy is None or is_address(place.host):
        limit = timedelta(seconds=deadline.bound(connect))
        addresses = find_addresses(place, client.resolve, limit)[:MOST_ADDRESSES]
    most = LARGEST_CHUNK if client.pace is None else client.pace.chunk_bytes
    if proxy is None:
        backend = _PinnedBackend(addresses, deadline, most)
        pool = httpcore.ConnectionPool(client.tls, network_backend=backend)
    else:
        host, port = proxy.url.host, proxy.url.port or 80
        pool = httpcore.HTTPProxy(
            httpcore.URL(scheme="http", host=host, port=port, target="/"),
            proxy_auth=proxy.raw_auth,
            ssl_context=client.tls,
            network_backend=_PinnedBackend((host,), deadline, most),
        )
    shown = f"[{place.host}]" if ":" in place.host and proxy is not None else place.host
    url = httpcore.URL(
        scheme=place.url.scheme, host=shown, port=place.port, target=place.url.raw_path
    )
    sent = {"Host": place.url.netloc.decode("ascii"), **REQUEST_HEADERS, **headers}
    fields = [(name.encode(), value.encode("latin-1")) for name, value in sent.items()]
    timeouts = {"connect": connect, "read": read, "write": read, "pool": connect}
    what = f"{place.host} gives no answer"
    try:
        with pool, pool.stream("GET", url, headers=fields, extensions={"timeout": timeouts}) as one:
            what = "the download broke off"
            yield Response(place.host, one.status, one.headers, one.iter_stream())
    except HTTP_ERRORS as error:
        deadline.check()
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if "Transfer-Encoding" in reason:
            raise MediaRefusedError(f"{place.host} sends the video encoded: {reason}") from error
        raise BrokenError(f"{what}: {reason}") from error
