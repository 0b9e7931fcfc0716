"""How fal's words about one request are sorted: status (3.1), result (3.3), cancellation (3.4)."""

import json
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from worker.fal import requests
from worker.fal.completion import Completion
from worker.fal.http import Reply, accept_url
from worker.fal.requests import RequestClient
from worker.fal.truth import (
    CancelAnswer,
    Finished,
    Forgotten,
    Pending,
    ResultGone,
    Truth,
    Unclear,
    read_cancel_answer,
    read_status,
    sort_result,
)

BASE = "https://queue.fal.run"
WELL = Finished(None, None)
ILL = Finished("Invalid status code: 422", "content_policy_violation")
RESULT = {"video": {"url": "https://v3.fal.media/a.mp4"}, "seed": 7, "prompt": "on it goes"}
MODEL_ERROR = {"detail": [{"loc": ["body"], "msg": "no", "type": "content_policy_violation"}]}
NOT_FOUND_BODY = {"status": "NOT_FOUND"}
PLATFORM_ERROR = {"detail": "stopped", "error_type": "runner_disconnected"}
NGINX = b"<html>nginx</html>"


def reply(status: int, body: object) -> Reply:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(status, {}, raw)


# ------------------------------------------------------------------ status


@pytest.mark.parametrize("http_status", [200, 202])
@pytest.mark.parametrize("status", ["IN_QUEUE", "IN_PROGRESS"])
def test_read_status_before_the_end_is_pending(http_status, status) -> None:
    body = {"status": status, "request_id": "r-1", "logs": None, "queue_position": 0}
    assert read_status(reply(http_status, body)) == Pending(status)


@pytest.mark.parametrize(
    ("told", "finished"),
    [
        ({}, WELL),
        ({"error": None, "error_type": None}, WELL),
        ({"error": "", "error_type": ""}, WELL),
        ({"error": {}, "error_type": False}, WELL),
        ({"error": "it broke"}, Finished("it broke", None)),
        ({"error": "it broke", "error_type": "x"}, Finished("it broke", "x")),
        ({"error_type": "client_cancelled"}, Finished("client_cancelled", "client_cancelled")),
        ({"error": {"code": 7}}, Finished('{"code": 7}', None)),
        ({"error": ["no"]}, Finished('["no"]', None)),
        ({"error": True}, Finished("true", None)),
    ],
)
def test_read_status_completed_with_any_error_is_no_success(told, finished) -> None:
    body = {"status": "COMPLETED", "request_id": "r-1", "metrics": {"inference_time": 1.5}}
    assert read_status(reply(200, body | told)) == finished


@pytest.mark.parametrize("http_status", [404, 410])
@pytest.mark.parametrize("body", [NOT_FOUND_BODY, PLATFORM_ERROR, b"", NGINX])
def test_read_status_of_unknown_request_is_forgotten(http_status, body) -> None:
    assert read_status(reply(http_status, body)) == Forgotten()


