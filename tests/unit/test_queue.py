"""How fal's replies to a submission are sorted, and what the client sends and refuses to follow.

The rows of the tables are those of fal's reference: codes on submit (2.5), model errors (4.1),
platform errors (4.2) and what its front door answers by itself (4.4).
"""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue, SecretStr

import worker.fal.http
from tests.harness.brokers import find_closed_port, open_black_hole
from tests.harness.fal import UNPROCESSABLE_TYPES
from tests.harness.web import (
    Answer,
    ScriptedServer,
    break_off,
    hang,
    run_server,
    send_body,
    send_json,
)
from worker.fal.http import MAX_REPLY_BYTES, Reply
from worker.fal.options import RequestOptions
from worker.fal.queue import (
    MAX_RETRY_AFTER,
    Accepted,
    Ambiguous,
    QueueClient,
    RefusalClass,
    Refused,
    SubmitReply,
    sort_reply,
    sort_transport_error,
)

BASE = "https://queue.fal.run"
APP = f"{BASE}/fal-ai/ltx-2.3-22b/requests/r-1"
DETAIL = {"detail": "fal's own words"}
NGINX = b"<html><center>nginx</center></html>"
FROM_FAL = {"x-fal-request-id": "r-1"}
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


# What fal says to a submission, in its own words (2.5): refused for good, for the account, for now.
REFUSALS: list[tuple[int, object, RefusalClass, str]] = [
    (401, {"detail": "Cannot access application"}, RefusalClass.ACCOUNT, "fal_http_401"),
    (403, {"detail": "User is locked. Reason: Exhausted balance."}, RefusalClass.ACCOUNT, ""),
    (403, {"detail": "User is locked. Reason: Locked by admin."}, RefusalClass.ACCOUNT, ""),
    (404, {"detail": 'Application "x" not found'}, RefusalClass.INPUT, ""),
    (429, {"detail": "More than 5 requests are waiting"}, RefusalClass.BUSY, ""),
    (400, {"detail": "no", "error_type": "bad_request"}, RefusalClass.INPUT, "bad_request"),
    (
        429,
        {"detail": "slow down", "error_type": "concurrent_requests_limit"},
        RefusalClass.BUSY,
        "concurrent_requests_limit",
    ),
    *((status, DETAIL, RefusalClass.INPUT, "") for status in (400, 402, 405, 409, 410, 413, 415)),
]


@pytest.mark.parametrize(("status", "body", "why", "code"), REFUSALS)
def test_sort_reply_client_error_in_fals_words_is_refused_by_class(status, body, why, code) -> None:
    refused = Refused(why, status, code or f"fal_http_{status}", body["detail"])
    assert sort(status, body) == refused
    assert sort(status, body, **FROM_FAL) == refused


MODEL_ERRORS = [*UNPROCESSABLE_TYPES, "a_type_of_tomorrow"]


@pytest.mark.parametrize("error_type", MODEL_ERRORS)
def test_sort_reply_model_error_is_refused_for_good_by_its_type(error_type) -> None:
    item = {"loc": ["body", "video_url"], "msg": "no", "type": error_type}
    assert sort(422, {"detail": [item]}) == Refused(
        RefusalClass.INPUT, 422, error_type, "video_url: no", details=(item,)
    )


def test_sort_reply_downstream_error_as_400_is_refused_for_good() -> None:
    """Older pages have it as 400, newer ones as 500: the code decides."""
    item: dict[str, JsonValue] = {
        "loc": ["body"],
        "msg": "no",
        "type": "downstream_service_error",
    }
    body = {"detail": [item]}
    assert sort(400, body) == Refused(
        RefusalClass.INPUT, 400, "downstream_service_error", "no", details=(item,)
    )
    assert sort(500, body) == Ambiguous(500, "fal answered 500")


# 4.1 and 4.2: whatever fal says with a 5xx, the request may be queued or have run.
SERVER_ERRORS = [
    (500, "internal_server_error"),
    (500, "downstream_service_unavailable"),
    (504, "generation_timeout"),
    (504, "request_timeout"),
    (504, "startup_timeout"),
    (503, "runner_scheduling_failure"),
    (503, "runner_connection_timeout"),
    (503, "runner_disconnected"),
    (503, "runner_connection_refused"),
    (503, "runner_connection_error"),
    (502, "runner_incomplete_response"),
    (500, "runner_server_error"),
    (500, "internal_error"),
]


