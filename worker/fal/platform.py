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
    describe_error,
    exchange,
    is_transient,
    name_origin,
)
from worker.ground.errors import MediaRefusedError, MediaUnavailableError, SchemaUnreadableError
from worker.ground.network import parse_date

PAGE = 100
MAX_PAGES = 50
MAX_PAGE_BYTES = 64 * 1024 * 1024
FIRST_ERROR = 400
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
    """Reads the platform API. The key goes to `base_url` and nowhere else."""

    def __init__(self, base_url: str, credentials: SecretStr) -> None:
        self._base_url = base_url
        self._http = build_client(credentials, keep_connections=True)

    def list_requests(self, endpoint: str, start: datetime, end: datetime) -> Listing:
        """Every request of the endpoint in the window, with input and output. Never raises."""
        window = {"start": start.isoformat(), "end": end.isoformat()}
        return self._list({"endpoint_id": endpoint, **window})

    def find_request(self, endpoint: str, fal_request_id: str) -> Listing:
        """The listing's line of this request (90 days back); none of any other."""
        listing = self._list({"endpoint_id": endpoint, "request_id": fal_request_id})
        found = (one for one in listing.requests if one.fal_request_id == fal_request_id)
        return replace(listing, requests=tuple(found))

    def explain_unreadable(self, endpoint: str, now: datetime) -> str | None:
        """Why this key cannot read the listing; None if it can (checked at a worker's start)."""
        window = {"start": (now - CLOCK_TOLERANCE).isoformat(), "end": now.isoformat()}
        page = self._read_page({"endpoint_id": endpoint, **window})
        return page if isinstance(page, str) else None

    def close(self) -> None:
        self._http.close()

    def _list(self, query: dict[str, str]) -> Listing:
        found: list[ListedRequest] = []
        seen: set[str] = set()
        cursor = ""
        while len(seen) < MAX_PAGES:
            seen.add(cursor)
            page = self._read_page(query | ({"cursor": cursor} if cursor else {}))
            if isinstance(page, str):
                return Listing(tuple(found), page)
            clock_gap = page.clock_gap
            before = len(found)
            for item in page.items:
                fal_request_id = item.get("request_id") if isinstance(item, dict) else None
                if isinstance(item, dict) and isinstance(fal_request_id, str) and fal_request_id:
                    found.append(_read_item(item, fal_request_id))
            if len(found) - before < len(page.items):
                return Listing(tuple(found), "has items without a request id")
            if page.cursor is None:
                # Requests without input could be any.
                hidden = sum(one.input is None for one in found)
                gap = f"shows no input for {hidden} of {len(found)} requests" if hidden else None
                return Listing(tuple(found), gap, lists_all=True, clock_gap=clock_gap)
            if page.cursor in seen:
                return Listing(tuple(found), "does not say where it goes on")
            cursor = page.cursor
        return Listing(tuple(found), f"has more than {MAX_PAGES} pages")

    def _read_page(self, query: dict[str, str]) -> "_Page | str":
        """One page, or why there is none."""
        params = {**query, "expand": "payloads", "limit": str(PAGE)}
        url = f"{self._base_url}/models/requests/by-endpoint"
        try:
            request = self._http.build_request("GET", url, params=params)
            reply: Reply = exchange(self._http, request, max_bytes=MAX_PAGE_BYTES)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            return f"cannot be read: {describe_error(error)}"
        body = reply.parse_json()
        if reply.http_status != httpx.codes.OK or not isinstance(body, dict):
            why = describe_platform_error(reply.http_status, body)
            return f"cannot be read: {why}"
        items, cursor, has_more = body.get("items"), body.get("next_cursor"), body.get("has_more")
        if not isinstance(items, list):
            return "cannot be read: it has no items"
        # In doubt there is more: a request that was not read must not count as absent.
        is_last = has_more is False or (not has_more and not cursor)
        known = cursor if isinstance(cursor, str) else ""
        clock_gap = _find_clock_gap(reply.headers.get("date"))
        return _Page(items, None if is_last else known, clock_gap)


