"""What fal charges (fal-api, section 10): the price of a unit, and what requests were billed.

Amounts become integer nano-USD as they are read; no float is among them. Billing events come late,
need an admin key, and may be several for one request: they are summed over all pages. No event is
no proof that nothing is charged.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import httpx
import structlog
from pydantic import SecretStr

from worker.fal.http import ACCOUNT_CODES, build_client, describe_error, exchange
from worker.ground.errors import BillingRefusedError, BillingUnavailableError
from worker.ground.money import MOST_USD, NANO

EVENTS = "models/billing-events"
NEEDS_ADMIN = "billing events need an admin key (FAL_ADMIN_KEY)"
MOST_IDS = 50
MOST_PAGES = 100
PAGE = 1000
# Fal lists events of at most 90 days at once.
LONGEST_WINDOW = timedelta(days=89)
# Beyond it a number is no price, no bill and no count of units.
MOST_NANO = MOST_USD * NANO
MOST_UNITS = 10**9

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class UnitPrice:
    """The price of one unit of an endpoint, in nano-USD."""

    unit: str
    nano_usd: int


@dataclass(frozen=True, slots=True)
class Bill:
    """The sum of a request's billing events; the units only where every event states them."""

    fal_request_id: str
    nano_usd: int
    units: Decimal | None


class BillingClient:
    """Reads prices and billing events. The key goes to `base_url` and nowhere else."""

    def __init__(self, base_url: str, credentials: SecretStr) -> None:
        self._base_url = base_url
        self._http = build_client(credentials, keep_connections=True)

    def read_price(self, endpoint: str) -> UnitPrice:
        """Raises BillingUnavailableError, also for a currency or a number that is none of ours."""
        body = self._read("models/pricing", [("endpoint_id", endpoint)])
        for price in _list_objects(body, "prices"):
            unit_price, currency = price.get("unit_price"), price.get("currency", "USD")
            if price.get("endpoint_id") != endpoint or currency != "USD":
                continue
            usd = _read_decimal(unit_price)
            if usd is not None and 0 <= usd <= MOST_USD:
                return UnitPrice(str(price.get("unit", "unit")), round(usd * NANO))
        raise BillingUnavailableError(f"fal's platform names no price in USD for {endpoint}")

    def list_bills(
        self, fal_request_ids: Sequence[str], start: datetime, end: datetime
    ) -> Mapping[str, Bill]:
        """The bills of these requests (at most MOST_IDS), in at most 90 days.

        One that cannot be read is left out. Raises BillingRefusedError without an admin key,
        BillingUnavailableError.
        """
        wanted = [("request_id", one) for one in fal_request_ids]
        bills, unreadable = sum_bills(self._list_events([*wanted, *_window(start, end)]))
        for fal_request_id in unreadable:
            log.warning("bill_unreadable", fal_request_id=fal_request_id)
        return bills

    def list_all_bills(self, endpoint: str, start: datetime, end: datetime) -> Mapping[str, Bill]:
        """The bills of every request of the endpoint.

        Raises as `list_bills`, and BillingUnavailableError if one cannot be read.
        """
        bills, unreadable = sum_bills(self._list_span(endpoint, start, end))
        if unreadable:
            named = ", ".join(sorted(unreadable)[:MOST_IDS])
            raise BillingUnavailableError(f"fal's bill has no amount of {named}")
        return bills

    def close(self) -> None:
        self._http.close()

    def _list_span(
        self, endpoint: str, start: datetime, end: datetime
    ) -> Iterator[Mapping[str, Any]]:
        """All events of the endpoint, in windows that fal accepts."""
        while start < end:
            until = min(start + LONGEST_WINDOW, end)
            yield from self._list_events([("endpoint_id", endpoint), *_window(start, until)])
            start = until

    def _list_events(self, query: Sequence[tuple[str, str]]) -> Iterator[Mapping[str, Any]]:
        """Page by page; a listing that does not end is no listing."""
        cursor = ""
        for _ in range(MOST_PAGES):
            named = [("cursor", cursor)] if cursor else []
            body = self._read(EVENTS, [*query, ("limit", str(PAGE)), *named])
            yield from _list_objects(body, "billing_events")
            cursor = str(body.get("next_cursor") or "")
            if not body.get("has_more") or not cursor:
                return
        raise BillingUnavailableError(f"fal's billing events do not end after {MOST_PAGES} pages")

    def _read(self, path: str, query: Sequence[tuple[str, str]]) -> Mapping[str, Any]:
        request = self._http.build_request(
            "GET", f"{self._base_url}/{path}", params=httpx.QueryParams(tuple(query))
        )
        try:
            reply = exchange(self._http, request)
        except (httpx.HTTPError, TimeoutError) as error:
            raise BillingUnavailableError(describe_error(error)) from None
        if reply.http_status in ACCOUNT_CODES:
            need = f"; {NEEDS_ADMIN}" if path == EVENTS else ""
            raise BillingRefusedError(f"fal answered {reply.http_status} to {path}{need}")
        try:
            body = json.loads(reply.body, parse_float=Decimal)
        except (ValueError, RecursionError):
            body = None
        if not httpx.codes.is_success(reply.http_status) or not isinstance(body, dict):
            raise BillingUnavailableError(f"fal answered {reply.http_status} to {path}")
        return body


def sum_bills(events: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Bill], set[str]]:
    """One bill for each request, and the requests whose amount cannot be read; pure."""
    bills: dict[str, Bill] = {}
    unreadable: set[str] = set()
    for event in events:
        fal_request_id, amount = event.get("request_id"), event.get("cost_estimate_nano_usd")
        if not isinstance(fal_request_id, str):
            continue
        if isinstance(amount, bool) or not isinstance(amount, int):
            unreadable.add(fal_request_id)
            continue
        before = bills.get(fal_request_id, Bill(fal_request_id, 0, Decimal(0)))
        units = _read_decimal(event.get("output_units"))
        known = None if units is None or before.units is None else before.units + units
        bills[fal_request_id] = Bill(fal_request_id, before.nano_usd + amount, known)
    unreadable |= {one.fal_request_id for one in bills.values() if not is_amount(one.nano_usd)}
    return {name: one for name, one in bills.items() if name not in unreadable}, unreadable


def is_amount(nano_usd: int) -> bool:
    """Whether a sum is one that can have been charged, credits included; pure."""
    return 0 <= nano_usd <= MOST_NANO


def read_units(headers: Mapping[str, str]) -> Decimal | None:
    """`X-Fal-Billable-Units` of a result: a bare number of units; None if there is none."""
    units = _read_decimal(headers.get("x-fal-billable-units"))
    return units if units is not None and 0 <= units <= MOST_UNITS else None


def _read_decimal(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        return None
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    return number if number.is_finite() and -MOST_NANO <= number <= MOST_NANO else None


def _list_objects(body: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    items = body.get(name)
    return [one for one in items if isinstance(one, dict)] if isinstance(items, list) else []


def _window(start: datetime, end: datetime) -> list[tuple[str, str]]:
    return [("start", start.isoformat()), ("end", end.isoformat())]
