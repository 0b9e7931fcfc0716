"""What can be asked about one request in fal's queue, and repeated: status, result, cancellation.

COMPLETED covers success, failure and cancellation alike; `error`, `error_type` and the code of the
result tell them apart (fal-api, section 3). A status call that fails is no conclusion.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol
from urllib.parse import quote

import httpx
from pydantic import SecretStr

from worker.fal.completion import Completion
from worker.fal.http import (
    BACKUP_URLS,
    MAX_REPLY_BYTES,
    TIMEOUT,
    Reply,
    ReplyTooLargeError,
    accept_url,
    build_client,
    describe_error,
    exchange_again,
)
from worker.fal.progress import Progress, read_progress
from worker.fal.truth import (
    CancelAnswer,
    Finished,
    Forgotten,
    Pending,
    Truth,
    Unclear,
    read_cancel_answer,
    read_status,
    sort_result,
)

# A result that travels as a data URI is as large as its video, and takes its time.
MAX_RESULT_BYTES = 256 * 1024 * 1024
RESULT_TIME = timedelta(minutes=3)
# With all log entries.
MAX_STATUS_BYTES = 8 * 1024 * 1024
# These path heads keep one segment more than owner and app in their follow-up URLs.
NAMESPACES = frozenset({"workflows", "comfy"})


class RequestRef(Protocol):
    """What a request is asked for by: its id, and its URLs as far as fal has returned them."""

    @property
    def endpoint(self) -> str: ...
    @property
    def status_url(self) -> str | None: ...
    @property
    def response_url(self) -> str | None: ...
    @property
    def cancel_url(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Look:
    """Where a request is, and how far; `progress` is None if no status reply told it."""

    truth: Truth
    progress: Progress | None = None


class RequestClient:
    """Asks about requests. The key goes to `base_url`, to its backup, and nowhere else.

    The backup is asked only where there was no connection; for fal's own queue it is known. `limit`
    bounds each call as a whole.
    """

    def __init__(
        self,
        base_url: str,
        credentials: SecretStr,
        *,
        backup_url: str | None = None,
        limit: timedelta | None = None,
    ) -> None:
        self._base_url = base_url
        self._backup_url = backup_url or BACKUP_URLS.get(base_url)
        self._limit = limit
        self._http = build_client(credentials, keep_connections=True)

    def look(self, ref: RequestRef, fal_request_id: str) -> Look:
        """Where the request is by fal's own words, its result and logs included. Never raises."""
        reply = self._ask_status(ref, fal_request_id)
        if not isinstance(reply, Reply):
            return Look(reply)
        status = read_status(reply)
        match status:
            case Finished():
                truth = self.read_result(ref, fal_request_id, status)
                return Look(truth, read_progress(reply.parse_json()))
            case Forgotten():
                # The status may be gone, or away, while the result can still be read.
                truth = self.read_result(ref, fal_request_id, Finished(None, None))
                return Look(truth if isinstance(truth, Completion) else status)
            case Pending():
                return Look(status, read_progress(reply.parse_json()))
            case _:
                return Look(status)

    def find_truth(self, ref: RequestRef, fal_request_id: str) -> Truth:
        """As `look`, without how far it is."""
        return self.look(ref, fal_request_id).truth

    def find_progress(
        self, ref: RequestRef, fal_request_id: str, limit: timedelta
    ) -> Progress | None:
        """How far the request is, if fal tells it in time. Never raises."""
        reply = self._ask_status(ref, fal_request_id, limit)
        if not isinstance(reply, Reply):
            return None
        known = isinstance(read_status(reply), Finished | Pending)
        return read_progress(reply.parse_json()) if known else None

    def cancel(self, ref: RequestRef, fal_request_id: str) -> CancelAnswer:
        """Ask fal to remove the request from its queue, or to stop it."""
        reply = self._ask("PUT", self._choose_url(ref.cancel_url, ref, fal_request_id, "/cancel"))
        return read_cancel_answer(reply) if isinstance(reply, Reply) else CancelAnswer.UNCLEAR

    def fetch_status(
        self, ref: RequestRef, fal_request_id: str, *, with_logs: bool = False
    ) -> Reply | Unclear:
        url = self._choose_url(ref.status_url, ref, fal_request_id, "/status")
        return self._ask("GET", url, with_logs=with_logs)

    def fetch_result(self, ref: RequestRef, fal_request_id: str) -> Reply | Unclear:
        url = self._choose_url(ref.response_url, ref, fal_request_id, "")
        return self._ask("GET", url, max_bytes=MAX_RESULT_BYTES, limit=RESULT_TIME)

    def read_result(self, ref: RequestRef, fal_request_id: str, finished: "Finished") -> Truth:
        """What the request came to, now that its status says that it has. Never raises."""
        reply = self.fetch_result(ref, fal_request_id)
        if not isinstance(reply, Reply) and finished.error is not None:
            # That it failed is known, why is not: a kept connection may have closed just now.
            reply = self.fetch_result(ref, fal_request_id)
        if not isinstance(reply, Reply):
            return reply if finished.error is None else finished.fail(fal_request_id, None)
        return sort_result(reply, finished, fal_request_id)

    @contextmanager
    def stream_status(
        self, ref: RequestRef, fal_request_id: str, *, with_logs: bool, silence: timedelta
    ) -> Iterator[httpx.Response]:
        """Open the stream of status objects, which says something at least every 15 s.

        Raises httpx.HTTPError and httpx.InvalidURL, also while it is read: the latest once nothing
        has come for as long as `silence`.
        """
        url = self._choose_url(ref.status_url, ref, fal_request_id, "/status") + "/stream"
        with self._http.stream(
            "GET",
            _ask_for_logs(url) if with_logs else url,
            headers={"Accept": "text/event-stream"},
            timeout=httpx.Timeout(TIMEOUT.connect, read=silence.total_seconds()),
        ) as response:
            yield response

    def close(self) -> None:
        self._http.close()

    def _ask_status(
        self, ref: RequestRef, fal_request_id: str, limit: timedelta | None = None
    ) -> Reply | Unclear:
        """With logs, but for too many of them no request is left in the dark."""
        url = self._choose_url(ref.status_url, ref, fal_request_id, "/status")
        try:
            with_logs = _ask_for_logs(url)
            return self._exchange("GET", with_logs, max_bytes=MAX_STATUS_BYTES, limit=limit)
        except ReplyTooLargeError:
            return self._ask("GET", url, limit=limit)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            return Unclear(describe_error(error))

    def _ask(
        self,
        method: str,
        url: str,
        *,
        max_bytes: int = MAX_REPLY_BYTES,
        with_logs: bool = False,
        limit: timedelta | None = None,
    ) -> Reply | Unclear:
        try:
            address = _ask_for_logs(url) if with_logs else url
            return self._exchange(method, address, max_bytes=max_bytes, limit=limit)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            return Unclear(describe_error(error))

    def _exchange(self, method: str, url: str, *, max_bytes: int, limit: timedelta | None) -> Reply:
        return exchange_again(
            self._http,
            self._http.build_request(method, url),
            backup_url=self._backup_url,
            max_bytes=max_bytes,
            limit=limit or self._limit,
        )

    def _choose_url(
        self, returned: str | None, ref: RequestRef, fal_request_id: str, suffix: str
    ) -> str:
        """As returned, if the key may go there; else built from owner and app (section 2.2)."""
        known = accept_url(returned, self._base_url)
        if known is not None:
            return known
        parts = ref.endpoint.split("/")
        app = "/".join(parts[: 3 if parts[0] in NAMESPACES else 2])
        return f"{self._base_url}/{app}/requests/{quote(fal_request_id, safe='')}{suffix}"


def _ask_for_logs(url: str) -> str:
    return str(httpx.URL(url).copy_merge_params({"logs": "1"}))
