"""How fal's replies to a submission are sorted, and what the client sends and refuses to follow."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

import worker.fal.queue
from tests.harness.brokers import find_closed_port, open_black_hole
from tests.harness.web import (
    Answer,
    ScriptedServer,
    break_off,
    hang,
    run_server,
    send_body,
    send_json,
)
from worker.fal.queue import (
    ACCOUNT_DELAY,
    BUSY_DELAY,
    MAX_REPLY_BYTES,
    MAX_RETRY_AFTER,
    UNREACHABLE_DELAY,
    Accepted,
    Ambiguous,
    QueueClient,
    Refused,
    Reply,
    SubmitReply,
    sort_reply,
    sort_transport_error,
)

BASE = "https://queue.fal.run"
APP = f"{BASE}/fal-ai/ltx-2.3-22b/requests/r-1"
DETAIL = {"detail": "fal's own words"}
KEY = "the-secret-key"


def sort(status: int, body: object, **headers: str) -> SubmitReply:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return sort_reply(Reply(status, httpx.Headers(headers), raw), BASE)


# ------------------------------------------------------------------ pure


def test_sort_reply_with_request_id_and_urls_is_accepted() -> None:
    urls = {"status_url": f"{APP}/status", "response_url": APP, "cancel_url": f"{APP}/cancel"}
    body = {"status": "IN_QUEUE", "request_id": "r-1", "queue_position": 0, "logs": None, **urls}
    assert sort(200, body) == Accepted("r-1", **urls)


def test_sort_reply_with_request_id_alone_is_accepted() -> None:
    assert sort(200, {"request_id": "r-1"}) == Accepted("r-1", None, None, None)


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/requests/r-1/status",
        "http://queue.fal.run/requests/r-1/status",
        "https://queue.fal.run.evil.example/",
        "https://queue.fal.run@evil.example/",
        "https://user@queue.fal.run/",
        "https://queue.fal.run:444/",
        "https://queue.fal.run\\@evil.example/",
        "//queue.fal.run/",
        "/requests/r-1/status",
        "https://[::1/status",
        "https://[/",
        "https://queue.fal.run\u2100/",
        "",
        None,
        7,
        ["https://queue.fal.run/"],
    ],
)
def test_sort_reply_drops_follow_up_url_on_other_host(url) -> None:
    body = {"request_id": "r-1", "status_url": url, "response_url": APP, "cancel_url": url}
    assert sort(200, body) == Accepted("r-1", None, APP, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff",
        b"[" * 100_000,
        b"null",
        [],
        {},
        {"request_id": ""},
        {"request_id": None},
        {"request_id": 7},
        {"request_id": ["r-1"]},
        {"status": "IN_QUEUE"},
        {"detail": "no such thing"},
    ],
)
def test_sort_reply_200_without_request_id_is_ambiguous(body) -> None:
    assert sort(200, body) == Ambiguous(200, "fal answered 200 without a request id")


@pytest.mark.parametrize("status", [400, 402, 404, 405, 409, 410, 413, 415, 422])
def test_sort_reply_client_error_in_fals_shape_is_refused_for_good(status) -> None:
    assert sort(status, DETAIL) == Refused(status, f"fal_http_{status}", DETAIL["detail"], None)


@pytest.mark.parametrize("status", [401, 403])
def test_sort_reply_about_account_is_refused_for_a_while(status) -> None:
    body = {"detail": "User is locked. Reason: Exhausted balance."}
    assert sort(status, body) == Refused(
        status, f"fal_http_{status}", body["detail"], ACCOUNT_DELAY
    )


@pytest.mark.parametrize(
    ("header", "delay"),
    [
        (None, BUSY_DELAY),
        ("", BUSY_DELAY),
        ("7", timedelta(seconds=7)),
        ("0", timedelta()),
        ("3600", timedelta(hours=1)),
        ("3601", MAX_RETRY_AFTER),
        ("9" * 5000, MAX_RETRY_AFTER),
        ("-1", BUSY_DELAY),
        ("1.5", BUSY_DELAY),
        ("Wed, 21 Oct 2026 07:28:00 GMT", BUSY_DELAY),
    ],
)
def test_sort_reply_of_full_queue_waits_as_told_within_bounds(header, delay) -> None:
    headers = {} if header is None else {"Retry-After": header}
    assert sort(429, DETAIL, **headers) == Refused(429, "fal_http_429", DETAIL["detail"], delay)


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (
            {"detail": "stopped", "error_type": "bad_request"},
            "bad_request",
            "stopped",
        ),
        (
            {"detail": [{"loc": ["body", "fps"], "msg": "too big", "type": "less_than_equal"}]},
            "less_than_equal",
            "fps: too big",
        ),
        ({"detail": [{"msg": "plain"}]}, "fal_http_422", "plain"),
        ({"detail": "", "error_type": ""}, "fal_http_422", "HTTP 422"),
    ],
)
def test_sort_reply_names_refusal_by_fals_type(body, code, message) -> None:
    assert sort(422, body) == Refused(422, code, message, None)


@pytest.mark.parametrize("status", [201, 202, 204, 301, 302, 307, 308, 500, 502, 503, 504, 529])
@pytest.mark.parametrize("body", [DETAIL, b"<html>nginx</html>", {"request_id": "r-1"}])
def test_sort_reply_that_proves_nothing_is_ambiguous(status, body) -> None:
    assert sort(status, body) == Ambiguous(status, f"fal answered {status}")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 429])
@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", [], {"error": {"type": "not_found"}}])
def test_sort_reply_client_error_in_other_shape_is_ambiguous(status, body) -> None:
    """A gateway's page does not prove that fal has refused."""
    assert sort(status, body) == Ambiguous(status, f"fal answered {status}")


