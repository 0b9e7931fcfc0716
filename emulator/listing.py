"""`/v1`: as much of fal's platform API as a lost submission can be found with.

The listing's window is applied to the time of submission. Newest ends come first, and requests
that have not ended come before them all.
"""

import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from aiohttp import web

from emulator.accounts import ACCOUNTS
from emulator.faults import Fault
from emulator.queue_routes import ENDPOINT, QUEUE
from emulator.records import FalRequest
from emulator.spoiling import answer, compose_platform_error

DAY = timedelta(days=1)
MOST_ENDPOINTS = 50
MOST_ITEMS = 100
STATUSES: dict[str, Callable[[int], bool]] = {
    "success": lambda code: code < 400,  # noqa: PLR2004 - no error
    "user_error": lambda code: 400 <= code < 500,  # noqa: PLR2004 - 4xx
    "error": lambda code: code >= 500,  # noqa: PLR2004 - 5xx
}
SORTS = ("end_time", "duration")
IP_RANGES = ["127.0.0.1/32", "::1/128"]

Key = tuple[float, str]
"""Place in the listing: what is sorted by, then the id."""


@dataclass(frozen=True, slots=True)
class ListingQuery:
    """What a caller wants listed."""

    endpoints: Sequence[str]
    start: datetime
    end: datetime | None
    status: str | None
    request_id: str | None
    limit: int
    after: Key | None
    sort: str
    wants_payloads: bool

    @classmethod
    def from_query(cls, query: Sequence[tuple[str, str]]) -> Self:
        """Raises ValueError: naming the parameter that is missing or wrong."""
        given = dict(query)
        request_id = given.get("request_id")
        window = 90 * DAY if request_id else DAY
        cursor = given.get("cursor")
        return cls(
            endpoints=read_endpoints(query),
            start=read_time(given, "start") or datetime.now(UTC) - window,
            end=read_time(given, "end"),
            status=read_choice(given, "status", tuple(STATUSES)),
            request_id=request_id,
            limit=read_limit(given.get("limit", "50")),
            after=read_cursor(cursor) if cursor else None,
            sort=read_choice(given, "sort", SORTS) or "end_time",
            wants_payloads=read_choice(given, "expand", ("payloads",)) is not None,
        )

    def covers(self, request: FalRequest) -> bool:
        if ENDPOINT not in self.endpoints or request.submitted_at < self.start:
            return False
        if self.end is not None and request.submitted_at >= self.end:
            return False
        if self.request_id not in (None, request.request_id):
            return False
        if self.status is None:
            return True
        return request.outcome is not None and STATUSES[self.status](request.outcome.status_code)

    def find_place(self, request: FalRequest) -> Key:
        """Greater is nearer the beginning."""
        if request.completed_at is None:
            return math.inf, request.request_id
        by_duration = self.sort == "duration"
        time = request.inference_time.total_seconds()
        return time if by_duration else request.completed_at.timestamp(), request.request_id


def add_listing_routes(app: web.Application) -> None:
    app.router.add_get("/v1/models/requests/by-endpoint", list_requests)
    app.router.add_get("/v1/meta", show_meta)


async def show_meta(_request: web.Request) -> web.Response:
    return web.json_response({"webhook_ip_ranges": IP_RANGES})


async def list_requests(request: web.Request) -> web.Response:
    def compose(fault: Fault | None) -> web.Response:
        try:
            wanted = ListingQuery.from_query(list(request.query.items()))
        except ValueError as error:
            return web.json_response(compose_platform_error(400, str(error)), status=400)
        own = request.app[ACCOUNTS].find(request)
        found = [one for one in request.app[QUEUE].requests if one.account == own]
        if fault is not None and fault.kind == "cut":
            return cut_listing(wanted, found, fault.options)
        page = compose_page(wanted, hide_requests(found, fault))
        return web.json_response(page | {"items": spoil_payloads(page["items"], fault)})

    return await answer(request, "listing", None, compose)


def hide_requests(requests: Sequence[FalRequest], fault: Fault | None) -> Sequence[FalRequest]:
    """Those that the fault lets be seen."""
    match fault.kind if fault else None:
        case "empty":
            return []
        case "omit_running":
            return [one for one in requests if one.outcome is not None]
        case "lag" if fault is not None:
            latest = datetime.now(UTC) - timedelta(seconds=fault.options["seconds"])
            return [one for one in requests if one.submitted_at <= latest]
        case _:
            return requests


