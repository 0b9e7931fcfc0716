"""The bill: what is on it, for whom, and how it can be late, split or odd."""

import httpx
import pytest

from tests.emulator.conftest import lay_out
from tests.emulator.processes import Emulator, start_emulator

EVENTS = "/v1/models/billing-events"
ADMIN = {"Authorization": "Key emulator-admin"}
NANO_OF_A_UNIT = 1_605_000


@pytest.fixture(scope="module")
def billed(tmp_path_factory, sample):
    """Takes long starts: one run at once, of a quarter of a second."""
    directory = lay_out(tmp_path_factory.mktemp("billed"), sample)
    options = ("--render", "fake", "--concurrency", "1", "--run-seconds", "0.25")
    with start_emulator(directory, *options) as emulator:
        yield emulator
        emulator.order()


def list_events(emulator: Emulator, **query: str) -> list[dict[str, object]]:
    answered = emulator.client.get(EVENTS, params=query, headers=ADMIN)
    assert answered.status_code == 200, answered.text
    return list(answered.json()["billing_events"])


def test_run_is_billed_by_the_units_of_its_result(billed):
    request_id = billed.submit()
    units = int(billed.get_result(request_id).headers["X-Fal-Billable-Units"])
    [event] = list_events(billed, request_id=request_id)
    assert (event["output_units"], event["unit_price"]) == (units, 0.001605)
    assert event["cost_estimate_nano_usd"] == units * NANO_OF_A_UNIT
    ledger = billed.client.get("/_emulator/ledger").json()
    assert ledger["by_request"][request_id] == {"charges": 1, "units": units}


def test_what_never_started_or_was_refused_is_not_billed(billed):
    running = billed.submit()
    waiting, expiring = billed.submit(), billed.post(headers={"X-Fal-Request-Timeout": "0.2"})
    billed.cancel(waiting)
    refused = billed.submit({"num_frames": -1})
    ids = [waiting, expiring.json()["request_id"], refused]
    for one in (running, *ids):
        billed.wait_for_status(one, "COMPLETED")
    assert list_events(billed, request_id=",".join(ids)) == []
    billed.order({"point": "billing", "kind": "billed_refusals"})
    [event] = list_events(billed, request_id=",".join(ids))
    assert (event["request_id"], event["output_units"]) == (refused, 1)


@pytest.mark.parametrize(
    ("kind", "options", "shares"),
    [("lag", {"seconds": 3600}, []), ("split", {}, [0.5, 0.5]), ("surcharge", {"units": 4}, [2])],
)
def test_bill_is_late_split_or_higher_than_expected(billed, kind, options, shares):
    request_id = billed.submit({"num_frames": 121, "num_context_frames": 25})
    units = int(billed.get_result(request_id).headers["X-Fal-Billable-Units"])
    billed.order({"point": "billing", "kind": kind, **options})
    events = list_events(billed, request_id=request_id)
    expected = {"lag": 0, "split": units, "surcharge": units + 4}[kind]
    assert len(events) == len(shares)
    assert sum(int(str(one["output_units"])) for one in events) == expected
    query = {"request_id": request_id, "limit": "1"}
    pages = [billed.client.get(EVENTS, params=query, headers=ADMIN)]
    while cursor := pages[-1].json()["next_cursor"]:
        query["cursor"] = cursor
        pages.append(billed.client.get(EVENTS, params=query, headers=ADMIN))
    assert [event for page in pages for event in page.json()["billing_events"]] == events


def test_older_rows_have_the_estimate_alone(billed):
    request_id = billed.submit()
    billed.get_result(request_id)
    billed.order({"point": "billing", "kind": "old_form"})
    [event] = list_events(billed, request_id=request_id)
    assert event["output_units"] is event["cost_total"] is None
    assert event["cost_estimate_nano_usd"]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"start": "2026-01-01T00:00:00Z"}, 400),
        ({"limit": "0"}, 400),
        ({"request_id": ",".join("x" * 51)}, 400),
        ({"cursor": "?"}, 400),
    ],
)
def test_wrong_query_is_refused(billed, query, code):
    answered = billed.client.get(EVENTS, params=query, headers=ADMIN)
    assert answered.status_code == code
    assert answered.json()["error"]["type"] == "validation_error"


def test_bill_is_for_the_admin_key_of_its_account_only(billed):
    answered = billed.client.get(EVENTS)
    assert (answered.status_code, answered.json()["error"]["type"]) == (403, "authorization_error")
    assert httpx.get(f"{billed.url}{EVENTS}").status_code == 401


def test_price_is_shown_and_billed_as_ordered(tmp_path, sample):
    options = ("--render", "fake", "--unit-price", "0.5")
    with start_emulator(lay_out(tmp_path, sample), *options) as emulator:
        query = {"endpoint_id": "fal-ai/ltx-2.3-22b/extend-video"}
        [price] = emulator.client.get("/v1/models/pricing", params=query).json()["prices"]
        assert price["unit_price"] == 0.5
        request_id = emulator.submit()
        units = int(emulator.get_result(request_id).headers["X-Fal-Billable-Units"])
        [event] = list_events(emulator, request_id=request_id)
        assert event["cost_estimate_nano_usd"] == units * 500_000_000


def test_bill_is_at_another_price_or_less_a_discount(billed):
    request_id = billed.submit()
    units = int(billed.get_result(request_id).headers["X-Fal-Billable-Units"])
    billed.order({"point": "billing", "kind": "other_price", "unit_price": "0.002"})
    [dearer] = list_events(billed, request_id=request_id)
    assert dearer["cost_estimate_nano_usd"] == units * 2_000_000
    billed.order({"point": "billing", "kind": "discount", "percent": 20})
    [cheaper] = list_events(billed, request_id=request_id)
    assert cheaper["cost_estimate_nano_usd"] == units * NANO_OF_A_UNIT * 8 // 10
    assert (cheaper["percent_discount"], cheaper["unit_price"]) == (20, 0.001605)


def test_price_shown_to_either_key_is_the_usual_one_unless_ordered_otherwise(billed):
    def read_price(headers: dict[str, str]) -> float:
        query = {"endpoint_id": "fal-ai/ltx-2.3-22b/extend-video"}
        answered = billed.client.get("/v1/models/pricing", params=query, headers=headers)
        return float(answered.json()["prices"][0]["unit_price"])

    assert {read_price({}), read_price(ADMIN)} == {0.001605}
    billed.order({"point": "pricing", "kind": "other_price", "unit_price": "0.002"})
    assert read_price({}) == 0.002


def test_price_that_is_no_amount_is_refused(billed):
    fault = {"point": "pricing", "kind": "other_price", "unit_price": "0.0000000001"}
    refused = billed.client.put("/_emulator/faults", json=[fault])
    assert refused.status_code == 400
    assert "whole nano-USD" in refused.text


@pytest.mark.parametrize("units", [None, "12.5"])
def test_result_states_other_units_or_none(billed, units):
    request_id = billed.submit()
    billed.get_result(request_id)
    headers = {"X-Fal-Billable-Units": units}
    billed.order({"point": "result", "kind": "headers", "headers": headers})
    result = billed.get_result(request_id)
    assert result.json()["video"]["url"]
    assert result.headers.get("X-Fal-Billable-Units") == units
