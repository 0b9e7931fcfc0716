"""What each reply of fal to a submission means, and what the client sends and refuses to follow.

`REPLIES` is the whole of it, by kind; other levels rely on it and try one reply of each outcome.
The rows are those of fal's reference: codes on submit (2.5), model errors (4.1), platform errors
(4.2) and what its gateway answers by itself (4.4).
"""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

import worker.fal.http
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
from worker.fal.http import MAX_REPLY_BYTES, MAX_RETRY_AFTER, Reply
from worker.fal.options import RequestOptions
from worker.fal.submit import (
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


# ------------------------------------------------------------------ what a reply means

ACCEPTED, AMBIGUOUS = "accepted", "ambiguous"
INPUT, ACCOUNT = RefusalClass.INPUT, RefusalClass.ACCOUNT
BUSY, UNAVAILABLE = RefusalClass.BUSY, RefusalClass.UNAVAILABLE
LISTED: dict[str, Any] = {
    "detail": [{"loc": ["body", "fps"], "msg": "too big", "type": "less_than_equal"}]
}
TYPED = {"detail": "no", "error_type": "bad_request"}

NO_ACCEPTANCE: list[object] = [
    *(b"", b"<html>", b"\xff", b"[" * 100_000, b"null", NGINX, [], {}, DETAIL),
    *({"request_id": wrong} for wrong in ("", None, 7, ["r-1"])),
]
NOBODYS_WORDS: list[object] = [b"", NGINX, {}, [], {"error": {"type": "x"}}]

# status, body, headers -> accepted, refused (of what class, by what code), or ambiguous
REPLIES: list[tuple[int, object, dict[str, str], str, str]] = [
    # 200: accepted with a request id, and with nothing else
    (200, {"request_id": "r-1"}, {}, ACCEPTED, ""),
    (200, {"request_id": "r-1", "status": "IN_QUEUE", "new": 1}, FROM_FAL, ACCEPTED, ""),
    *((200, body, {}, AMBIGUOUS, "") for body in NO_ACCEPTANCE),
    # 4xx in fal's own words: refused; by the code, whether for good, for the account or for now
    *((status, DETAIL, {}, INPUT, f"fal_http_{status}") for status in (400, 404, 409, 413, 422)),
    (401, DETAIL, FROM_FAL, ACCOUNT, "fal_http_401"),
    (403, {"detail": "User is locked. Reason: Exhausted balance."}, {}, ACCOUNT, "fal_http_403"),
    (429, {"detail": "More than 5 requests are waiting"}, {}, BUSY, "fal_http_429"),
    (
        429,
        TYPED | {"error_type": "concurrent_requests_limit"},
        {},
        BUSY,
        "concurrent_requests_limit",
    ),
    # its type stands in the body, or else in a header
    (400, TYPED, FROM_FAL, INPUT, "bad_request"),
    (400, TYPED, {"x-fal-error-type": "other"}, INPUT, "bad_request"),
    (400, DETAIL, {"x-fal-error-type": "other"}, INPUT, "other"),
    (422, LISTED, {}, INPUT, "less_than_equal"),
    (422, {"detail": [{"msg": "plain"}]}, {}, INPUT, "fal_http_422"),
    (422, {"detail": "", "error_type": ""}, {}, INPUT, "fal_http_422"),
    # 4xx in nobody's words: a gateway's page does not prove that fal has refused
    *((422, body, {}, AMBIGUOUS, "") for body in NOBODYS_WORDS),
    *((status, NGINX, {}, AMBIGUOUS, "") for status in (400, 401, 403, 404, 429)),
    # 408 and 499 say that the connection was lost, not that the request was refused
    (408, DETAIL, {}, AMBIGUOUS, ""),
    (499, TYPED | {"error_type": "client_disconnected"}, FROM_FAL, AMBIGUOUS, ""),
    # 5xx in fal's own words: the request may be queued or have run
    *((status, DETAIL, {}, AMBIGUOUS, "") for status in (500, 501, 502, 503, 504, 520)),
    (503, TYPED | {"error_type": "runner_disconnected"}, FROM_FAL, AMBIGUOUS, ""),
    (500, LISTED, {}, AMBIGUOUS, ""),
    (503, {"detail": "nginx said so"}, {}, AMBIGUOUS, ""),
    (503, "nginx", {}, AMBIGUOUS, ""),
    (504, {"request_id": "r-1", "server": "nginx"}, {}, AMBIGUOUS, ""),
    # the front door's own 503: it had nobody to pass the request to
    (503, NGINX, {}, UNAVAILABLE, "fal_unavailable"),
    # a gateway may answer these after it has passed the request on (ADR 16)
    *((status, NGINX, {}, AMBIGUOUS, "") for status in (502, 504)),
    (503, b"<hr>NGINX/1.27</hr>", {}, UNAVAILABLE, "fal_unavailable"),
    # without one of the three (its code, its words, no id of fal's) fal may have it
    (500, NGINX, {}, AMBIGUOUS, ""),
    (502, NGINX, FROM_FAL, AMBIGUOUS, ""),
    (503, NGINX, {"x-fal-request-id": ""}, AMBIGUOUS, ""),
    (502, b"<html>Bad Gateway</html>", {}, AMBIGUOUS, ""),
    (503, b"", {}, AMBIGUOUS, ""),
    # any other success, and a redirect, which is never followed
    *((status, {"request_id": "r-1"}, {}, AMBIGUOUS, "") for status in (201, 202, 302, 307)),
    (204, b"", {}, AMBIGUOUS, ""),
]


@pytest.mark.parametrize(("status", "body", "headers", "outcome", "code"), REPLIES)
def test_reply_means_accepted_refused_or_ambiguous(status, body, headers, outcome, code) -> None:
    reply = sort(status, body, **headers)
    match reply:
        case Accepted():
            assert reply == Accepted("r-1", None, None, None)
            assert outcome == ACCEPTED
        case Refused():
            assert (reply.why, reply.code, reply.http_status) == (outcome, code, status)
            assert reply.retry_after == timedelta()
        case Ambiguous():
            said = " 200 without a request id" if status == 200 else f" {status}"
            assert reply == Ambiguous(status, f"fal answered{said}")
            assert outcome == AMBIGUOUS


@pytest.mark.parametrize(
    ("error", "is_sent"),
    [
        *((kind("words"), False) for kind in (httpx.ConnectError, httpx.ConnectTimeout)),
        (httpx.PoolTimeout("words"), False),
        *((kind("words"), True) for kind in (httpx.ReadTimeout, httpx.WriteTimeout)),
        *((kind("words"), True) for kind in (httpx.ReadError, httpx.RemoteProtocolError)),
        (httpx.DecodingError("words"), True),
        # a refused CONNECT: there was no tunnel to send anything through
        (httpx.ProxyError("words"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_broken_connection_means_refused_only_if_nothing_was_sent(error, is_sent) -> None:
    words = f"{type(error).__name__}: words"
    unreachable = Refused(RefusalClass.UNREACHABLE, None, "fal_unreachable", words)
    assert sort_transport_error(error) == (Ambiguous(None, words) if is_sent else unreachable)


def test_timeout_of_the_whole_call_means_ambiguous() -> None:
    assert sort_transport_error(TimeoutError("late")) == Ambiguous(None, "late")


def test_refusal_has_fals_words_and_each_wrong_field() -> None:
    details = tuple(LISTED["detail"])
    assert sort(422, LISTED) == Refused(
        INPUT, 422, "less_than_equal", "fps: too big", details=details
    )
    assert sort(400, TYPED) == Refused(INPUT, 400, "bad_request", "no")
    assert sort(422, {"detail": ""}) == Refused(INPUT, 422, "fal_http_422", "HTTP 422")
    assert sort(503, NGINX) == Refused(
        UNAVAILABLE, 503, "fal_unavailable", "fal's gateway answered 503"
    )


@pytest.mark.parametrize(
    ("seconds", "headers"),
    [
        (7, ["7", "0000000007"]),
        (3600, ["3600", "3601", "9" * 5000]),
        (0, ["", "0", "-1", "1.5", "\u0667", "\u00b2", "soon"]),
    ],
)
def test_refusal_for_now_waits_as_fal_says_within_bounds(seconds, headers) -> None:
    for header in headers:
        for status, body in ((429, json.dumps(DETAIL).encode()), (503, NGINX)):
            reply = sort_reply(Reply(status, {"retry-after": header}, body), BASE)
            assert isinstance(reply, Refused)
            assert reply.retry_after == timedelta(seconds=seconds)


def test_accepted_request_has_its_urls() -> None:
    urls = {"status_url": f"{APP}/status", "response_url": APP, "cancel_url": f"{APP}/cancel"}
    assert sort(200, {"request_id": "r-1", **urls}) == Accepted("r-1", **urls)


def test_accepted_request_keeps_no_url_on_another_host() -> None:
    """Whoever asks there would show it the key."""
    foreign = [
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
        "https://queue.fal.run\u2100/",
        *("", None, ["https://queue.fal.run/"]),
    ]
    for url in foreign:
        body = {"request_id": "r-1", "status_url": url, "response_url": APP, "cancel_url": url}
        assert sort(200, body) == Accepted("r-1", None, APP, None), url


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
                assert status == 503
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
    for depth in (*range(1, 1100, 7), 100_000):
        nested = opening * depth + b"1" + closing * depth
        sort(422, b'{"detail": [{"msg": %b}, %b]}' % (nested, nested))


# ------------------------------------------------------------------ over HTTP


@pytest.fixture
def fal() -> Iterator[ScriptedServer]:
    with run_server(send_json({"request_id": "r-1"})) as server:
        yield server


def submit(base_url: str, **options: Any) -> SubmitReply:
    policy: dict[str, Any] = {
        "webhook_url": "https://hooks.test/webhooks/fal/a-token?x=1&y=ü",
        "options": RequestOptions(start_timeout=timedelta(seconds=90), store_io=True),
    }
    client = QueueClient(base_url, SecretStr(KEY))
    try:
        return client.submit("fal-ai/app/path", {"prompt": "ü", "seed": 7}, **(policy | options))
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
    assert headers["accept-encoding"] == "identity"


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
        send_body(b"", 301, Location="http://[bad"),
        send_body(b"", 307, Location="/" + "x" * 70_000),
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