@pytest.mark.parametrize(("status", "error_type"), SERVER_ERRORS)
@pytest.mark.parametrize("headers", [{}, FROM_FAL])
def test_sort_reply_server_error_of_fals_own_is_ambiguous(status, error_type, headers) -> None:
    body = {"detail": "stopped behind nginx", "error_type": error_type}
    assert sort(status, body, **headers) == Ambiguous(status, f"fal answered {status}")
    listed = {"detail": [{"loc": ["body"], "msg": "stopped", "type": error_type}]}
    assert sort(status, listed, **headers) == Ambiguous(status, f"fal answered {status}")


@pytest.mark.parametrize("status", [502, 503, 504])
@pytest.mark.parametrize("body", [NGINX, b"<hr>NGINX/1.27</hr>", b"nginx"])
def test_sort_reply_of_front_door_is_refused_as_unavailable(status, body) -> None:
    message = f"fal's front door answered {status}"
    assert sort(status, body) == Refused(
        RefusalClass.UNAVAILABLE, status, "fal_unavailable", message
    )


def test_sort_reply_of_front_door_waits_as_told() -> None:
    reply = sort(503, NGINX, **{"Retry-After": "9"})
    assert isinstance(reply, Refused)
    assert reply.retry_after == timedelta(seconds=9)


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (502, NGINX, FROM_FAL),
        (503, NGINX, {"X-FAL-REQUEST-ID": ""}),
        (502, b"<html>Bad Gateway</html>", {}),
        (503, b"", {}),
        (500, NGINX, {}),
        (501, NGINX, {}),
        (520, NGINX, {}),
        (200, NGINX, {}),
        (503, {"detail": "nginx said so"}, {}),
        (503, "nginx", {}),
        (504, {"request_id": "r-1", "server": "nginx"}, {}),
    ],
)
def test_sort_reply_not_surely_of_front_door_is_ambiguous(status, body, headers) -> None:
    """A code of its own, its own words and no id: one of the three missing, fal may have it."""
    assert isinstance(sort(status, body, **headers), Ambiguous)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("7", 7),
        ("0", 0),
        ("0000000007", 7),
        ("3600", 3600),
        ("3601", 3600),
        ("9" * 5000, 3600),
        ("-1", 0),
        ("1.5", 0),
        ("\u0667", 0),
        ("\u00b2", 0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0),
    ],
)
def test_sort_reply_of_full_queue_waits_as_told_within_bounds(header, seconds) -> None:
    headers = {} if header is None else {"Retry-After": header}
    raw = json.dumps(DETAIL).encode()
    assert sort_reply(Reply(429, lowered(headers), raw), BASE) == Refused(
        RefusalClass.BUSY, 429, "fal_http_429", DETAIL["detail"], timedelta(seconds=seconds)
    )


def lowered(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"detail": "stopped", "error_type": "bad_request"}, "bad_request", "stopped"),
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
    reply = sort(422, body)
    assert isinstance(reply, Refused)
    assert (reply.why, reply.http_status) == (RefusalClass.INPUT, 422)
    assert (reply.code, reply.message) == (code, message)


def test_sort_reply_takes_type_from_header_where_body_names_none() -> None:
    header = {"X-Fal-Error-Type": "bad_request"}
    named = sort(400, {"detail": "no", "error_type": "from_the_body"}, **lowered(header))
    unnamed = sort(400, {"detail": "no"}, **lowered(header))
    assert isinstance(named, Refused)
    assert isinstance(unnamed, Refused)
    assert (named.code, unnamed.code) == ("from_the_body", "bad_request")


@pytest.mark.parametrize("status", [201, 202, 204, 301, 302, 307, 308, 500, 501, 502, 503, 504])
@pytest.mark.parametrize("body", [DETAIL, b"<html>Apache</html>", {"request_id": "r-1"}])
def test_sort_reply_that_proves_nothing_is_ambiguous(status, body) -> None:
    assert sort(status, body) == Ambiguous(status, f"fal answered {status}")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 429])
