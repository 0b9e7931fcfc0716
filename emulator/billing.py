"""`/v1/models/billing-events`: what each request has cost, for the account's admin key only.

A run that ended well is billed by its `X-Fal-Billable-Units`. Not billed are a 5xx, a request that
was removed from the queue and one that never started; a 4xx only by the fault `billed_refusals`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Self

from aiohttp import web

from emulator.accounts import ACCOUNTS
from emulator.catalog import PRICE, choose_price
from emulator.faults import Fault
from emulator.listing import DAY, read_cursor, read_endpoints, read_time, write_cursor
from emulator.queue_routes import ENDPOINT, QUEUE
from emulator.records import FalRequest
from emulator.spoiling import OK, SERVER_ERROR, answer, compose_platform_error

LONGEST_WINDOW = 90 * DAY
MOST_EVENTS = 10_000
MOST_IDS = 50
FORBIDDEN = 403
NANO = 10**9
OLD_FORM: dict[str, Any] = dict.fromkeys(
    (
        "output_units",
        "unit_price",
        "percent_discount",
        "cost_subtotal",
        "cost_discount",
        "cost_total",
    )
)
"""What older rows lack."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which events a caller wants: billed from `start` to before `end`."""

    start: datetime
    end: datetime
    endpoints: Sequence[str]
    request_ids: Sequence[str]
    limit: int
    after: tuple[float, str] | None

    @classmethod
    def from_query(cls, query: Sequence[tuple[str, str]]) -> Self:
        """Raises ValueError: naming the parameter that is missing or wrong."""
        given = dict(query)
        now = datetime.now(UTC)
        end = read_time(given, "end") or now + timedelta(seconds=1)
        start = read_time(given, "start") or now - DAY
        if not timedelta(0) <= end - start <= LONGEST_WINDOW:
            raise ValueError("start and end: at most 90 days, in this order")
        ids = [one for name, text in query if name == "request_id" for one in text.split(",")]
        if len(ids) > MOST_IDS:
            raise ValueError(f"request_id: at most {MOST_IDS}")
        limit = given.get("limit", "50")
        if not limit.isdecimal() or not 1 <= int(limit) <= MOST_EVENTS:
            raise ValueError(f"limit: not a whole number from 1 to {MOST_EVENTS}: {limit!r}")
        after = read_cursor(given["cursor"]) if given.get("cursor") else None
        named = read_endpoints(query) if "endpoint_id" in given else ()
        return cls(start, end, named, ids, int(limit), after)

    def covers(self, event: Mapping[str, Any]) -> bool:
        at = datetime.fromisoformat(event["timestamp"])
        if self.after is not None and find_place(event) <= self.after:
            return False
        is_named = not self.request_ids or event["request_id"] in self.request_ids
        is_of_endpoint = not self.endpoints or ENDPOINT in self.endpoints
        return self.start <= at < self.end and is_named and is_of_endpoint


def add_billing_routes(app: web.Application) -> None:
    app.router.add_get("/v1/models/billing-events", list_events)


async def list_events(request: web.Request) -> web.Response:
    def compose(fault: Fault | None) -> web.Response:
        accounts = request.app[ACCOUNTS]
        if not accounts.is_admin(request):
            message = "An admin key is required"
            return web.json_response(compose_platform_error(FORBIDDEN, message), status=FORBIDDEN)
        try:
            query = Query.from_query(list(request.query.items()))
        except ValueError as error:
            return web.json_response(compose_platform_error(400, str(error)), status=400)
        own = accounts.find(request)
        requests = [one for one in request.app[QUEUE].requests if one.account == own]
        price = choose_price(request.app[PRICE], fault)
        events = list_charges(requests, price, fault)
        covered = sorted((one for one in events if query.covers(one)), key=find_place)
        page, has_more = covered[: query.limit], len(covered) > query.limit
        cursor = write_cursor(find_place(page[-1])) if has_more else None
        body = {"billing_events": page, "next_cursor": cursor, "has_more": has_more}
        return web.json_response(body)

    return await answer(request, "billing", None, compose)


def list_charges(
    requests: Sequence[FalRequest], price: Decimal, fault: Fault | None
) -> list[dict[str, Any]]:
    """An event for each charge; two halves with the fault `split`; none too early with `lag`."""
    kind, options = (fault.kind, fault.options) if fault else (None, {})
    events = []
    for one in requests:
        units = count_units(one, bills_refusals=kind == "billed_refusals")
        if units is None or one.completed_at is None:
            continue
        age = datetime.now(UTC) - one.completed_at
        if kind == "lag" and age.total_seconds() < options["seconds"]:
            continue
        if kind == "surcharge":
            units += options["units"]
        parts = [units // 2, units - units // 2] if kind == "split" else [units]
        for number, part in enumerate(parts):
            at = one.completed_at + number * timedelta(milliseconds=1)
            event = describe_charge(one, at, part, price, options.get("percent"))
            events.append(event | (OLD_FORM if kind == "old_form" else {}))
    return events


def count_units(request: FalRequest, *, bills_refusals: bool = False) -> int | None:
    """Megapixels that are billed; None for what costs nothing."""
    outcome = request.outcome
    if outcome is None or not request.is_charged or outcome.status_code >= SERVER_ERROR:
        return None
    if outcome.status_code != OK:
        return 1 if bills_refusals else None
    return int(outcome.headers.get("X-Fal-Billable-Units", "0"))


def describe_charge(
    request: FalRequest, at: datetime, units: int, price: Decimal, percent: int | None = None
) -> dict[str, Any]:
    """A discount of so many per cent goes off; a rest of a nano-USD does as well."""
    cost = units * price
    discount = cost * (percent or 0) / 100
    return {
        "request_id": request.request_id,
        "endpoint_id": ENDPOINT,
        "timestamp": at.isoformat(),
        "output_units": units,
        "unit_price": float(price),
        "percent_discount": percent,
        "cost_subtotal": float(cost),
        "cost_discount": float(discount),
        "cost_total": float(cost - discount),
        "cost_estimate_nano_usd": int((cost - discount) * NANO),
    }


def find_place(event: Mapping[str, Any]) -> tuple[float, str]:
    return datetime.fromisoformat(event["timestamp"]).timestamp(), str(event["request_id"])
