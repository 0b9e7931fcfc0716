"""What is no proof: a late gateway, a listing that does not show all, clocks, other accounts."""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from time import monotonic
from typing import Any

import httpx
import pytest

from tests.emulator.conftest import lay_out
from tests.emulator.processes import ENDPOINT, SHORT, Emulator, start_emulator, wait_until

LISTING = "/v1/models/requests/by-endpoint"
STORED = {"X-Fal-Store-IO": "1"}
OTHER_KEY = "other-id:other-secret"


def ask(emulator: Emulator, **query: str) -> httpx.Response:
    params = {"endpoint_id": ENDPOINT[1:], "expand": "payloads", **query}
    return emulator.client.get(LISTING, params=params)


def list_ids(emulator: Emulator) -> list[str]:
    return [one["request_id"] for one in ask(emulator).json()["items"]]


def read_pages(emulator: Emulator, most: int, **query: str) -> list[dict[str, Any]]:
    """At most so many pages, as far as they go on."""
    pages = [ask(emulator, **query).json()]
    while len(pages) < most and pages[-1].get("next_cursor"):
        pages.append(ask(emulator, **query, cursor=pages[-1]["next_cursor"]).json())
    return pages


@pytest.mark.parametrize("code", [502, 504])
def test_late_gateway_has_passed_the_request_on(faulty, request, code):
    prompt = request.node.name
    late = {"point": "submit", "kind": "execute_then_ingress", "code": code, "seconds": 0.2}
    faulty.order(late)
    began = monotonic()
    response = faulty.post({"prompt": prompt})
    assert monotonic() - began >= 0.2
    assert response.status_code == code
    assert "nginx" in response.text
    assert "x-fal-request-id" not in response.headers
    [queued] = [one for one in faulty.list_requests() if one["input"]["prompt"] == prompt]
    assert faulty.get_result(queued["request_id"]).status_code == 200


@pytest.fixture
def three(faulty) -> dict[str, str]:
    """The window of three requests that have ended."""
    start = datetime.now(UTC)
    for _ in range(3):
        faulty.get_result(faulty.submit())
    return {"start": start.isoformat(), "end": datetime.now(UTC).isoformat()}


@pytest.mark.parametrize(
    ("form", "items"), [("endless", [2, 1, 0, 0, 0, 0]), ("no_cursor", [2]), ("refused", [2, None])]
)
def test_cut_listing_never_comes_to_its_end(faulty, three, form, items):
    faulty.order({"point": "listing", "kind": "cut", "form": form, "items": 2})
    pages = read_pages(faulty, 6, **three)
    assert [len(one["items"]) if "items" in one else None for one in pages] == items
    assert all(one["has_more"] for one in pages if "items" in one)
    cursors = [one["next_cursor"] for one in pages if one.get("next_cursor")]
    assert len(set(cursors)) == len(cursors)
    if form == "refused":
        assert pages[-1]["error"]["type"] == "validation_error"


def test_lagging_listing_shows_a_request_only_later(faulty):
    request_id = faulty.submit()
    faulty.order({"point": "listing", "kind": "lag", "seconds": 600})
    assert request_id not in list_ids(faulty)
    faulty.order({"point": "listing", "kind": "lag", "seconds": 0.1})
    wait_until(lambda: request_id in list_ids(faulty))


def test_listing_with_extra_fields_has_them_in_inputs_that_it_shows(faulty):
    shown, hidden = (faulty.post(headers=headers).json()["request_id"] for headers in (STORED, {}))
    faulty.order({"point": "listing", "kind": "extra_fields", "fields": {"source": "api"}})
    inputs = {one["request_id"]: one["json_input"] for one in ask(faulty).json()["items"]}
    assert inputs[shown] == faulty.find(shown)["input"] | {"source": "api"}
    assert inputs[hidden] is None


@pytest.mark.parametrize("seconds", [7200, -90])
@pytest.mark.parametrize("path", ["/healthz", LISTING, f"{SHORT}/requests/none/status"])
def test_wrong_date_is_on_any_reply(faulty, seconds, path):
    faulty.order({"point": "date", "kind": "wrong", "seconds": seconds, "times": 1})
    first, second = (
        parsedate_to_datetime(faulty.client.get(path).headers["date"]) - datetime.now(UTC)
        for _ in range(2)
    )
    assert abs(first - timedelta(seconds=seconds)) < timedelta(seconds=5)
    assert abs(second) < timedelta(seconds=5)


def test_missing_date_is_missing_beside_another_fault(faulty):
    refusal = {"point": "listing", "kind": "status", "code": 401}
    faulty.order({"point": "date", "kind": "missing"}, refusal)
    response = ask(faulty)
    assert response.status_code == 401
    assert "date" not in response.headers
    assert "date" in faulty.client.get("/_emulator/faults").headers


@pytest.fixture(scope="module")
def shared(tmp_path_factory, sample):
    """An emulator with two accounts."""
    directory = lay_out(tmp_path_factory.mktemp("accounts"), sample)
    with start_emulator(directory, "--render", "fake", "--other-key", OTHER_KEY) as emulator:
        yield emulator


@pytest.mark.parametrize("is_own", [True, False])
def test_requests_are_known_to_their_own_account_only(shared: Emulator, receiver, is_own):
    keys = [{"Authorization": f"Key {key}"} for key in ("emulator-key", OTHER_KEY)]
    mine, theirs = keys if is_own else reversed(keys)
    request_id = shared.post(headers=mine, query={"fal_webhook": receiver.url}).json()["request_id"]
    account = "emulator-user" if is_own else "emulator-user-2"
    assert receiver.take().headers["x-fal-webhook-user-id"] == account
    assert shared.find(request_id)["account"] == account
    window = {"endpoint_id": ENDPOINT[1:], "request_id": request_id}
    listings = [
        shared.client.get(LISTING, params=window, headers=headers).json()["items"]
        for headers in (mine, theirs)
    ]
    assert [len(items) for items in listings] == [1, 0]
    path = f"{SHORT}/requests/{request_id}"
    assert shared.client.get(path, headers=mine).status_code == 200
    for method, tail in (
        ("GET", ""),
        ("GET", "/status"),
        ("GET", "/status/stream"),
        ("PUT", "/cancel"),
    ):
        answer = shared.client.request(method, path + tail, headers=theirs)
        assert (answer.status_code, answer.json()) == (404, {"status": "NOT_FOUND"})
