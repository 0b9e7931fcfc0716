"""What each reply of fal about one request means: status (3.1), result (3.3), cancellation (3.4).

The three tables are the whole of it, by kind; other levels rely on them. Then: which URL is asked.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from worker.fal import requests
from worker.fal.completion import Completion
from worker.fal.http import Reply, accept_url
from worker.fal.requests import (
    CancelAnswer,
    Forgotten,
    Progress,
    RequestClient,
    ResultGone,
    Truth,
    Unclear,
    read_cancel_answer,
    read_status,
    sort_result,
)

BASE = "https://queue.fal.run"


def end(error: str | None = None, error_type: str | None = None) -> Progress:
    return Progress("COMPLETED", error=error, error_type=error_type)


WELL = end()
ILL = end("Invalid status code: 422", "content_policy_violation")
RESULT = {"video": {"url": "https://v3.fal.media/a.mp4"}, "seed": 7, "prompt": "on it goes"}
MODEL_ERROR = {"detail": [{"loc": ["body"], "msg": "no", "type": "content_policy_violation"}]}
NOT_FOUND_BODY = {"status": "NOT_FOUND"}
PLATFORM_ERROR = {"detail": "stopped", "error_type": "runner_disconnected"}
NGINX = b"<html>nginx</html>"
DONE = {"status": "COMPLETED", "request_id": "r-1", "metrics": {"inference_time": 1.5}}


def reply(status: int, body: object) -> Reply:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(status, {}, raw)


# ------------------------------------------------------------------ what a reply means

NO_ERROR: list[object] = [None, "", {}, False]
ANYTHING: list[object] = [NOT_FOUND_BODY, PLATFORM_ERROR, b"", DONE]
NO_STATUS: list[object] = [b"", NGINX, b"null", "COMPLETED"]
UNNAMED = Unclear("the status call named no known status")
STATUSES: list[tuple[int, object, object]] = [
    # the word decides, not which 2xx it comes with
    (202, {"status": "IN_QUEUE", "logs": None, "queue_position": 0}, Progress("IN_QUEUE", 0)),
    (200, {"status": "IN_PROGRESS", "new": 1}, Progress("IN_PROGRESS")),
    (200, DONE, WELL),
    (202, DONE, WELL),
    # COMPLETED with any error is no success
    *((200, DONE | {"error": none, "error_type": none}, WELL) for none in NO_ERROR),
    (200, DONE | {"error": "it broke"}, end("it broke")),
    (200, DONE | {"error": "it broke", "error_type": "x"}, end("it broke", "x")),
    (200, DONE | {"error_type": "client_cancelled"}, end(*["client_cancelled"] * 2)),
    (200, DONE | {"error": {"code": 7}}, end('{"code": 7}')),
    (200, DONE | {"error": True}, end("true")),
    # fal does not know the request, whatever else it says
    *((404, body, Forgotten()) for body in ANYTHING),
    (410, b"", Forgotten()),
    # a status call that failed is no conclusion
    *(
        (code, DONE, Unclear(f"the status call answered {code}"))
        for code in (301, 400, 401, 408, 429, 500, 504)
    ),
    (503, NGINX, Unclear("the status call answered 503")),
    # words that we do not know, and shapes
    *((200, {"status": odd}, UNNAMED) for odd in ("FAILED", "completed", None, ["x"])),
    (200, {}, UNNAMED),
    *((200, body, Unclear("the status call answered 200")) for body in NO_STATUS),
]


@pytest.mark.parametrize(("http_status", "body", "meaning"), STATUSES)
def test_status_means(http_status, body, meaning) -> None:
    found = read_status(reply(http_status, body))
    if isinstance(found, Progress) and found.has_ended:
        found = replace(found, inference_seconds=None)
    assert found == meaning


def told(status: str, payload: object, error: str | None) -> Completion:
    return Completion("r-1", None, status, payload, error)  # type: ignore[arg-type] # any words


# The result of a run that its status calls a success.
RESULTS: list[tuple[int, object, Truth]] = [
    (200, RESULT, told("OK", RESULT, None)),
    (201, RESULT, told("OK", RESULT, None)),
    (200, {}, told("OK", {}, None)),
    (200, b'{"video": {"ur', Unclear("the result is not JSON")),
    # a client error in the model's words: it failed after all
    *((code, MODEL_ERROR, told("ERROR", MODEL_ERROR, f"HTTP {code}")) for code in (400, 404, 422)),
    # 404 and 410 in no model's words: the result cannot be read any more
    *((404, body, ResultGone()) for body in (NOT_FOUND_BODY, {"detail": "gone"}, b"")),
    (410, b"", ResultGone()),
    # anything else passes by
    (400, {"detail": "Request is still in progress"}, Unclear("the result call answered 400")),
    *(
        (code, PLATFORM_ERROR, Unclear(f"the result call answered {code}"))
        for code in (302, 401, 429, 503)
    ),
    (500, MODEL_ERROR, Unclear("the result call answered 500")),
    (502, NGINX, Unclear("the result call answered 502")),
]


@pytest.mark.parametrize(("http_status", "body", "meaning"), RESULTS)
def test_result_of_run_without_error_means(http_status, body, meaning) -> None:
    assert sort_result(reply(http_status, body), WELL, "r-1") == meaning


@pytest.mark.parametrize("http_status", [200, 404, 422, 500])
@pytest.mark.parametrize("body", [NGINX, {"video": {}}, MODEL_ERROR])
def test_result_of_failed_run_means_failure_whatever_else_it_says(http_status, body) -> None:
    """In the model's own words if it has any, else in those of the status."""
    platform = {"detail": ILL.error, "error_type": ILL.error_type}
    words = MODEL_ERROR if body is MODEL_ERROR else platform
    assert sort_result(reply(http_status, body), ILL, "r-1") == told("ERROR", words, ILL.error)