@dataclass(frozen=True, slots=True)
class _Page:
    """`cursor` is None on the last one, and empty where there is more, but not where."""

    items: list[JsonValue]
    cursor: str | None
    clock_gap: str | None


def _read_item(item: dict[str, JsonValue], fal_request_id: str) -> ListedRequest:
    code = item.get("status_code")
    return ListedRequest(
        fal_request_id,
        item.get("ended_at") is not None,
        code if type(code) is int else None,
        item.get("json_input"),
        item.get("json_output"),
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
    if not isinstance(value, dict):
        return None, None
    return _freeze(value.get("seed")), _freeze(value.get("prompt"))


def _freeze(value: JsonValue) -> Hashable:
    """Equal numbers are equal, however they are spelled."""
    return str(type(value)) if isinstance(value, dict | list) else value


class FileSigner:
    """Signs URLs of this account's files. The key goes to `base_url` and nowhere else."""

    def __init__(self, base_url: str, credentials: SecretStr) -> None:
        self._base_url = base_url
        self._http = build_client(credentials, keep_connections=True)

    def sign_file(self, url: str, expires_in: timedelta) -> str:
        """A URL by which anybody may read the file for so long.

        Raises MediaUnavailableError for what may pass, a refused account included, and
        MediaRefusedError for a file that fal does not know.
        """
        life = min(max(expires_in, MIN_LIFE), MAX_LIFE)
        try:
            request = self._http.build_request(
                "POST",
                f"{self._base_url}/storage/files/sign",
                params={"url": url},
                json={"expiration_seconds": int(life.total_seconds())},
            )
            reply = exchange(self._http, request)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise MediaUnavailableError(
                f"fal signs no URL of the file: {describe_error(error)}"
            ) from error
        status, body = reply.http_status, reply.parse_json()
        if not httpx.codes.is_success(status):
            words = describe_platform_error(status, body)
            if status in ACCOUNT_CODES:
                # The owner can put that right, and the file remains.
                raise MediaUnavailableError(
                    f"fal refuses the account a signed URL of the file: {words}"
                )
            if is_transient(status):
                raise MediaUnavailableError(f"fal signs no URL of the file now: {words}")
            raise MediaRefusedError(f"fal signs no URL of the file: {words}")
        # No page of fal's names the field for sure, so both likely names are read. It has to lead
        # to the same file at the same host: nothing else may be downloaded by it.
        named = body if isinstance(body, dict) else {}
        signed = named.get("signed_url") or named.get("url")
        wanted = httpx.URL(url)
        try:
            given = httpx.URL(signed if isinstance(signed, str) else "")
        except (httpx.InvalidURL, ValueError):
            given = httpx.URL("")
        if (name_origin(given), given.path) != (name_origin(wanted), wanted.path):
            raise MediaUnavailableError("fal gave no signed URL of the file")
        return str(signed)

    def close(self) -> None:
        self._http.close()


def fetch_openapi(base_url: str, credentials: SecretStr | None, endpoint: str) -> JsonValue:
    """The platform's reply with the endpoint's OpenAPI document. Raises SchemaUnreadableError.

    A key is not needed, and goes to `base_url` only.
    """
    url = f"{base_url}/models"
    params = {"endpoint_id": endpoint, "expand": "openapi-3.0"}
    with build_client(credentials, keep_connections=False) as http:
        try:
            request = http.build_request("GET", url, params=params)
            reply = exchange(http, request, max_bytes=MAX_DOCUMENT_BYTES)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise SchemaUnreadableError(f"{url} cannot be read: {describe_error(error)}") from None
    if reply.http_status != httpx.codes.OK:
        why = describe_platform_error(reply.http_status, reply.parse_json())
        raise SchemaUnreadableError(f"{url}, queried for {endpoint}, answered {why}")
    return reply.parse_json()