@pytest.mark.parametrize("body", [b"", NGINX, b"{}", [], {"error": {"type": "not_found"}}])
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
def test_sort_transport_error_before_connection_is_refused_as_unreachable(error) -> None:
    message = f"{type(error).__name__}: {error}"
    assert sort_transport_error(error) == Refused(
        RefusalClass.UNREACHABLE, None, "fal_unreachable", message
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
        httpx.UnsupportedProtocol("ftp"),
        httpx.TooManyRedirects("round and round"),
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


pages = st.sampled_from([NGINX, b"nginx", b"<html>"])
codes = st.sampled_from([200, 202, 302, 403, 408, 422, 429, 499, 500, 502, 503, 504])


@given(codes, bodies | pages, st.text(max_size=9), st.booleans())
def test_sort_reply_of_anything_is_one_storable_value(status, body, retry_after, has_id) -> None:
    """The attempt is paid by now: whatever fal says, its outcome must get into the table."""
    headers = {"retry-after": retry_after} | (FROM_FAL if has_id else {})
    reply = sort_reply(Reply(status, headers, body), BASE)
    match reply:
        case Accepted():
            assert status == 200
            assert json.loads(body)["request_id"]
            texts = (reply.fal_request_id, reply.status_url, reply.response_url, reply.cancel_url)
        case Refused():
            texts = (reply.code, reply.message, None, None)
            assert timedelta() <= reply.retry_after <= MAX_RETRY_AFTER
            if reply.why is RefusalClass.UNAVAILABLE:
                assert status in {502, 503, 504}
                assert b"nginx" in body
                assert not has_id
            else:
                assert 400 <= status < 500
                assert status not in {408, 499}
                assert "detail" in json.loads(body)
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
        "options": RequestOptions(start_timeout=timedelta(seconds=90), store_io=True),
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
    options = RequestOptions(store_io=False, start_timeout=timedelta(days=7))
    submit(fal.url, options=options)
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
    monkeypatch.setattr(worker.fal.http, "TOTAL_TIMEOUT", timedelta(seconds=0.1))
    fal.answer = hang
    reply = submit(fal.url)
    assert reply == Ambiguous(None, "no reply within 0.1 s")
    assert len(fal.asked) == 1


def test_submit_over_silent_connection_gives_up_as_ambiguous(monkeypatch) -> None:
    monkeypatch.setattr(worker.fal.http, "TIMEOUT", httpx.Timeout(0.1))
    with open_black_hole() as hole:
        reply = submit(f"http://127.0.0.1:{hole.port}")
        assert isinstance(reply, Ambiguous)
        assert "ReadTimeout" in reply.message
        assert len(hole.connections) == 1


def test_submit_where_nobody_listens_is_refused_as_unreachable() -> None:
    reply = submit(f"http://127.0.0.1:{find_closed_port()}")
    assert isinstance(reply, Refused)
    assert (reply.why, reply.code) == (RefusalClass.UNREACHABLE, "fal_unreachable")


def test_submit_to_host_without_tls_is_refused_as_unreachable(fal) -> None:
    """The connection stands, and yet not a byte of the request has left."""
    reply = submit(f"https://{fal.place}")
    assert isinstance(reply, Refused)
    assert (reply.why, reply.http_status) == (RefusalClass.UNREACHABLE, None)
    assert fal.asked == []


@pytest.mark.parametrize("status", [502, 503, 504])
def test_submit_at_closed_front_door_is_refused_as_unavailable(fal, status) -> None:
    fal.answer = send_body(NGINX, status)
    reply = submit(fal.url)
    assert isinstance(reply, Refused)
    assert (reply.why, reply.http_status) == (RefusalClass.UNAVAILABLE, status)
    assert len(fal.asked) == 1


@pytest.mark.parametrize("length", [70_000, 65_530])
def test_submit_answered_by_endless_location_is_ambiguous(fal, length) -> None:
    fal.answer = send_body(b"", 307, Location="/" + "x" * length)
    assert isinstance(submit(fal.url), Ambiguous)
    assert len(fal.asked) == 1
