from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.emulator.processes import Emulator, wait_until

PATH = "/v1/models/requests/by-endpoint"
ENDPOINT_ID = "fal-ai/ltx-2.3-22b/extend-video"
STORED = {"X-Fal-Store-IO": "1"}


def ask(emulator: Emulator, **query: Any) -> dict[str, Any]:
    response = emulator.client.get(PATH, params={"endpoint_id": ENDPOINT_ID, **query})
    assert response.status_code == 200, response.text
    return dict(response.json())


def list_ids(emulator: Emulator, **query: object) -> list[str]:
    return [one["request_id"] for one in ask(emulator, **query)["items"]]


def find_item(emulator: Emulator, request_id: str, **query: object) -> dict[str, Any]:
    [item] = ask(emulator, request_id=request_id, **query)["items"]
    return dict(item)


@dataclass(frozen=True, slots=True)
class Archive:
    """Seven requests, ended in order, two of them badly; newest first, as they are listed."""

    emulator: Emulator
    ids: list[str]
    window: dict[str, str]
    """The query that leads to these alone."""

    def ask(self, **query: Any) -> dict[str, Any]:
        return ask(self.emulator, **{**self.window, **query})

    def list_ids(self, **query: Any) -> list[str]:
        return [one["request_id"] for one in self.ask(**query)["items"]]


@pytest.fixture(scope="module")
def archive(quick):
    start = datetime.now(UTC)
    ids = []
    for number in range(7):
        ids.append(quick.submit({"fps": 0} if number in (2, 4) else {}))
        quick.get_result(ids[-1])
    window = {"start": start.isoformat(), "end": datetime.now(UTC).isoformat()}
    return Archive(quick, ids[::-1], window)


def test_listing_shows_newest_ends_first(archive):
    page = archive.ask()
    assert [one["request_id"] for one in page["items"]] == archive.ids
    assert (page["next_cursor"], page["has_more"]) == (None, False)


def test_listing_item_has_times_code_and_no_payloads(archive):
    request_id = archive.ids[0]
    item = find_item(archive.emulator, request_id)
    record = archive.emulator.find(request_id)
    assert item == {
        "request_id": request_id,
        "endpoint_id": ENDPOINT_ID,
        "started_at": record["started_at"],
        "sent_at": record["submitted_at"],
        "ended_at": record["completed_at"],
        "status_code": 200,
        "duration": item["duration"],
    }
    assert item["duration"] > 0


@pytest.mark.parametrize("sort", ["end_time", "duration"])
def test_listing_by_pages_shows_each_once(archive, sort):
    seen: list[str] = []
    pages = 0
    page: dict[str, Any] = {"next_cursor": None, "has_more": True}
    while page["has_more"]:
        cursor = {"cursor": page["next_cursor"]} if page["next_cursor"] else {}
        page = archive.ask(limit=2, sort=sort, **cursor)
        seen += [one["request_id"] for one in page["items"]]
        pages += 1
    assert seen == archive.list_ids(sort=sort)
    assert sorted(seen) == sorted(archive.ids)
    assert pages == 4


def test_listing_by_duration_shows_longest_first(archive):
    durations = [one["duration"] for one in archive.ask(sort="duration")["items"]]
    assert durations == sorted(durations, reverse=True)


@pytest.mark.parametrize(
    ("status", "places"), [("user_error", [2, 4]), ("error", []), ("success", [0, 1, 3, 5, 6])]
)
def test_listing_by_status_shows_those_only(archive, status, places):
    assert archive.list_ids(status=status) == [archive.ids[place] for place in places]


def test_listing_of_window_is_closed_at_its_start_only(archive):
    first, last = (archive.emulator.find(archive.ids[place])["submitted_at"] for place in (4, 2))
    assert archive.list_ids(start=first, end=last) == archive.ids[3:5]


def test_listing_of_naive_time_takes_it_for_utc(archive):
    start = datetime.fromisoformat(archive.window["start"]).replace(tzinfo=None)
    assert archive.list_ids(start=start.isoformat()) == archive.ids
    assert archive.list_ids(start=(start + timedelta(hours=1)).isoformat()) == []