@pytest.mark.parametrize(
    ("status", "error_type"),
    [(408, None), (499, "client_disconnected"), (499, "client_cancelled")],
)
def test_sort_reply_about_dropped_connection_is_ambiguous(status, error_type) -> None:
    """Fal says that the connection was lost, not that the request was refused."""
    body = {"detail": "connection lost", "error_type": error_type}
    assert sort(status, body) == Ambiguous(status, f"fal answered {status}")


@pytest.mark.parametrize(
    "error",
    [httpx.ConnectError("refused"), httpx.ConnectTimeout("slow"), httpx.PoolTimeout("full")],
)
def test_sort_transport_error_before_connection_is_refused_for_a_while(error) -> None:
    message = f"{type(error).__name__}: {error}"
    assert sort_transport_error(error) == Refused(
        None, "fal_unreachable", message, UNREACHABLE_DELAY
    )


@pytest.mark.parametrize(
    "error",
    [
        httpx.ReadTimeout("slow"),
        httpx.WriteTimeout("slow"),
        httpx.ReadError("reset"),
        httpx.WriteError("reset"),
        httpx.CloseError("reset"),
        httpx.RemoteProtocolError("no HTTP"),
        httpx.LocalProtocolError("no HTTP"),
        httpx.ProxyError("proxy"),
        httpx.DecodingError("gzip"),
    ],
)
def test_sort_transport_error_after_connection_is_ambiguous(error) -> None:
    assert sort_transport_error(error) == Ambiguous(None, f"{type(error).__name__}: {error}")


# NUL, half a surrogate pair, and what makes a host: rare in random text, common in trouble.
odd_text = st.text("ab\0\ud800\U0001f600/[]@:\u2100", max_size=12)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | odd_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(odd_text, inner, max_size=4),
    max_leaves=12,
)
urls = odd_text.map(lambda rest: f"{BASE}{rest}") | odd_text.map(lambda rest: f"https://{rest}")
details = st.lists(
    st.dictionaries(st.sampled_from(["loc", "msg", "type"]), json_values), min_size=1, max_size=3
)
replies = st.fixed_dictionaries(
    {},
    optional={
        "request_id": odd_text | json_values,
        "status_url": urls | json_values,
        "response_url": urls,
        "cancel_url": urls,
        "detail": odd_text | details | json_values,
        "error_type": odd_text | json_values,
    },
)
bodies = st.binary(max_size=60) | (json_values | replies).map(lambda one: json.dumps(one).encode())


@given(st.sampled_from([200, 403, 422, 429, 500]), bodies, st.text(max_size=9))
def test_sort_reply_of_anything_is_one_storable_value(status, body, retry_after) -> None:
    """The attempt is paid by now: whatever fal says, its outcome must get into the table."""
    headers = {"retry-after": retry_after}
    reply = sort_reply(Reply(status, headers, body), BASE)
    match reply:
        case Accepted():
            assert status == 200
            texts = (reply.fal_request_id, reply.status_url, reply.response_url, reply.cancel_url)
        case Refused():
            assert 400 <= status < 500
            texts = (reply.code, reply.message, None, None)
            assert reply.retry_after is None or timedelta() <= reply.retry_after <= MAX_RETRY_AFTER
        case Ambiguous():
            texts = (reply.message, None, None, None)
    for text in texts:
        assert "\0" not in (text or "")
        (text or "").encode()


