"""One GET to an address that was checked, and its answer as a stream.

Python's own HTTP client, because it lets the socket be ours: what is connected to is the address
that was looked at, while certificate and `Host` are the name's. It also reads large chunks without
copying them about, which is what a download of gigabytes spends its time on.
"""

import random
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from socket import SHUT_RDWR, create_connection, socket
from threading import Event, Timer
from types import TracebackType
from typing import Self

from typing_extensions import override

from worker.ground.clock import Draw
from worker.ground.errors import MediaUnavailableError
from worker.ground.network import Network, Proxy, read_network
from worker.media.addresses import Resolve, find_addresses, is_literal, resolve_by_system
from worker.media.hosts import MediaPlace
from worker.media.pacing import Pace

MOST_ADDRESSES = 4
"""How many of a host's addresses are tried for one request."""

# nothing of the client's own headers, cookies or credentials goes to a media host
REQUEST_HEADERS = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "extend-video",
}


class BrokenError(MediaUnavailableError):
    """No connection, silence, or an answer that broke off: it may go on from there."""

    def __init__(self, message: str, retry_after: timedelta = timedelta(0)) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BusyError(BrokenError):
    """The host says that it cannot just now."""


class ThrottledError(BrokenError):
    """The host says that it was asked too often."""


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

    def bound(self, wait: timedelta) -> float:
        """The seconds of `wait`, or those left if these are fewer."""
        return min(wait.total_seconds(), self.check())


@dataclass(frozen=True, slots=True)
class MediaClient:
    """What all downloads of a process share; it holds no connections."""

    network: Network = field(default_factory=read_network)
    tls: ssl.SSLContext = field(default_factory=lambda: read_network().build_tls())
    resolve: Resolve = resolve_by_system
    connect_time: timedelta = timedelta(seconds=5)
    """Bounds looking up a name, connecting to each of its addresses, and agreeing on TLS."""
    read_time: timedelta = timedelta(seconds=30)
    """The longest silence."""
    pace: Pace | None = None
    sleep: Callable[[float], object] = time.sleep
    draw: Draw = random.random


class PinnedConnection(HTTPConnection):
    """Connects to one of the given addresses, whatever the host's name leads to by now.

    Where a proxy leads to the host it connects to that one, which looks up the name.
    """

    def __init__(
        self,
        place: MediaPlace,
        addresses: tuple[str, ...],
        client: MediaClient,
        deadline: Deadline,
    ) -> None:
        super().__init__(place.host, place.port)
        self._place = place
        self._proxy = find_proxy(place, client)
        self._addresses = addresses[:MOST_ADDRESSES]
        self._client = client
        self._deadline = deadline

    @override
    def connect(self) -> None:
        sock = self._reach() if self._proxy is None else self._dial(*self._proxy.address)
        try:
            self.sock = self._wrap(sock)
        except BaseException:
            sock.close()
            raise
        self.sock.settimeout(self._client.read_time.total_seconds())

    def _reach(self) -> socket:
        """The first address that takes the connection; raises the last one's error if none does."""
        *others, last = self._addresses
        for address in others:
            try:
                return self._dial(address, self._place.port)
            except OSError:  # the last one tells why
                continue
        return self._dial(last, self._place.port)

    def _dial(self, address: str, port: int) -> socket:
        timeout = self._deadline.bound(self._client.connect_time)
        return create_connection((address, port), timeout)

    def _wrap(self, sock: socket) -> socket:
        if self._place.url.scheme != "https":
            return sock
        sock.settimeout(self._deadline.bound(self._client.connect_time))
        if self._proxy is not None:
            self._open_tunnel(sock, self._proxy)
        return self._client.tls.wrap_socket(sock, server_hostname=self._place.host)

    def _open_tunnel(self, sock: socket, proxy: Proxy) -> None:
        """Nothing comes through it before we speak, so the answer's end is where it seems to be."""
        host = f"[{self._place.host}]" if ":" in self._place.host else self._place.host
        target = f"{host}:{self._place.port}"
        headers = {"Host": target, **proxy.authorization}
        lines = [f"CONNECT {target} HTTP/1.1", *(f"{name}: {headers[name]}" for name in headers)]
        sock.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
        with closing(HTTPResponse(sock, method="CONNECT")) as response:
            response.begin()
            if response.status != HTTPStatus.OK:
                raise OSError(f"the proxy answered {response.status}")


