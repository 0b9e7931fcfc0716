"""How fal's request listing is read: by pages, to an end, and never as more than it is."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.harness.web import ScriptedHandler, ScriptedServer, break_off, run_server, send_json
from worker.fal import platform
from worker.fal.completion import Completion
from worker.fal.platform import MAX_PAGES, ListedRequest, Listing, PlatformClient

ENDPOINT = "fal-ai/app/path"
END = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
START = END - timedelta(hours=1)


def build_item(number: int, **changes: Any) -> dict[str, Any]:
    item = {
        "request_id": f"r-{number}",
        "ended_at": "2026-11-23T12:00:00+00:00",
        "status_code": 200,
        "json_input": {"seed": number},
        "json_output": {"video": {}},
    }
    return item | changes


def build_page(*items: object, cursor: object = None, has_more: object = False) -> dict[str, Any]:
    return {"items": list(items), "next_cursor": cursor, "has_more": has_more}


class Pages:
    """A platform API that answers with these pages in turn, the last one again and again."""

    def __init__(self, *pages: object) -> None:
        self.pages = pages
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        page = self.pages[min(len(self.asked), len(self.pages) - 1)]
        self.asked.append(request)
        given = page if isinstance(page, httpx.Response) else httpx.Response(200, json=page)
        # Not read yet, as from a socket.
        body = httpx.ByteStream(given.content)
        headers = {"date": formatdate(), **given.headers}
        return httpx.Response(given.status_code, headers=headers, stream=body)


def read(*pages: object) -> tuple[Listing, list[httpx.Request]]:
    """What the client makes of these pages, and what it asked for them."""
    served = Pages(*pages)
    # No socket: this is done a thousand times.
    http = httpx.Client(transport=httpx.MockTransport(served))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform, "build_client", lambda *_, **__: http)
        client = PlatformClient("https://api.test/v1", SecretStr("key"))
    try:
        return client.list_requests(ENDPOINT, START, END), served.asked
    finally:
        client.close()


def test_list_of_one_page_has_everything() -> None:
    listing, asked = read(build_page(build_item(1), build_item(2, ended_at=None, status_code=None)))
    assert listing == Listing(
        (
            ListedRequest("r-1", True, 200, {"seed": 1}, {"video": {}}),
            ListedRequest("r-2", False, None, {"seed": 2}, {"video": {}}),
        ),
        None,
        lists_all=True,
    )
    assert dict(asked[0].url.params) == {
        "endpoint_id": ENDPOINT,
        "start": START.isoformat(),
        "end": END.isoformat(),
        "expand": "payloads",
        "limit": "100",
    }


def test_list_of_many_pages_follows_cursor() -> None:
    listing, asked = read(
        build_page(build_item(1), cursor="a", has_more=True),
        build_page(build_item(2), cursor="b&c=d", has_more=True),
        build_page(build_item(3)),
    )
    assert [one.fal_request_id for one in listing.requests] == ["r-1", "r-2", "r-3"]
    assert listing.gap is None
    assert [one.url.params.get("cursor") for one in asked] == [None, "a", "b&c=d"]


@pytest.mark.parametrize(
    "page",
    [
        build_page(build_item(1), cursor=None, has_more=True),
        build_page(build_item(1), cursor="", has_more=True),
        build_page(build_item(1), cursor={"at": 1}, has_more=True),
        build_page(build_item(1), cursor=["x"], has_more=None),
        build_page(build_item(1), cursor=None, has_more="yes"),
    ],
)
def test_list_that_hides_where_it_goes_on_has_gap(page) -> None:
    listing, asked = read(page)
    assert (listing.gap, listing.lists_all) == ("does not say where it goes on", False)
    assert len(asked) == 1


def test_list_without_has_more_goes_on_where_cursor_is() -> None:
    first = {"items": [build_item(1)], "next_cursor": "a"}
    listing, asked = read(first, {"items": [build_item(2)]})
    assert (len(listing.requests), listing.gap, len(asked)) == (2, None, 2)


def test_list_that_runs_in_circle_ends_with_gap() -> None:
    listing, asked = read(
        build_page(cursor="a", has_more=True),
        build_page(cursor="b", has_more=True),
        build_page(cursor="a", has_more=True),
    )
    assert listing.gap == "does not say where it goes on"
    assert len(asked) == 3


def test_list_without_end_is_left_with_gap() -> None:
    pages = [build_page(build_item(n), cursor=f"c{n}", has_more=True) for n in range(MAX_PAGES + 9)]
    listing, asked = read(*pages)
    assert listing.gap == f"has more than {MAX_PAGES} pages"
    assert len(asked) == len(listing.requests) == MAX_PAGES


def test_list_with_items_that_nobody_can_name_has_gap() -> None:
    for item in (None, "r-1", {}, {"request_id": ""}):
        listing, _ = read(build_page(build_item(1), item, build_item(2)))
        assert listing.gap == "has items without a request id"
        assert [one.fal_request_id for one in listing.requests] == ["r-1", "r-2"]


def test_list_without_inputs_has_gap_and_every_request() -> None:
    listing, _ = read(build_page(build_item(1), build_item(2, json_input=None)))
    assert (listing.gap, listing.lists_all) == ("shows no input for 1 of 2 requests", True)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(401, json={"error": {"type": "authorization_error"}}),
        httpx.Response(500, text="oh"),
        httpx.Response(302, headers={"Location": "https://evil.test"}),
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json={"items": {}}),
    ],
)
def test_list_broken_off_keeps_what_was_read_and_has_gap(answer) -> None:
    listing, _ = read(build_page(build_item(1), cursor="a", has_more=True), answer)
    assert [one.fal_request_id for one in listing.requests] == ["r-1"]
    assert str(listing.gap).startswith("cannot be read: ")
    assert not listing.lists_all


def test_listed_request_tells_of_its_end_where_it_is_sure() -> None:
    failed = Completion("r-1", None, "ERROR", {"detail": []}, "HTTP 422")
    cases: list[tuple[dict[str, Any], Completion | None]] = [
        ({}, Completion("r-1", None, "OK", {"video": {}}, None)),
        ({"status_code": 422, "json_output": {"detail": []}}, failed),
        *(({name: None}, None) for name in ("ended_at", "json_output", "status_code")),
        ({"status_code": "200"}, None),
    ]
    for changes, completion in cases:
        listing, _ = read(build_page(build_item(1, **changes)))
        assert listing.requests[0].completion == completion


odd_text = st.text("ab\0\ud800\U0001f600/?&#%=\n ", max_size=12)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | odd_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(odd_text, inner, max_size=4),
    max_leaves=10,
)
items = json_values | st.fixed_dictionaries(
    {},
    optional={
        "request_id": odd_text | json_values,
        "ended_at": odd_text | json_values,
        "status_code": st.integers() | json_values,
        "json_input": json_values,
        "json_output": json_values,
    },
)
pages = json_values | st.fixed_dictionaries(
    {},
    optional={
        "items": st.lists(items, max_size=4) | json_values,
        "next_cursor": odd_text | json_values,
        "has_more": st.booleans() | json_values,
    },
)
answers = st.one_of(
    pages.map(lambda page: json.dumps(page).encode()),
    st.binary(max_size=40),
    st.integers(1, 3000).map(lambda depth: b'{"items":' + b"[" * depth + b"]" * depth + b"}"),
)
replies = st.tuples(st.sampled_from([200, 200, 200, 201, 301, 404, 500]), answers)


@given(st.lists(replies, min_size=1, max_size=5))
def test_list_of_anything_ends_and_never_claims_more_than_it_has(given_replies) -> None:
    listing, asked = read(*[httpx.Response(status, content=body) for status, body in given_replies])
    assert len(asked) <= MAX_PAGES
    for one in listing.requests:
        assert one.fal_request_id
        one.fal_request_id.encode()
        assert one.completion is None or one.completion.fal_request_id == one.fal_request_id
    if listing.gap is None:
        assert listing.lists_all
        assert all(one.input is not None for one in listing.requests)
        assert all(status == 200 for status, _ in given_replies[: len(asked)])


# ------------------------------------------------------------------ over HTTP


@pytest.fixture
def fal() -> Iterator[ScriptedServer]:
    with run_server(send_json(build_page(build_item(1)))) as server:
        yield server


@pytest.fixture
def client(fal) -> Iterator[PlatformClient]:
    made = PlatformClient(f"{fal.url}/v1", SecretStr("the-secret-key"))
    yield made
    made.close()


def test_find_request_asks_for_its_id_with_the_key(fal, client) -> None:
    (found,) = client.find_request(ENDPOINT, "r-1").requests
    assert found.fal_request_id == "r-1"
    (asked,) = fal.asked
    assert asked.path == "/v1/models/requests/by-endpoint"
    assert asked.query["request_id"] == ["r-1"]
    assert asked.headers["Authorization"] == "Key the-secret-key"


def test_find_request_takes_no_other_for_it(client) -> None:
    listing = client.find_request(ENDPOINT, "r-2")
    assert (listing.requests, listing.gap) == ((), None)


def test_request_in_a_listing_that_cannot_be_read_is_not_known_to_be_absent(fal, client) -> None:
    fal.answer = send_json({"detail": "no"}, 401)
    assert not client.find_request(ENDPOINT, "r-1").lists_all
    assert "HTTP 401" in str(client.explain_unreadable(ENDPOINT, END))


@pytest.mark.parametrize(
    ("make_date", "gap"),
    [
        (formatdate, None),
        (lambda: formatdate(time.time() + 55), None),
        (lambda: formatdate(time.time() - 7200), "this host's clock differs from fal's by "),
        (lambda: "yesterday", "fal's reply has no date to check this host's clock by"),
        (lambda: "", "fal's reply has no date to check this host's clock by"),
    ],
    ids=["same", "within-a-minute", "two-hours", "no-date", "none"],
)
def test_date_of_the_reply_is_compared_with_this_hosts_clock(make_date, gap) -> None:
    listing, _ = read(httpx.Response(200, json=build_page(), headers={"Date": make_date()}))
    assert (listing.clock_gap is None) == (gap is None)
    assert str(listing.clock_gap).startswith(str(gap))


def test_list_shows_nobody_else_the_key(fal, client) -> None:
    with run_server(send_json(build_page(build_item(1)))) as stranger:

        def redirect(handler: ScriptedHandler) -> None:
            handler.send_head(307, Location=f"{stranger.url}/take", Content_Length=0)

        fal.answer = redirect
        listing = client.list_requests(ENDPOINT, START, END)
        assert listing == Listing((), "cannot be read: HTTP 307")
        assert stranger.asked == []


def test_list_over_broken_connection_has_gap(fal, client) -> None:
    fal.answer = break_off(b'{"items": []}', 1000)
    listing = client.list_requests(ENDPOINT, START, END)
    assert listing.requests == ()
    assert str(listing.gap).startswith("cannot be read: RemoteProtocolError")


def test_list_larger_than_bound_has_gap(fal, client, monkeypatch) -> None:
    monkeypatch.setattr(platform, "MAX_PAGE_BYTES", 10)
    listing = client.list_requests(ENDPOINT, START, END)
    assert listing.gap == "cannot be read: ReplyTooLargeError: the reply has more than 10 bytes"
