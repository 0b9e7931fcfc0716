"""fal's platform API (fal-api, section 9): the request listing, signed URLs, OpenAPI documents.

The listing is the only documented way to a request whose submit reply was lost. Whether it shows
requests that still run, and their inputs, is not promised: absence from it proves little by itself.
A signed URL lets its holder read a private file until it expires, so it is a credential: it is
used at once, and neither stored nor logged.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import httpx
from pydantic import JsonValue, SecretStr

from worker.fal.completion import Completion
from worker.fal.errors import describe_platform_error
from worker.fal.http import (
    ACCOUNT_CODES,
    Reply,
    build_client,
    is_transient,
    name_origin,
    parse_url,
    query,
)
from worker.ground.errors import MediaRefusedError, MediaUnavailableError, SchemaUnreadableError
from worker.ground.network import parse_date

PAGE = 100
MAX_PAGES = 50
MAX_PAGE_BYTES = 64 * 1024 * 1024
OK, FIRST_ERROR = 200, 400
CLOCK_TOLERANCE = timedelta(minutes=1)
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
# fal's bounds for the validity of a signed URL.
MIN_LIFE = timedelta(seconds=1)
MAX_LIFE = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class ListedRequest:
    """One request in fal's own list; input and output are None where they are not kept."""

    fal_request_id: str
    ended: bool
    status_code: int | None
    input: JsonValue
    output: JsonValue

    @property
    def completion(self) -> Completion | None:
        """The end that it states, as a webhook would; None if it has none or keeps no output."""
        if not self.ended or self.output is None or self.status_code is None:
            return None
        if self.status_code < FIRST_ERROR:
            return Completion(self.fal_request_id, None, "OK", self.output, None)
        error = f"HTTP {self.status_code}"
        return Completion(self.fal_request_id, None, "ERROR", self.output, error)


@dataclass(frozen=True, slots=True)
class Listing:
    """What was read of it, and why that may not be all; `gap` is None if nothing is missing.

    `lists_all` says that every request is there, if perhaps without its input.
    """

    requests: tuple[ListedRequest, ...]
    gap: str | None
    lists_all: bool = False
    clock_gap: str | None = None
    """Why the listing's times cannot be compared with ours; None if the two clocks agree."""


class PlatformClient:
    """Lists requests and signs URLs of files. The key goes to `base_url` and nowhere else."""

    def __init__(self, base_url: str, credentials: SecretStr) -> None:
        self._base_url = base_url
        self._http = build_client(credentials)

    def list_requests(self, endpoint: str, start: datetime, end: datetime) -> Listing:
        """Every request of the endpoint in the window, with input and output. Never raises."""
        return self._list(endpoint, start=start.isoformat(), end=end.isoformat())

    def find_request(self, endpoint: str, fal_request_id: str) -> Listing:
        """The listing's line of this request (90 days back); none of any other."""
        listing = self._list(endpoint, request_id=fal_request_id)
        found = (one for one in listing.requests if one.fal_request_id == fal_request_id)
        return replace(listing, requests=tuple(found))

    def explain_unreadable(self, endpoint: str, now: datetime) -> str | None:
        """Why this key cannot read the listing; None if it can (checked at a worker's start)."""
        listing = self.list_requests(endpoint, now - CLOCK_TOLERANCE, now)
        return None if listing.lists_all else listing.gap

    def sign_file(self, url: str, expires_in: timedelta) -> str:
        """A URL by which anybody may read the file for so long.

        Raises MediaUnavailableError for what may pass, a refused account included (the owner can
        put that right), and MediaRefusedError for a file that fal does not know.
        """
        seconds = int(min(max(expires_in, MIN_LIFE), MAX_LIFE).total_seconds())
        reply = query(
            self._http,
            "POST",
            f"{self._base_url}/storage/files/sign",
            params={"url": url},
            json={"expiration_seconds": seconds},
        )
        if isinstance(reply, str) or not httpx.codes.is_success(reply.http_status):
            message = f"fal signs no URL of the file: {_explain(reply)}"
            status = None if isinstance(reply, str) else reply.http_status
            if status is None or status in ACCOUNT_CODES or is_transient(status):
                raise MediaUnavailableError(message)
            raise MediaRefusedError(message)
        # No page of fal's names the field for sure, so both likely names are read. It has to lead
        # to the same file at the same host: nothing else may be downloaded by it.
        body = reply.parse_object()
        signed = body.get("signed_url") or body.get("url")
        given, wanted = parse_url(signed), httpx.URL(url)
        if (name_origin(given), given.path) != (name_origin(wanted), wanted.path):
            raise MediaUnavailableError("fal gave no signed URL of the file")
        return str(signed)

    def close(self) -> None:
        self._http.close()

    def _list(self, endpoint: str, **window: str) -> Listing:
        found: list[ListedRequest] = []
        seen: set[JsonValue] = set()
        cursor: JsonValue = ""
        params = {"endpoint_id": endpoint, **window, "expand": "payloads", "limit": str(PAGE)}
        while len(seen) < MAX_PAGES:
            seen.add(cursor)
            url = f"{self._base_url}/models/requests/by-endpoint"
            reply = query(self._http, "GET", url, params=params, max_bytes=MAX_PAGE_BYTES)
            body = reply.parse_object() if isinstance(reply, Reply) else {}
            items = body.get("items")
            if isinstance(reply, str) or reply.http_status != OK or not isinstance(items, list):
                return Listing(tuple(found), f"cannot be read: {_explain(reply)}")
            read = [one for item in items if (one := _read_item(item)) is not None]
            found += read
            if len(read) < len(items):
                return Listing(tuple(found), "has items without a request id")
            cursor = body.get("next_cursor")
            # In doubt there is more: a request that was not read must not count as absent.
            has_more = body.get("has_more")
            if has_more is False or (not has_more and not cursor):
                # Requests without input could be any.
                hidden = sum(one.input is None for one in found)
                gap = f"shows no input for {hidden} of {len(found)} requests" if hidden else None
                clock_gap = _find_clock_gap(reply.headers.get("date"))
                return Listing(tuple(found), gap, lists_all=True, clock_gap=clock_gap)
            if not isinstance(cursor, str) or cursor in seen:
                return Listing(tuple(found), "does not say where it goes on")
            params["cursor"] = cursor
        return Listing(tuple(found), f"has more than {MAX_PAGES} pages")