def spoil_payloads(items: list[dict[str, Any]], fault: Fault | None) -> list[dict[str, Any]]:
    """Inputs and outputs as the fault shows them, where they are shown at all."""
    if fault is None:
        return items
    spoilt = []
    for item in items:
        changes: dict[str, object] = {}
        if fault.kind == "omit_payloads" and "json_input" in item:
            changes = {"json_input": None, "json_output": None}
        if fault.kind == "extra_fields" and item.get("json_input") is not None:
            changes = {"json_input": item["json_input"] | fault.options["fields"]}
        spoilt.append(item | changes)
    return spoilt


def cut_listing(
    wanted: ListingQuery, requests: Sequence[FalRequest], options: Mapping[str, Any]
) -> web.Response:
    """A page of a listing whose end cannot be reached."""
    if options["form"] == "refused" and wanted.after is not None:
        error = compose_platform_error(400, "cursor: no more pages are to be had")
        return web.json_response(error, status=400)
    page = compose_page(replace(wanted, limit=min(wanted.limit, options["items"])), requests)
    if options["form"] == "no_cursor":
        page["next_cursor"] = None
    elif not page["has_more"]:
        # Behind the last item come pages without any, each with a cursor of its own.
        last = min(wanted.after[0], 0.0) if wanted.after else 0.0
        page["next_cursor"] = write_cursor((last - 1, ""))
    return web.json_response(page | {"has_more": True})


def compose_page(wanted: ListingQuery, requests: Sequence[FalRequest]) -> dict[str, Any]:
    covered = [one for one in requests if wanted.covers(one)]
    if wanted.after is not None:
        covered = [one for one in covered if wanted.find_place(one) < wanted.after]
    covered.sort(key=wanted.find_place, reverse=True)
    page, has_more = covered[: wanted.limit], len(covered) > wanted.limit
    items = [describe_item(one) for one in page]
    if wanted.wants_payloads:
        payloads = [describe_payloads(one) for one in page]
        items = [item | more for item, more in zip(items, payloads, strict=True)]
    cursor = write_cursor(wanted.find_place(page[-1])) if has_more else None
    return {"items": items, "next_cursor": cursor, "has_more": has_more}


def describe_item(request: FalRequest) -> dict[str, object]:
    outcome = request.outcome
    return {
        "request_id": request.request_id,
        "endpoint_id": ENDPOINT,
        "started_at": _format_time(request.started_at),
        "sent_at": _format_time(request.submitted_at),
        "ended_at": _format_time(request.completed_at),
        "status_code": outcome.status_code if outcome else None,
        "duration": request.inference_time.total_seconds() if outcome else None,
    }


def describe_payloads(request: FalRequest) -> dict[str, object]:
    """Null where the caller did not ask fal to keep them."""
    if not request.is_stored:
        return {"json_input": None, "json_output": None}
    output = dict(request.outcome.body) if request.outcome else None
    return {"json_input": dict(request.input), "json_output": output}


def read_endpoints(query: Sequence[tuple[str, str]]) -> list[str]:
    """Repeated or with commas.

    Raises ValueError: none, or too many.
    """
    named = [one for name, value in query if name == "endpoint_id" for one in value.split(",")]
    endpoints = [one.strip() for one in named if one.strip()]
    if not 1 <= len(endpoints) <= MOST_ENDPOINTS:
        raise ValueError(f"endpoint_id: from 1 to {MOST_ENDPOINTS} are required")
    return endpoints


def read_time(given: dict[str, str], name: str) -> datetime | None:
    """ISO 8601; UTC where no zone is named.

    Raises ValueError: no time.
    """
    if name not in given:
        return None
    try:
        time = datetime.fromisoformat(given[name])
    except ValueError as error:
        raise ValueError(f"{name}: not an ISO 8601 time: {given[name]!r}") from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def read_choice(given: dict[str, str], name: str, known: Sequence[str]) -> str | None:
    """Raises ValueError: none of the known ones."""
    value = given.get(name)
    if value is not None and value not in known:
        raise ValueError(f"{name}: unknown {value!r}; known: {', '.join(known)}")
    return value


def read_limit(text: str) -> int:
    """Raises ValueError: not a whole number from 1 to 100."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_ITEMS:
        raise ValueError(f"limit: not a whole number from 1 to {MOST_ITEMS}: {text!r}")
    return int(text)


def write_cursor(place: Key) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def read_cursor(text: str) -> Key:
    """Raises ValueError: none of ours."""
    try:
        time, request_id = json.loads(base64.urlsafe_b64decode(text))
        return float(time), str(request_id)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ValueError(f"cursor: not one of this listing: {text!r}") from error


def _format_time(at: datetime | None) -> str | None:
    return at.isoformat() if at else None