@pytest.mark.parametrize("http_status", [301, 400, 401, 403, 408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("body", [PLATFORM_ERROR, NGINX, {"status": "COMPLETED"}])
def test_read_status_that_failed_is_no_conclusion(http_status, body) -> None:
    told = f"the status call answered {http_status}"
    assert read_status(reply(http_status, body)) == Unclear(told)


@pytest.mark.parametrize("status", ["FAILED", "CANCELLED", "completed", "", None, 7, ["COMPLETED"]])
def test_read_status_of_unknown_name_is_unclear(status) -> None:
    assert isinstance(read_status(reply(200, {"status": status})), Unclear)


@pytest.mark.parametrize("body", [b"", b"{", NGINX, b"null", [], "COMPLETED", {}])
def test_read_status_in_no_known_shape_is_unclear(body) -> None:
    assert isinstance(read_status(reply(200, body)), Unclear)


# ------------------------------------------------------------------ result


def told(status: str, payload: object, error: str | None) -> Completion:
    return Completion("r-1", None, status, payload, error)  # type: ignore[arg-type] # any words


@pytest.mark.parametrize(
    ("http_status", "body", "truth"),
    [
        (200, RESULT, told("OK", RESULT, None)),
        (201, RESULT, told("OK", RESULT, None)),
        (200, {}, told("OK", {}, None)),
        (200, b"<html>", Unclear("the result is not JSON")),
        (200, b'{"video": {"ur', Unclear("the result is not JSON")),
        (422, MODEL_ERROR, told("ERROR", MODEL_ERROR, "HTTP 422")),
        (400, MODEL_ERROR, told("ERROR", MODEL_ERROR, "HTTP 400")),
        (404, MODEL_ERROR, told("ERROR", MODEL_ERROR, "HTTP 404")),
        (404, NOT_FOUND_BODY, ResultGone()),
        (410, b"", ResultGone()),
        (404, {"detail": "gone"}, ResultGone()),
        (400, {"detail": "Request is still in progress"}, Unclear("the result call answered 400")),
        (401, PLATFORM_ERROR, Unclear("the result call answered 401")),
        (403, PLATFORM_ERROR, Unclear("the result call answered 403")),
        (429, PLATFORM_ERROR, Unclear("the result call answered 429")),
        (500, MODEL_ERROR, Unclear("the result call answered 500")),
        (502, NGINX, Unclear("the result call answered 502")),
        (503, PLATFORM_ERROR, Unclear("the result call answered 503")),
        (504, NGINX, Unclear("the result call answered 504")),
        (302, b"", Unclear("the result call answered 302")),
    ],
)
def test_sort_result_of_run_without_error(http_status, body, truth: Truth) -> None:
    assert sort_result(reply(http_status, body), WELL, "r-1") == truth


@pytest.mark.parametrize("http_status", [200, 404, 422, 429, 500, 503])
@pytest.mark.parametrize("body", [NGINX, NOT_FOUND_BODY, b"", RESULT, []])
def test_sort_result_of_failed_run_without_models_words_has_platforms(http_status, body) -> None:
    """Whatever the result call says: it is failed already."""
    platform = {"detail": ILL.error, "error_type": ILL.error_type}
    assert sort_result(reply(http_status, body), ILL, "r-1") == told("ERROR", platform, ILL.error)


@pytest.mark.parametrize("http_status", [400, 422, 500, 504])
def test_sort_result_of_failed_run_has_models_words(http_status) -> None:
    truth = sort_result(reply(http_status, MODEL_ERROR), ILL, "r-1")
    assert truth == told("ERROR", MODEL_ERROR, ILL.error)


# ------------------------------------------------------------------ cancellation


@pytest.mark.parametrize(
    ("http_status", "body", "answer"),
    [
        (200, {"status": "OK"}, CancelAnswer.OK),
        (202, {"status": "CANCELLATION_REQUESTED"}, CancelAnswer.REQUESTED),
        (400, {"status": "ALREADY_COMPLETED"}, CancelAnswer.ALREADY_COMPLETED),
        (404, NOT_FOUND_BODY, CancelAnswer.NOT_FOUND),
        (200, {"success": True}, CancelAnswer.REQUESTED),
        (202, b"", CancelAnswer.REQUESTED),
        (200, {"status": "UNCLEAR"}, CancelAnswer.REQUESTED),
        (200, {"status": ["OK"]}, CancelAnswer.REQUESTED),
        (404, b"", CancelAnswer.NOT_FOUND),
        (410, NGINX, CancelAnswer.NOT_FOUND),
        (400, {"detail": "no"}, CancelAnswer.UNCLEAR),
        (401, PLATFORM_ERROR, CancelAnswer.UNCLEAR),
        (405, b"", CancelAnswer.UNCLEAR),
        (429, PLATFORM_ERROR, CancelAnswer.UNCLEAR),
        (302, b"", CancelAnswer.UNCLEAR),
        (500, PLATFORM_ERROR, CancelAnswer.UNCLEAR),
        (502, NGINX, CancelAnswer.UNCLEAR),
    ],
)
def test_read_cancel_answer_by_word_or_by_code(http_status, body, answer) -> None:
    assert read_cancel_answer(reply(http_status, body)) is answer


# ------------------------------------------------------------------ anything

odd_text = st.text("ab\0\ud800\U0001f600/[]@:\u2100\n\t\x7f ", max_size=12)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | odd_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(odd_text, inner, max_size=4),
    max_leaves=12,
)
words = st.sampled_from(["COMPLETED", "IN_QUEUE", "IN_PROGRESS", "OK", "NOT_FOUND", "FAILED"])
objects = st.fixed_dictionaries(
    {},
    optional={
        "status": words | json_values,
        "error": odd_text | json_values,
        "error_type": odd_text | json_values,
        "detail": odd_text | json_values,
        "video": json_values,
    },
)
raw_bodies = st.one_of(
    st.binary(max_size=60),
    (json_values | objects).map(lambda one: json.dumps(one).encode()),
    st.integers(1, 3000).map(lambda depth: b'{"detail":' + b"[" * depth + b"]" * depth + b"}"),
    st.just(b'{"status": "COMPLETED", "n": ' + b"9" * 5000 + b"}"),
    st.just(json.dumps({"status": "COMPLETED"}).encode("utf-16")),
    st.just(b'\xef\xbb\xbf{"status": "COMPLETED"}'),
)
codes = st.sampled_from([200, 202, 204, 301, 400, 401, 404, 410, 422, 429, 500, 503])
finished = st.builds(Finished, st.none() | odd_text, st.none() | odd_text)


@given(codes, raw_bodies)
def test_read_status_of_anything_concludes_only_from_success(http_status, body) -> None:
    match read_status(Reply(http_status, {}, body)):
        case Finished(error, _):
            assert 200 <= http_status < 300
            assert error is None or error.encode()
        case Pending(status):
            assert 200 <= http_status < 300
            assert status in {"IN_QUEUE", "IN_PROGRESS"}
        case Forgotten():
            assert http_status in {404, 410}
        case Unclear(message):
            assert message


@given(codes, raw_bodies, finished)
def test_sort_result_of_anything_never_turns_failure_into_success(http_status, body, end) -> None:
    truth = sort_result(Reply(http_status, {}, body), end, "r-1")
    if end.error is not None:
        assert isinstance(truth, Completion)
        assert truth.status == "ERROR"
    elif isinstance(truth, Completion):
        assert (truth.status == "OK") == (http_status < 300)
        assert http_status < 300 or 400 <= http_status < 500
        assert truth.payload is not None
        assert "\0" not in json.dumps(truth.payload, ensure_ascii=False)
        json.dumps(truth.payload, ensure_ascii=False, allow_nan=False).encode()


@given(codes, raw_bodies)
def test_read_cancel_answer_of_anything_is_one_of_five(http_status, body) -> None:
    assert isinstance(read_cancel_answer(Reply(http_status, {}, body)), CancelAnswer)


@given(odd_text.map(lambda rest: f"{BASE}{rest}") | odd_text.map(lambda rest: f"https:{rest}"))
def test_accept_url_takes_only_what_can_be_asked_at_our_host(url) -> None:
    if accept_url(url, BASE) is not None:
        read = httpx.URL(url)
        assert (read.scheme, read.host, read.userinfo) == ("https", "queue.fal.run", b"")


@pytest.mark.parametrize("end", ["\x07", "\n", "/a\nb", "/\x7f", "/" + "x" * 70_000])
def test_accept_url_drops_what_cannot_be_asked(end) -> None:
    """Else it would be stored, and every later question about the request would raise."""
    assert accept_url(BASE + end, BASE) is None


# ------------------------------------------------------------------ which URL is asked


@dataclass(frozen=True)
class Ref:
    """A request as its attempt knows it."""

    endpoint: str = "fal-ai/ltx-2.3-22b/extend-video"
    status_url: str | None = None
    response_url: str | None = None
    cancel_url: str | None = None


def list_asked(ref: Ref, fal_request_id: str) -> list[str]:
    """What is asked for status, result and cancellation."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url}")
        return httpx.Response(200, stream=httpx.ByteStream(b'{"status": "COMPLETED"}'))

    http = httpx.Client(transport=httpx.MockTransport(answer))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "build_client", lambda *_, **__: http)
        client = RequestClient(BASE, SecretStr("key"))
    client.find_truth(ref, fal_request_id)
    client.cancel(ref, fal_request_id)
    client.close()
    return asked


@pytest.mark.parametrize(
    ("endpoint", "app"),
    [
        ("fal-ai/ltx-2.3-22b/extend-video", "fal-ai/ltx-2.3-22b"),
        ("fal-ai/app", "fal-ai/app"),
        ("workflows/owner/app/path", "workflows/owner/app"),
        ("comfy/owner/app", "comfy/owner/app"),
    ],
)
def test_request_without_urls_is_asked_by_owner_and_app(endpoint, app) -> None:
    place = f"{BASE}/{app}/requests/r%2F1%3Fx"
    assert list_asked(Ref(endpoint), "r/1?x") == [
        f"GET {place}/status?logs=1",
        f"GET {place}",
        f"PUT {place}/cancel",
    ]


def test_request_is_asked_by_the_urls_that_fal_returned() -> None:
    urls = [f"{BASE}/elsewhere/{name}?a=1" for name in ("status", "response", "cancel")]
    assert list_asked(Ref("fal-ai/app", *urls), "r-1") == [
        f"GET {urls[0]}&logs=1",
        f"GET {urls[1]}",
        f"PUT {urls[2]}",
    ]


def test_request_with_foreign_urls_is_asked_at_our_host() -> None:
    foreign = ["https://evil.test/status", f"{BASE}@evil.test/r", f"{BASE}:444/cancel"]
    assert all(" https://queue.fal.run/" in one for one in list_asked(Ref("a/b", *foreign), "r-1"))


def test_request_of_endless_id_is_unclear_and_asks_nobody() -> None:
    assert list_asked(Ref(), "x" * 70_000) == []