def _read_item(item: JsonValue) -> ListedRequest | None:
    """None for an item without a request id."""
    given = item if isinstance(item, dict) else {}
    fal_request_id, code = given.get("request_id"), given.get("status_code")
    if not isinstance(fal_request_id, str) or not fal_request_id:
        return None
    return ListedRequest(
        fal_request_id,
        given.get("ended_at") is not None,
        code if type(code) is int else None,
        given.get("json_input"),
        given.get("json_output"),
    )


def _find_clock_gap(date: str | None) -> str | None:
    """What the reply's Date header (RFC 9110, 6.6.1) says against this host's clock."""
    theirs = parse_date(date)
    if theirs is None:
        return "fal's reply has no date to check this host's clock by"
    difference = abs(theirs - datetime.now(UTC))
    if difference <= CLOCK_TOLERANCE:
        return None
    return f"this host's clock differs from fal's by {difference.total_seconds():.0f} s"


def is_same_input(listed: JsonValue, sent: dict[str, JsonValue]) -> bool:
    """Whether the listed input has every field as it was sent; fal may show more fields."""
    if not isinstance(listed, dict):
        return False
    return all(listed.get(name) == value for name, value in sent.items())


def sign_input(value: JsonValue) -> Hashable:
    """A cheap key that the same inputs share, to compare only those that may be the same."""
    given = value if isinstance(value, dict) else {}
    marks = (given.get("seed"), given.get("prompt"))
    return tuple(None if isinstance(one, dict | list) else one for one in marks)


def fetch_openapi(base_url: str, credentials: SecretStr | None, endpoint: str) -> JsonValue:
    """The platform's reply with the endpoint's OpenAPI document. Raises SchemaUnreadableError.

    A key is not needed, and goes to `base_url` only.
    """
    url, params = f"{base_url}/models", {"endpoint_id": endpoint, "expand": "openapi-3.0"}
    with build_client(credentials, keep_connections=False) as http:
        reply = query(http, "GET", url, params=params, max_bytes=MAX_DOCUMENT_BYTES)
    if isinstance(reply, str) or reply.http_status != OK:
        raise SchemaUnreadableError(f"{url}, queried for {endpoint}: {_explain(reply)}")
    return reply.parse_json()


def _explain(reply: Reply | str) -> str:
    if isinstance(reply, str):
        return reply
    return describe_platform_error(reply.http_status, reply.parse_json())