@pytest.mark.parametrize("opening", [b"[", b'{"detail":'])
def test_sort_reply_of_any_depth_never_raises(opening) -> None:
    closing = b"]" if opening == b"[" else b"}"
    for depth in range(1, 1100):
        nested = opening * depth + b"1" + closing * depth
        sort(422, b'{"detail": [{"msg": %b}, %b]}' % (nested, nested))


# ------------------------------------------------------------------ over HTTP


@pytest.fixture
def fal() -> Iterator[ScriptedServer]:
    with run_server(send_json({"request_id": "r-1"})) as server:
        yield server


def submit(base_url: str, **options: Any) -> SubmitReply:
    terms: dict[str, Any] = {
        "webhook_url": "https://hooks.test/webhooks/fal/a-token?x=1&y=ü",
        "start_timeout": timedelta(seconds=90),
        "store_io": True,
    }
    client = QueueClient(base_url, SecretStr(KEY))
    try:
        return client.submit("fal-ai/app/path", {"prompt": "ü", "seed": 7}, **(terms | options))
    finally:
        client.close()


def test_submit_posts_bare_input_with_webhook_and_headers(fal) -> None:
    assert submit(fal.url) == Accepted("r-1", None, None, None)

    (asked,) = fal.asked
    assert (asked.method, asked.path) == ("POST", "/fal-ai/app/path")
    assert asked.query == {"fal_webhook": ["https://hooks.test/webhooks/fal/a-token?x=1&y=ü"]}
    assert json.loads(asked.body) == {"prompt": "ü", "seed": 7}
    headers = {name.lower(): value for name, value in asked.headers.items()}
    assert headers["authorization"] == f"Key {KEY}"
    assert headers["content-type"] == "application/json"
    assert headers["x-fal-request-start-timeout"] == headers["x-fal-request-timeout"] == "90"
    assert headers["x-fal-store-io"] == "1"


def test_submit_without_storing_says_so(fal) -> None:
    submit(fal.url, store_io=False, start_timeout=timedelta(days=7))
    headers = fal.asked[0].headers
    assert (headers["X-Fal-Store-IO"], headers["X-Fal-Request-Timeout"]) == ("0", "604800")


def test_submit_follows_no_redirect_and_shows_nobody_the_key(fal) -> None:
    with run_server(send_json({"request_id": "stolen"})) as stranger:
        fal.answer = send_body(b"", 307, Location=f"{stranger.url}/take")
        assert submit(fal.url) == Ambiguous(307, "fal answered 307")
        assert stranger.asked == []
    assert len(fal.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        break_off(),
        break_off(b'{"request_id": "r-1"}', 1000),
        send_body(b"x" * (MAX_REPLY_BYTES + 1)),
        send_json(DETAIL, 500),
        send_json(DETAIL, 503),
        send_body(b"", 301, Location="http://[bad"),
    ],
)
def test_submit_with_unclear_outcome_posts_once_and_is_ambiguous(fal, answer: Answer) -> None:
    fal.answer = answer
    assert isinstance(submit(fal.url), Ambiguous)
    assert len(fal.asked) == 1


def test_submit_reads_reply_up_to_its_bound(fal) -> None:
    body = json.dumps({"request_id": "r-1"}).encode()
    fal.answer = send_body(body + b" " * (MAX_REPLY_BYTES - len(body)))
    assert submit(fal.url) == Accepted("r-1", None, None, None)


def test_submit_takes_no_compressed_reply(fal) -> None:
    submit(fal.url)
    assert fal.asked[0].headers["Accept-Encoding"] == "identity"


def test_submit_to_silent_fal_gives_up_as_ambiguous(fal, monkeypatch) -> None:
    monkeypatch.setattr(worker.fal.queue, "TOTAL_TIMEOUT", timedelta(seconds=0.1))
    fal.answer = hang
    reply = submit(fal.url)
    assert reply == Ambiguous(None, "no reply within 0.1 s")
    assert len(fal.asked) == 1


def test_submit_over_silent_connection_gives_up_as_ambiguous(monkeypatch) -> None:
    monkeypatch.setattr(worker.fal.queue, "TIMEOUT", httpx.Timeout(0.1))
    with open_black_hole() as hole:
        reply = submit(f"http://127.0.0.1:{hole.port}")
        assert isinstance(reply, Ambiguous)
        assert "ReadTimeout" in reply.message
        assert len(hole.connections) == 1


def test_submit_where_nobody_listens_is_refused_for_a_while() -> None:
    reply = submit(f"http://127.0.0.1:{find_closed_port()}")
    assert isinstance(reply, Refused)
    assert (reply.code, reply.retry_after) == ("fal_unreachable", UNREACHABLE_DELAY)
