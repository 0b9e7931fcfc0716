"""What fal charges (fal-api, section 10): the price of a unit, and what requests were billed.

Amounts become integer nano-USD as they are read; no float is among them. Billing events come late,
need an admin key, and may be several for one request: they are summed over all pages. No event is
no proof that nothing is charged.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import httpx
from pydantic import SecretStr

from worker.fal.http import ACCOUNT_CODES, build_client, describe_error, exchange
from worker.ground.errors import BillingRefusedError, BillingUnavailableError
from worker.ground.money import NANO

MOST_IDS = 50
MOST_PAGES = 100
PAGE = 1000


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
            nano_usd = _read_decimal(unit_price)
            if nano_usd is not None and nano_usd >= 0:
                return UnitPrice(str(price.get("unit", "unit")), round(nano_usd * NANO))
        raise BillingUnavailableError(f"fal's platform names no price in USD for {endpoint}")

    def list_bills(
        self, fal_request_ids: Sequence[str], start: datetime, end: datetime
    ) -> Mapping[str, Bill]:
        """The bills of these requests (at most MOST_IDS), in at most 90 days.

        Raises BillingRefusedError without an admin key, BillingUnavailableError.
        """
        wanted = [("request_id", one) for one in fal_request_ids]
        return sum_bills(self._list_events([*wanted, *_window(start, end)]))

    def list_all_bills(self, endpoint: str, start: datetime, end: datetime) -> Mapping[str, Bill]:
        """The bills of every request of the endpoint; raises as `list_bills`."""
        return sum_bills(self._list_events([("endpoint_id", endpoint), *_window(start, end)]))

    def close(self) -> None:
        self._http.close()

    def _list_events(self, query: Sequence[tuple[str, str]]) -> Iterator[Mapping[str, Any]]:
        """Page by page; a listing that does not end is no listing."""
        cursor = ""
        for _ in range(MOST_PAGES):
            named = [("cursor", cursor)] if cursor else []
            body = self._read("models/billing-events", [*query, ("limit", str(PAGE)), *named])
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
            raise BillingRefusedError(
                f"fal answered {reply.http_status} to {path}: billing events need an admin key "
                "(FAL_ADMIN_KEY)"
            )
        try:
            body = json.loads(reply.body, parse_float=Decimal)
        except (ValueError, RecursionError):
            body = None
        if not httpx.codes.is_success(reply.http_status) or not isinstance(body, dict):
            raise BillingUnavailableError(f"fal answered {reply.http_status} to {path}")
        return body


def sum_bills(events: Iterator[Mapping[str, Any]]) -> Mapping[str, Bill]:
    """One bill for each request. Raises BillingUnavailableError for an amount that is none."""
    bills: dict[str, Bill] = {}
    for event in events:
        fal_request_id = event.get("request_id")
        if not isinstance(fal_request_id, str):
            continue
        amount, units = (
            event.get("cost_estimate_nano_usd"),
            _read_decimal(event.get("output_units")),
        )
        if isinstance(amount, bool) or not isinstance(amount, int):
            raise BillingUnavailableError(f"fal's bill of {fal_request_id} has no amount")
        before = bills.get(fal_request_id, Bill(fal_request_id, 0, Decimal(0)))
        known = None if units is None or before.units is None else before.units + units
        bills[fal_request_id] = Bill(fal_request_id, before.nano_usd + amount, known)
    return bills


def read_units(headers: Mapping[str, str]) -> Decimal | None:
    """`X-Fal-Billable-Units` of a result: a bare number of units; None if there is none."""
    units = _read_decimal(headers.get("x-fal-billable-units"))
    return None if units is None or units < 0 else units


def _read_decimal(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        return None
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _list_objects(body: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    items = body.get(name)
    return [one for one in items if isinstance(one, dict)] if isinstance(items, list) else []


def _window(start: datetime, end: datetime) -> list[tuple[str, str]]:
    return [("start", start.isoformat()), ("end", end.isoformat())]