class Alarm:
    """Ends a connection at the deadline, so that not even single bytes of a header hold it up."""

    def __init__(self, sock: socket, deadline: Deadline) -> None:
        self._sock = sock
        self._rang = Event()
        self._timer = Timer(deadline.check(), self._publish)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()

    def check(self) -> None:
        """Raises MediaUnavailableError once the connection was ended by it."""
        if self._rang.is_set():
            raise MediaUnavailableError("the download took longer than its time limit")

    def _publish(self) -> None:
        self._rang.set()
        try:
            # of the class below TLS: whoever reads just now must not lose its state
            socket.shutdown(self._sock, SHUT_RDWR)
        except OSError:  # it is shut already
            return


class Answer:
    """The answer of a media host: status and headers, then the body as it comes."""

    def __init__(self, place: MediaPlace, response: HTTPResponse, alarm: Alarm) -> None:
        self.host = place.host
        self.status = response.status
        self._response = response
        self._alarm = alarm

    def find_header(self, name: str) -> str | None:
        """All values of the header, joined as the standard says; None if there is none."""
        values = self._response.headers.get_all(name)
        return None if values is None else ", ".join(value.strip() for value in values)

    def read(self, most: int) -> bytes:
        """What one read of the connection gives: a drip must not hide. Nothing at the end.

        Raises BrokenError and, at the deadline, MediaUnavailableError.
        """
        try:
            with _naming_break("the download broke off"):
                return self._response.read1(most)
        finally:
            self._alarm.check()


def find_proxy(place: MediaPlace, client: MediaClient) -> Proxy | None:
    return client.network.find_proxy(place.url.scheme, place.host, place.port)


@contextmanager
def send_request(
    place: MediaPlace, headers: dict[str, str], client: MediaClient, deadline: Deadline
) -> Iterator[Answer]:
    """Resolve the host, check where it leads, connect there and ask.

    Raises BrokenError, MediaRefusedError and, at the deadline, MediaUnavailableError.
    """
    limit = timedelta(seconds=deadline.bound(client.connect_time))
    addresses: tuple[str, ...] = ()
    if find_proxy(place, client) is None or is_literal(place.host):
        addresses = find_addresses(place, client.resolve, limit)
    with closing(PinnedConnection(place, addresses, client, deadline)) as connection:
        with _naming_break(f"no connection to {place.host}"):
            connection.connect()
        with Alarm(connection.sock, deadline) as alarm:
            response = _ask(connection, {**REQUEST_HEADERS, **headers}, place, client, alarm)
            with closing(response):
                yield Answer(place, response, alarm)


def _ask(
    connection: PinnedConnection,
    headers: dict[str, str],
    place: MediaPlace,
    client: MediaClient,
    alarm: Alarm,
) -> HTTPResponse:
    target, host = place.url.raw_path.decode("ascii"), place.url.netloc.decode("ascii")
    proxy = find_proxy(place, client)
    if proxy is not None and place.url.scheme == "http":
        target, headers = f"http://{host}{target}", {**headers, **proxy.authorization}
    try:
        with _naming_break(f"{place.host} gives no answer"):
            connection.request("GET", target, headers={"Host": host, **headers})
            return connection.getresponse()
    except BrokenError:
        alarm.check()
        raise


@contextmanager
def _naming_break(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, HTTPException, ValueError) as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise BrokenError(f"{what}: {reason}") from error
