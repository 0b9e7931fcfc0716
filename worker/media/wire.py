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
from http.client import HTTPConnection, HTTPException, HTTPResponse
from socket import SHUT_RDWR, create_connection, socket
from threading import Event, Timer
from types import TracebackType
from typing import Self

import httpx
from typing_extensions import override

from worker.backoff import Draw
from worker.errors import MediaUnavailableError
from worker.media.addresses import Resolve, find_addresses, resolve_by_system
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


def build_tls() -> ssl.SSLContext:
    """Checks certificates and names, from TLS 1.2 on, whatever the system itself allows."""
    context = httpx.create_ssl_context(trust_env=False)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@dataclass(frozen=True, slots=True)
class MediaClient:
    """What all downloads of a process share; it holds no connections."""

    tls: ssl.SSLContext = field(default_factory=build_tls)
    resolve: Resolve = resolve_by_system
    connect_time: timedelta = timedelta(seconds=5)
    """Bounds looking up a name, connecting to each of its addresses, and agreeing on TLS."""
    read_time: timedelta = timedelta(seconds=30)
    """The longest silence."""
    pace: Pace | None = None
    sleep: Callable[[float], object] = time.sleep
    draw: Draw = random.random


class PinnedConnection(HTTPConnection):
    """Connects to one of the given addresses, whatever the host's name leads to by now."""

    def __init__(
        self,
        place: MediaPlace,
        addresses: tuple[str, ...],
        client: MediaClient,
        deadline: Deadline,
    ) -> None:
        super().__init__(place.host, place.port)
        self._place = place
        self._addresses = addresses[:MOST_ADDRESSES]
        self._client = client
        self._deadline = deadline

    @override
    def connect(self) -> None:
        sock = self._reach()
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
                return self._dial(address)
            except OSError:  # the last one tells why
                continue
        return self._dial(last)

    def _dial(self, address: str) -> socket:
        timeout = self._deadline.bound(self._client.connect_time)
        return create_connection((address, self._place.port), timeout)

    def _wrap(self, sock: socket) -> socket:
        if self._place.url.scheme != "https":
            return sock
        sock.settimeout(self._deadline.bound(self._client.connect_time))
        return self._client.tls.wrap_socket(sock, server_hostname=self._place.host)


class Alarm:
    """Ends a connection at the deadline, so that not even single bytes of a header hold it up."""

    def __init__(self, sock: socket, deadline: Deadline) -> None:
        self._sock = sock
        self._rang = Event()
        self._timer = Timer(deadline.check(), self._ring)
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

    def _ring(self) -> None:
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


@contextmanager
def send_request(
    place: MediaPlace, headers: dict[str, str], client: MediaClient, deadline: Deadline
) -> Iterator[Answer]:
    """Resolve the host, check where it leads, connect there and ask.

    Raises BrokenError, MediaRefusedError and, at the deadline, MediaUnavailableError.
    """
    limit = timedelta(seconds=deadline.bound(client.connect_time))
    addresses = find_addresses(place, client.resolve, limit)
    with closing(PinnedConnection(place, addresses, client, deadline)) as connection:
        with _naming_break(f"no connection to {place.host}"):
            connection.connect()
        with Alarm(connection.sock, deadline) as alarm:
            response = _ask(connection, {**REQUEST_HEADERS, **headers}, place, alarm)
            with closing(response):
                yield Answer(place, response, alarm)


def _ask(
    connection: PinnedConnection, headers: dict[str, str], place: MediaPlace, alarm: Alarm
) -> HTTPResponse:
    target, host = place.url.raw_path.decode("ascii"), place.url.netloc.decode("ascii")
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
