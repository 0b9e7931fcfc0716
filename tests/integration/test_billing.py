"""What fal charges, as read over HTTP: exact, summed over all events, and never more than it is."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.emulator.processes import Emulator, start_emulator
from tests.harness.web import Answer, ScriptedServer, break_off, run_server, send_body, send_json
from worker.fal import billing
from worker.fal.billing import Bill, BillingClient, UnitPrice, read_units
from worker.ground.clock import read_clock
from worker.ground.errors import BillingRefusedError, BillingUnavailableError

ENDPOINT = "fal-ai/ltx-2.3-22b/extend-video"
PRICE = 1_605_000
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


@contextmanager
def open_billing(url: str, key: str = "emulator-admin") -> Iterator[BillingClient]:
    with closing(BillingClient(f"{url}/v1", SecretStr(key))) as client:
        yield client


@pytest.fixture
def client(emulator) -> Iterator[BillingClient]:
    with open_billing(emulator.url) as client:
        yield client


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with run_server(send_json({})) as server:
        yield server


@pytest.fixture
def scripted(server) -> Iterator[BillingClient]:
    with open_billing(server.url) as client:
        yield client


def run(emulator: Emulator) -> tuple[str, int]:
    """A request that has ended well, and its units as its result states them."""
    request_id = emulator.submit()
    return request_id, int(emulator.get_result(request_id).headers["X-Fal-Billable-Units"])


def list_bills(client: BillingClient, *request_ids: str) -> dict[str, Bill]:
    now = read_clock()
    return dict(client.list_bills(request_ids, now - DAY, now + HOUR))


# ------------------------------------------------------------------ the price


def test_price_is_exact(client):
    price = client.read_price(ENDPOINT)
    assert price == UnitPrice("megapixel", PRICE)
    assert type(price.nano_usd) is int


@pytest.mark.parametrize(
    ("unit_price", "nano_usd"),
    [
        ("0.001605", 1_605_000),
        ("0.0016050000000000001", 1_605_000),
        ("1.605e-3", 1_605_000),
        ('"0.001605"', 1_605_000),
        ("0.1", 100_000_000),
        ("0.3", 300_000_000),
        ("0.000000001", 1),
        ("2", 2_000_000_000),
        ("0", 0),
    ],
)
def test_price_is_read_from_its_digits(server, scripted, unit_price, nano_usd):
    """No float is between: 0.1 is a tenth, and a tenth is a hundred million."""
    server.answer = send_text(name_prices(unit_price))
    assert scripted.read_price(ENDPOINT).nano_usd == nano_usd


@pytest.mark.parametrize(
    "unit_price",
    [
        "-1",
        "NaN",
        "Infinity",
        "1e999999",
        "1000001",
        "null",
        "true",
        '"dear"',
        "[]",
        "{}",
        '"sNaN"',
    ],
)
def test_number_that_is_no_price_is_none(server, scripted, unit_price):
    server.answer = send_text(name_prices(unit_price))
    with pytest.raises(BillingUnavailableError, match="names no price in USD"):
        scripted.read_price(ENDPOINT)


@pytest.mark.parametrize(
    "price",
    [
        {"endpoint_id": ENDPOINT, "unit_price": 1, "currency": "EUR"},
        {"endpoint_id": "another/app", "unit_price": 1, "currency": "USD"},
        "a text",
    ],
)
def test_price_of_another_currency_or_endpoint_is_not_ours(server, scripted, price):
    server.answer = send_json({"prices": [price]})
    with pytest.raises(BillingUnavailableError):
        scripted.read_price(ENDPOINT)


@pytest.mark.parametrize(
    "fault", [{"kind": "status", "code": 503}, {"kind": "drop"}, {"kind": "malformed"}]
)
def test_price_that_cannot_be_read_says_why(emulator, client, fault):
    emulator.order({"point": "pricing", **fault})
    with pytest.raises(BillingUnavailableError):
        client.read_price(ENDPOINT)


def name_prices(unit_price: str) -> str:
    named = f'{{"endpoint_id": "{ENDPOINT}", "unit": "megapixel", "unit_price": {unit_price}'
    return f'{{"prices": [{named}, "currency": "USD"}}]}}'


def send_text(text: str) -> Answer:
    return send_body(text.encode())


# ------------------------------------------------------------------ bills


def test_bill_is_what_the_emulator_charges(emulator, client):
    request_id, units = run(emulator)
    assert list_bills(client, request_id) == {
        request_id: Bill(request_id, units * PRICE, Decimal(units))
    }


@pytest.mark.parametrize("key", ["emulator-key", "nobody's"])
def test_without_an_admin_key_bills_are_refused(emulator, key):
    with (
        open_billing(emulator.url, key) as client,
        pytest.raises(BillingRefusedError, match="need an admin key"),
    ):
        list_bills(client, "any")


def test_refused_price_is_not_about_the_admin_key(emulator):
    with (
        open_billing(emulator.url, "nobody's") as client,
        pytest.raises(BillingRefusedError) as caught,
    ):
        client.read_price(ENDPOINT)
    assert "admin" not in str(caught.value)


def test_bill_that_is_late_is_none_yet(emulator, client):
    request_id, _ = run(emulator)
    emulator.order({"point": "billing", "kind": "lag", "seconds": 3600})
    assert list_bills(client, request_id) == {}


@pytest.mark.parametrize("page", [1000, 1])
def test_several_events_of_a_request_are_one_bill_over_all_pages(
    emulator, client, monkeypatch, page
):
    monkeypatch.setattr(billing, "PAGE", page)
    bought = dict(run(emulator) for _ in range(3))
    emulator.order({"point": "billing", "kind": "split"})
    bills = list_bills(client, *bought)
    assert {one: bill.nano_usd for one, bill in bills.items()} == {
        one: units * PRICE for one, units in bought.items()
    }
    assert {one: bill.units for one, bill in bills.items()} == bought


def test_surcharge_is_in_the_bill(emulator, client):
    request_id, units = run(emulator)
    emulator.order({"point": "billing", "kind": "surcharge", "units": 5})
    assert list_bills(client, request_id)[request_id].nano_usd == (units + 5) * PRICE


def test_older_rows_have_an_amount_and_no_units(emulator, client):
    request_id, units = run(emulator)
    emulator.order({"point": "billing", "kind": "old_form"})
    assert list_bills(client, request_id)[request_id] == Bill(request_id, units * PRICE, None)


def test_what_cost_nothing_has_no_bill(emulator, client):
    refused = emulator.submit({"num_frames": -1})
    emulator.wait_for_status(refused, "COMPLETED")
    assert list_bills(client, refused) == {}


def test_all_bills_of_a_long_time_are_read_in_windows_that_fal_accepts(emulator, client):
    request_id, units = run(emulator)
    now = read_clock()
    bills = client.list_all_bills(ENDPOINT, now - timedelta(days=400), now + HOUR)
    assert bills[request_id].nano_usd == units * PRICE
    assert client.list_all_bills(ENDPOINT, now + HOUR, now) == {}


@pytest.mark.parametrize("kind", ["status", "malformed", "drop"])
def test_bills_that_cannot_be_read_are_unavailable(emulator, client, kind):
    emulator.order({"point": "billing", "kind": kind})
    with pytest.raises(BillingUnavailableError):
        list_bills(client, "any")


def test_listing_without_an_end_is_none(server, scripted):
    server.answer = send_json({"billing_events": [], "next_cursor": "more", "has_more": True})
    with pytest.raises(BillingUnavailableError, match="do not end after 100 pages"):
        list_bills(scripted, "any")
    assert len(server.asked) == billing.MOST_PAGES


def test_platform_that_breaks_off_is_unavailable(server, scripted):
    server.answer = break_off
    with pytest.raises(BillingUnavailableError):
        list_bills(scripted, "any")


# ------------------------------------------------------------------ odd numbers


def build_event(request_id: str, amount: Any, units: Any = 1) -> dict[str, Any]:
    return {"request_id": request_id, "cost_estimate_nano_usd": amount, "output_units": units}


def send_events(*events: object) -> Answer:
    return send_json({"billing_events": list(events), "next_cursor": None, "has_more": False})


@pytest.mark.parametrize(
    "amount", [None, True, 1.5, 179_760_000.0, "179760000", [], -1, 10**16, 10**40]
)
def test_amount_that_is_none_costs_no_other_request_its_bill(server, scripted, amount):
    server.answer = send_events(build_event("odd", amount), build_event("good", 7), "a text", {})
    with capture_logs() as logs:
        assert list_bills(scripted, "odd", "good") == {"good": Bill("good", 7, Decimal(1))}
    assert [(one["event"], one["fal_request_id"]) for one in logs] == [("bill_unreadable", "odd")]


def test_half_a_bill_is_no_bill(server, scripted):
    server.answer = send_events(build_event("odd", 5), build_event("odd", None))
    assert list_bills(scripted, "odd") == {}


def test_whole_listing_with_a_bill_that_cannot_be_read_agrees_with_nothing(server, scripted):
    server.answer = send_events(build_event("odd", None), build_event("good", 7))
    now = read_clock()
    with pytest.raises(BillingUnavailableError, match="no amount of odd"):
        scripted.list_all_bills(ENDPOINT, now - DAY, now)


def test_credit_is_taken_off(server, scripted):
    server.answer = send_events(build_event("r", 10, 5), build_event("r", -4, 0))
    assert list_bills(scripted, "r") == {"r": Bill("r", 6, Decimal(5))}


@pytest.mark.parametrize(
    ("units", "known"),
    [(None, None), ("112", 112), (1.5, Decimal("1.5")), (True, None), ("many", None), ([], None)],
)
def test_units_are_known_only_where_they_are_stated(server, scripted, units, known):
    server.answer = send_events(build_event("r", 10, units))
    assert list_bills(scripted, "r")["r"].units == known


def test_number_with_too_many_digits_is_no_reply(server, scripted):
    server.answer = send_text(
        json.dumps({"billing_events": []})[:-1] + ', "x": ' + "9" * 5000 + "}"
    )
    with pytest.raises(BillingUnavailableError):
        list_bills(scripted, "any")


@pytest.mark.parametrize(
    ("header", "units"),
    [
        ("112", Decimal(112)),
        ("0.5", Decimal("0.5")),
        ("0", Decimal(0)),
        *((text, None) for text in ("", "-1", "many", "NaN", "inf", "1e999999999", "112 units")),
    ],
)
def test_units_of_a_result_are_a_bare_number(header, units):
    assert read_units(httpx.Headers({"X-Fal-Billable-Units": header})) == units
    assert read_units(httpx.Headers()) is None


def test_units_are_read_off_the_emulators_result(emulator):
    request_id, units = run(emulator)
    assert read_units(emulator.get_result(request_id).headers) == units


def test_bill_is_that_of_the_price_it_was_ordered_with(tmp_path):
    options = ("--render", "fake", "--unit-price", "0.002000001")
    with start_emulator(tmp_path, *options) as emulator, open_billing(emulator.url) as client:
        request_id, units = run(emulator)
        assert client.read_price(ENDPOINT).nano_usd == 2_000_001
        assert list_bills(client, request_id)[request_id].nano_usd == units * 2_000_001