@pytest.mark.parametrize(
    ("endpoints", "count"),
    [
        ([f"fal-ai/other,{ENDPOINT_ID}"], 7),
        (["fal-ai/other"], 0),
    ],
)
def test_listing_of_endpoints_shows_theirs(archive, endpoints, count):
    assert len(archive.list_ids(endpoint_id=endpoints)) == count


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ({"endpoint_id": ""}, "endpoint_id"),
        ({"limit": "101"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"start": "yesterday"}, "start"),
        ({"sort": "size"}, "sort"),
        ({"cursor": "bnVsbA=="}, "cursor"),
    ],
)
def test_listing_of_wrong_query_names_the_parameter(quick, query, complaint):
    response = quick.client.get(PATH, params={"endpoint_id": ENDPOINT_ID, **query})
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "validation_error")
    assert error["message"].startswith(f"{complaint}: ")


def test_listing_without_key_is_refused_in_the_envelope(quick):
    url = f"{quick.url}{PATH}?endpoint_id={ENDPOINT_ID}"
    response = httpx.get(url, trust_env=False)
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authorization_error"


def test_meta_needs_no_key_and_names_loopback(quick):
    body = httpx.get(f"{quick.url}/v1/meta", trust_env=False).json()
    assert body == {"webhook_ip_ranges": ["127.0.0.1/32", "::1/128"]}


def test_expanded_item_has_payloads_that_were_to_be_kept(faulty):
    request_id = faulty.post({"seed": 11}, headers=STORED).json()["request_id"]
    result = faulty.get_result(request_id).json()
    item = find_item(faulty, request_id, expand="payloads")
    assert item["json_input"] == faulty.find(request_id)["input"]
    assert item["json_input"]["seed"] == 11
    assert item["json_output"] == result


def test_expanded_item_lacks_payloads_that_were_not(faulty):
    request_id = faulty.post(headers={"X-Fal-Store-IO": "0"}).json()["request_id"]
    faulty.wait_for_status(request_id, "COMPLETED")
    item = find_item(faulty, request_id, expand="payloads")
    assert (item["json_input"], item["json_output"]) == (None, None)


def test_running_and_waiting_requests_come_first_without_an_end(busy):
    running = busy.list_requests()[0]["request_id"]
    waiting = busy.post(headers=STORED).json()["request_id"]
    gone = busy.submit()
    busy.cancel(gone)
    items = {one["request_id"]: one for one in ask(busy, expand="payloads")["items"]}
    assert set(list(items)[:2]) == {running, waiting}
    ends = ("ended_at", "status_code", "duration", "json_output")
    assert [items[running][name] for name in ends] == [None] * 4
    assert items[running]["started_at"] == busy.find(running)["started_at"]
    assert items[waiting]["json_input"]["prompt"] == "on it goes"
    assert items[waiting]["started_at"] is None
    assert items[gone]["status_code"] == 499


def test_listing_with_running_omitted_shows_ended_ones_only(busy):
    waiting, gone = busy.submit(), busy.submit()
    busy.cancel(gone)
    busy.order({"point": "listing", "kind": "omit_running"})
    listed = list_ids(busy)
    busy.order()
    assert gone in listed
    assert waiting not in listed


def test_listing_with_payloads_omitted_has_none(faulty):
    request_id = faulty.post(headers=STORED).json()["request_id"]
    wait_until(lambda: faulty.find(request_id)["status"] == "COMPLETED")
    faulty.order({"point": "listing", "kind": "omit_payloads"})
    item = find_item(faulty, request_id, expand="payloads")
    assert (item["json_input"], item["json_output"]) == (None, None)


def test_listing_ordered_empty_is_empty(faulty):
    faulty.submit()
    faulty.order({"point": "listing", "kind": "empty"})
    assert ask(faulty) == {"items": [], "next_cursor": None, "has_more": False}


def test_erased_request_is_listed_still(faulty):
    request_id = faulty.submit()
    faulty.client.post(f"/_emulator/requests/{request_id}/erase")
    assert list_ids(faulty, request_id=request_id) == [request_id]