def test_result_with_a_video_is_one_whatever_error_the_status_names() -> None:
    assert sort_result(reply(200, RESULT), ILL, "r-1") == told("OK", RESULT, None)


CANCELLATIONS: list[tuple[int, object, CancelAnswer]] = [
    # the word decides where it is known
    (200, {"status": "OK"}, CancelAnswer.OK),
    (202, {"status": "CANCELLATION_REQUESTED"}, CancelAnswer.REQUESTED),
    (400, {"status": "ALREADY_COMPLETED"}, CancelAnswer.ALREADY_COMPLETED),
    (404, NOT_FOUND_BODY, CancelAnswer.NOT_FOUND),
    # else the code does
    *(
        (code, body, CancelAnswer.REQUESTED)
        for code, body in [(200, {"success": True}), (202, b""), (200, {"status": ["OK"]})]
    ),
    (404, b"", CancelAnswer.NOT_FOUND),
    (410, NGINX, CancelAnswer.NOT_FOUND),
    *((code, PLATFORM_ERROR, CancelAnswer.UNCLEAR) for code in (302, 400, 401, 429, 500)),
    (502, NGINX, CancelAnswer.UNCLEAR),
]


@pytest.mark.parametrize(("http_status", "body", "meaning"), CANCELLATIONS)
def test_answer_to_a_cancellation_means(http_status, body, meaning) -> None:
    assert read_cancel_answer(reply(http_status, body)) is meaning


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
finished = st.builds(end, st.none() | odd_text, st.none() | odd_text)


@given(codes, raw_bodies)
def test_status_and_cancellation_of_anything_conclude_only_from_their_code(code, body) -> None:
    assert isinstance(read_cancel_answer(Reply(code, {}, body)), CancelAnswer)
    match read_status(Reply(code, {}, body)):
        case Progress(status, error=error):
            assert 200 <= code < 300
            assert status in {"IN_QUEUE", "IN_PROGRESS", "COMPLETED"}
            assert error is None or error.encode()
        case Forgotten():
            assert code in {404, 410}
        case Unclear(message):
            assert message


@given(codes, raw_bodies, finished)
def test_result_of_anything_never_turns_failure_into_success(http_status, body, ended) -> None:
    truth = sort_result(Reply(http_status, {}, body), ended, "r-1")
    if ended.error is not None:
        assert isinstance(truth, Completion)
        assert truth.status == "ERROR"
    elif isinstance(truth, Completion):
        assert (truth.status == "OK") == (http_status < 300)
        assert http_status < 300 or 400 <= http_status < 500
        assert truth.payload is not None
        assert "\0" not in json.dumps(truth.payload, ensure_ascii=False)
        json.dumps(truth.payload, ensure_ascii=False, allow_nan=False).encode()


@given(odd_text.map(lambda rest: f"{BASE}{rest}") | odd_text.map(lambda rest: f"https:{rest}"))
def test_accept_url_takes_only_what_can_be_asked_at_our_host(url) -> None:
    if accept_url(url, BASE) is not None:
        read = httpx.URL(url)
        assert (read.scheme, read.host, read.userinfo) == ("https", "queue.fal.run", b"")


def test_accept_url_drops_what_cannot_be_asked() -> None:
    """Else it would be stored, and every later question about the request would raise."""
    for end in ("\n", "/a\nb", "/\x7f", "/" + "x" * 70_000):
        assert accept_url(BASE + end, BASE) is None


# ------------------------------------------------------------------ which URL is asked


@dataclass(frozen=True)
class Ref:
    """A request as its attempt knows it."""

    endpoint: str = "fal-ai/ltx-2.3-22b/extend-video"
    status_url: str | None = None
    response_url: str | None = None
    cancel_url: str | None = None


@dataclass
class Network:
    """All hosts there are: each request is noted, then answered, or broken at these hosts."""

    breaks: Callable[[str], Exception | None] = lambda _: None
    status: int = 200
    asked: list[str] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Key key"
        self.asked.append(f"{request.method} {request.url}")
        if error := self.breaks(request.url.host):
            raise error
        return httpx.Response(self.status, stream=httpx.ByteStream(b'{"status": "COMPLETED"}'))

    def ask(self, ref: Ref, fal_request_id: str, base_url: str = BASE) -> list[str]:
        """What is asked for status, result and cancellation."""
        http = httpx.Client(
            transport=httpx.MockTransport(self), headers={"Authorization": "Key key"}
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(requests, "build_client", lambda *_, **__: http)
            client = RequestClient(base_url, SecretStr("key"))
        client.find_truth(ref, fal_request_id)
        client.cancel(ref, fal_request_id)
        client.close()
        return self.asked


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
    assert Network().ask(Ref(endpoint), "r/1?x") == [
        f"GET {place}/status?logs=1",
        f"GET {place}",
        f"PUT {place}/cancel",
    ]


def test_request_is_asked_by_the_urls_that_fal_returned() -> None:
    urls = [f"{BASE}/elsewhere/{name}?a=1" for name in ("status", "response", "cancel")]
    assert Network().ask(Ref("fal-ai/app", *urls), "r-1") == [
        f"GET {urls[0]}&logs=1",
        f"GET {urls[1]}",
        f"PUT {urls[2]}",
    ]


def test_request_with_foreign_urls_is_asked_at_our_host() -> None:
    foreign = ["https://evil.test/status", f"{BASE}@evil.test/r", f"{BASE}:444/cancel"]
    asked = Network().ask(Ref("a/b", *foreign), "r-1")
    assert len(asked) == 3
    assert all(" https://queue.fal.run/" in one for one in asked)


def test_request_of_endless_id_is_unclear_and_asks_nobody() -> None:
    assert Network().ask(Ref(), "x" * 70_000) == []


@pytest.mark.parametrize("error", [httpx.ConnectError("x"), httpx.ReadTimeout("x")])
def test_question_without_answer_is_asked_once_at_our_host_alone(error) -> None:
    asked = Network(lambda _: error).ask(Ref("a/b"), "r-1")
    assert asked == [
        f"GET {BASE}/a/b/requests/r-1/status?logs=1",
        f"PUT {BASE}/a/b/requests/r-1/cancel",
    ]
