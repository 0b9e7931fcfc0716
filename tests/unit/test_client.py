"""What `FalClient` sends, how often and where; and how it follows a request to its end."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import cycle

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.harness.brokers import find_closed_port
from tests.harness.web import (
    ScriptedHandler,
    ScriptedServer,
    break_off,
    run_server,
    send_body,
    send_json,
)
from worker.errors import ExtendVideoError, PermanentError, RetryableError
from worker.fal import follow, http, queue, requests
from worker.fal.client import FalClient, Handle
from worker.fal.client_errors import (
    FAILURES,
    AccountRefusedError,
    InputRefusedError,
    RequestFailedError,
    RequestPendingError,
    RequestUnclearError,
    RunFailedError,
    SubmissionPostponedError,
    SubmissionRefusedError,
    SubmissionUnknownError,
)
from worker.fal.error_types import ERROR_TYPES
from worker.fal.http import exchange_again, move_url
from worker.fal.status import Completed, InProgress, LogEntry, Queued, RequestStatus
from worker.fal.truth import CancelAnswer

KEY = SecretStr("the-secret-key")
ENDPOINT = "fal-ai/app/path"
HANDLE = Handle(ENDPOINT, "r-1")
FAL, BACKUP = "https://queue.fal.test", "https://queue.backup.test"
QUICKLY = timedelta(milliseconds=1)
Respond = Callable[[httpx.Request], httpx.Response]


class Network:
    """All hosts there are: each request is noted, then answered or broken as the test says."""

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.asked: list[tuple[str, str]] = []
        self.keys: list[str | None] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.method, f"{request.url.scheme}://{request.url.host}"))
        self.keys.append(request.headers.get("authorization"))
        given = self.respond(request)
        # Not read yet, as from a socket.
        body = httpx.ByteStream(given.content)
        return httpx.Response(given.status_code, headers=given.headers, stream=body)


def open_client(
    network: Network, base_url: str = FAL, backup_url: str | None = BACKUP
) -> FalClient:
    """A client without sockets: it is made a thousand times."""
    key = {"Authorization": f"Key {KEY.get_secret_value()}"}
    with pytest.MonkeyPatch.context() as patch:
        for module in (queue, requests):
            patch.setattr(
                module,
                "build_client",
                lambda *_, **__: httpx.Client(transport=httpx.MockTransport(network), headers=key),
            )
        return FalClient(KEY, queue_url=base_url, backup_url=backup_url)


def answer_json(value: object, status: int = 200, **headers: str) -> Respond:
    return lambda _: httpx.Response(status, json=value, headers=headers)


def break_with(error: Exception) -> Respond:
    def respond(_: httpx.Request) -> httpx.Response:
        raise error

    return respond


# ------------------------------------------------------------------ the paid POST

TRANSPORT_ERRORS: list[Exception] = [
    httpx.ConnectError("refused"),
    httpx.ConnectTimeout("slow"),
    httpx.ReadTimeout("slow"),
    httpx.WriteTimeout("slow"),
    httpx.PoolTimeout("full"),
    httpx.ReadError("reset"),
    httpx.WriteError("reset"),
    httpx.CloseError("reset"),
    httpx.RemoteProtocolError("no HTTP"),
    httpx.LocalProtocolError("no HTTP"),
    httpx.ProxyError("proxy"),
    httpx.DecodingError("gzip"),
    TimeoutError("slow"),
]
json_values: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
bodies = st.binary(max_size=40) | json_values.map(lambda one: json.dumps(one).encode())
headers = st.dictionaries(
    st.sampled_from(["retry-after", "x-fal-needs-retry", "x-fal-request-id", "location"]),
    st.sampled_from(["1", "true", "0", f"{BACKUP}/x"]),
)
replies = st.builds(
    httpx.Response, st.integers(200, 599), headers=headers, content=bodies | st.just(b"nginx")
)


@pytest.mark.parametrize("error", TRANSPORT_ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("base_url", [FAL, "https://queue.fal.run"])
def test_submit_is_never_replayed_whatever_breaks(base_url, error) -> None:
    """Not at the backup host either, although with ConnectError not a byte was sent."""
    network = Network(break_with(error))
    with open_client(network, base_url) as client, pytest.raises(ExtendVideoError):
        client.submit(ENDPOINT, {"prompt": "p"})
    assert network.asked == [("POST", base_url)]


@given(replies)
def test_submit_is_never_replayed_whatever_fal_answers(reply) -> None:
    network = Network(lambda _: reply)
    with open_client(network) as client, suppress(ExtendVideoError):
        client.submit(ENDPOINT, {"prompt": "p"})
    assert network.asked == [("POST", FAL)]


ACCEPTANCE = httpx.Response(200, json={"request_id": "r-1"})
happenings = st.sampled_from(TRANSPORT_ERRORS) | st.just(ACCEPTANCE) | replies


@given(st.lists(happenings, min_size=1, max_size=6))
def test_subscribe_posts_once_whatever_happens_on_its_way(happening) -> None:
    """Submission, following, result and cancellation, each of them answered or broken at will."""
    turns = cycle(happening)

    def respond(_: httpx.Request) -> httpx.Response:
        turn: Exception | httpx.Response = next(turns)
        if isinstance(turn, Exception):
            raise turn
        return turn

    network = Network(respond)
    with pytest.MonkeyPatch.context() as patch, open_client(network) as client:
        patch.setattr(follow, "PATIENCE", timedelta(milliseconds=5))
        with suppress(ExtendVideoError):
            client.subscribe(ENDPOINT, {}, interval=QUICKLY, timeout=timedelta(milliseconds=10))
    assert [method for method, _ in network.asked].count("POST") == 1
    assert ("POST", BACKUP) not in network.asked


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_exchange_again_sends_nothing_that_is_not_safe_to_repeat(method) -> None:
    network = Network(answer_json({}))
    with httpx.Client(transport=httpx.MockTransport(network)) as client:
        request = client.build_request(method, f"{FAL}/x")
        with pytest.raises(ValueError, match="never sent twice"):
            exchange_again(client, request, backup_url=BACKUP)
    assert network.asked == []


DETAIL = {"loc": ["body", "fps"], "msg": "too small", "type": "greater_than_equal"}


@pytest.mark.parametrize(
    ("respond", "error"),
    [
        (answer_json({"detail": [DETAIL]}, 422), SubmissionRefusedError),
        (answer_json({"detail": "User is locked"}, 403), AccountRefusedError),
        (
            answer_json({"detail": "slow down"}, 429, **{"retry-after": "9"}),
            SubmissionPostponedError,
        ),
        (lambda _: httpx.Response(503, content=b"nginx"), SubmissionPostponedError),
        (break_with(httpx.ConnectError("refused")), SubmissionPostponedError),
        (answer_json({}), SubmissionUnknownError),
        (answer_json({"detail": "no"}, 500), SubmissionUnknownError),
        (break_with(httpx.ReadTimeout("slow")), SubmissionUnknownError),
    ],
)
def test_submit_raises_by_what_is_known_of_the_request(respond, error) -> None:
    with open_client(Network(respond)) as client, pytest.raises(error) as caught:
        client.submit(ENDPOINT, {})
    if isinstance(caught.value, SubmissionRefusedError):
        assert caught.value.details == (DETAIL,)
        assert caught.value.error_type == "greater_than_equal"
    if isinstance(caught.value, SubmissionPostponedError) and caught.value.http_status == 429:
        assert caught.value.retry_after == timedelta(seconds=9)


def test_submit_without_webhook_and_options_sends_neither() -> None:
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"request_id": "r-1"})

    with open_client(Network(respond)) as client:
        assert client.submit(ENDPOINT, {"prompt": "p"}) == HANDLE
    assert seen[0].url == f"{FAL}/{ENDPOINT}"
    assert not [name for name in seen[0].headers if name.startswith("x-")]


# ------------------------------------------------------------------ the backup host


def fail_at(host: str, error: Exception, then: Respond) -> Respond:
    def respond(request: httpx.Request) -> httpx.Response:
        if f"https://{request.url.host}" == host:
            raise error
        return then(request)

    return respond


UNCONNECTED = [httpx.ConnectError("refused"), httpx.ConnectTimeout("slow")]
CONNECTED = [error for error in TRANSPORT_ERRORS if type(error) not in map(type, UNCONNECTED)]
PENDING = answer_json({"status": "IN_QUEUE", "queue_position": 3}, 202)


@pytest.mark.parametrize("error", UNCONNECTED, ids=lambda error: type(error).__name__)
def test_status_without_connection_is_asked_at_the_backup(error) -> None:
    network = Network(fail_at(FAL, error, PENDING))
    with open_client(network) as client:
        assert client.status(HANDLE) == Queued(3)
    assert network.asked == [("GET", FAL), ("GET", BACKUP)]
    assert network.keys == ["Key the-secret-key"] * 2


@pytest.mark.parametrize("error", UNCONNECTED, ids=lambda error: type(error).__name__)
def test_cancel_without_connection_is_asked_at_the_backup(error) -> None:
    taken = answer_json({"status": "CANCELLATION_REQUESTED"}, 202)
    network = Network(fail_at(FAL, error, taken))
    with open_client(network) as client:
        assert client.cancel(HANDLE) is CancelAnswer.REQUESTED
    assert network.asked == [("PUT", FAL), ("PUT", BACKUP)]


@pytest.mark.parametrize("error", CONNECTED, ids=lambda error: type(error).__name__)
def test_status_after_a_connection_is_not_asked_at_the_backup(error) -> None:
    network = Network(fail_at(FAL, error, PENDING))
    with open_client(network) as client, pytest.raises(RequestUnclearError):
        client.status(HANDLE)
    assert network.asked == [("GET", FAL)]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_status_that_is_answered_is_not_asked_at_the_backup(status) -> None:
    network = Network(lambda _: httpx.Response(status, content=b"nginx"))
    with open_client(network) as client, pytest.raises(RequestUnclearError):
        client.status(HANDLE)
    assert network.asked == [("GET", FAL)]


def test_status_without_both_hosts_tells_the_first_error() -> None:
    network = Network(break_with(httpx.ConnectError("no way")))
    with open_client(network) as client, pytest.raises(RequestUnclearError, match="no way"):
        client.status(HANDLE)
    assert network.asked == [("GET", FAL), ("GET", BACKUP)]


def test_fals_own_queue_has_its_documented_backup_and_others_have_none() -> None:
    network = Network(break_with(httpx.ConnectError("refused")))
    for base_url in ("https://queue.fal.run", FAL):
        with open_client(network, base_url, None) as client, suppress(RequestUnclearError):
            client.status(HANDLE)
    assert network.asked == [
        ("GET", "https://queue.fal.run"),
        ("GET", "https://queue.falrun.com"),
        ("GET", FAL),
    ]


def test_backup_is_asked_over_a_real_connection() -> None:
    """The first host is a port where nobody listens."""
    with run_server(send_json({"status": "IN_QUEUE", "queue_position": 0}, 202)) as server:
        closed = f"http://127.0.0.1:{find_closed_port()}"
        with FalClient(KEY, queue_url=closed, backup_url=server.url) as client:
            assert client.status(HANDLE, logs=True) == Queued(0)
            with pytest.raises(SubmissionPostponedError):
                client.submit(ENDPOINT, {})
    assert [one.method for one in server.asked] == ["GET"]
    assert server.asked[0].target == "/fal-ai/app/requests/r-1/status?logs=1"


def test_move_url_keeps_path_and_query() -> None:
    moved = move_url(httpx.URL(f"{FAL}:444/a/b%2Fc?logs=1"), BACKUP)
    assert str(moved) == f"{BACKUP}/a/b%2Fc?logs=1"


# ------------------------------------------------------------------ following


@pytest.fixture
def fal() -> Iterator[ScriptedServer]:
    with run_server(send_json({})) as server:
        yield server


@pytest.fixture
def client(fal) -> Iterator[FalClient]:
    with FalClient(KEY, queue_url=fal.url) as client:
        yield client


def build_status(name: str, *logs: str, **more: object) -> dict[str, object]:
    entries = [{"message": message, "level": "INFO"} for message in logs]
    return {"status": name, "request_id": "r-1", "logs": entries, **more}


def write_events(*statuses: object, after: bytes = b"") -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in statuses) + after


def serve(fal: ScriptedServer, stream: object, *polls: dict[str, object]) -> None:
    """Answer the stream with these bytes, or as told; and each poll with the next status."""
    waiting = list(polls)

    def respond(handler: ScriptedHandler) -> None:
        if handler.asked.path.endswith("/status/stream"):
            if isinstance(stream, bytes):
                send_body(stream, 200, Content_Type="text/event-stream; charset=utf-8")(handler)
            else:
                assert callable(stream)
                stream(handler)
        else:
            send_json(waiting.pop(0) if len(waiting) > 1 else waiting[0])(handler)

    fal.answer = respond


def watch(client: FalClient, **options: timedelta) -> list[RequestStatus]:
    return list(client.iter_events(HANDLE, logs=True, interval=QUICKLY, **options))


def name_logs(*messages: str) -> tuple[LogEntry, ...]:
    return tuple(LogEntry(message, None, "INFO") for message in messages)


WAITING = build_status("IN_QUEUE", queue_position=2)
RUNNING = build_status("IN_PROGRESS", "a")
DONE = build_status("COMPLETED", "a", "b", metrics={"inference_time": 1.5})
FOLLOWED = [
    Queued(2),
    InProgress(name_logs("a")),
    Completed(name_logs("a", "b"), timedelta(seconds=1.5)),
]


def test_following_by_stream_alone_asks_once(fal, client) -> None:
    new_only = DONE | {"logs": [{"message": "b", "level": "INFO"}]}
    serve(fal, write_events(WAITING, RUNNING, new_only))
    assert watch(client) == FOLLOWED
    (asked,) = fal.asked
    assert asked.target == "/fal-ai/app/requests/r-1/status/stream?logs=1"
    assert asked.headers["Accept"] == "text/event-stream"


def test_following_by_stream_that_repeats_logs_has_each_once(fal, client) -> None:
    serve(fal, write_events(WAITING, RUNNING, DONE))
    assert watch(client) == FOLLOWED


@pytest.mark.parametrize(
    "stream",
    [
        send_json({"status": "NOT_FOUND"}, 404),
        send_json(WAITING, 202),
        send_json({}, 405),
        send_body(b"nginx", 502),
        lambda handler: None,
        b"",
        b"data: {\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        b"data: \xff\n\n",
        write_events(7),
    ],
)
def test_following_without_a_usable_stream_asks_again_and_again(fal, client, stream) -> None:
    serve(fal, stream, WAITING, RUNNING, RUNNING, DONE)
    assert watch(client) == FOLLOWED
    assert [one.path.rpartition("/")[2] for one in fal.asked] == ["stream", *["status"] * 4]


def test_following_goes_on_by_asking_where_the_stream_ends_early(fal, client) -> None:
    serve(fal, write_events(WAITING, RUNNING), RUNNING, DONE)
    assert watch(client) == FOLLOWED


def test_following_of_silent_stream_goes_on_by_asking(fal, client, monkeypatch) -> None:
    monkeypatch.setattr(follow, "STREAM_SILENCE", timedelta(seconds=0.2))

    def say_one_thing(handler: ScriptedHandler) -> None:
        handler.send_head(200, Content_Type="text/event-stream")
        handler.wfile.write(write_events(WAITING))
        handler.wfile.flush()
        handler.server.closing.wait(timeout=60)

    serve(fal, say_one_thing, DONE)
    assert watch(client) == [FOLLOWED[0], FOLLOWED[2]]


@pytest.mark.parametrize("stream", [write_events(WAITING), send_json({}, 404)])
def test_following_past_its_time_names_the_request(fal, client, stream) -> None:
    serve(fal, stream, WAITING)
    with pytest.raises(RequestPendingError) as caught:
        watch(client, timeout=timedelta(seconds=0.05))
    assert caught.value.fal_request_id == "r-1"


def test_following_ends_once_nothing_is_learnt_for_long(fal, client, monkeypatch) -> None:
    monkeypatch.setattr(follow, "PATIENCE", timedelta(seconds=0.05))
    fal.answer = send_json({"detail": "away"}, 503)
    with pytest.raises(RequestUnclearError, match="503"):
        watch(client)


def test_result_of_failed_run_has_fields_and_what_fal_says_of_another_try(fal, client) -> None:
    def respond(handler: ScriptedHandler) -> None:
        if handler.asked.path.endswith("/status"):
            send_json(build_status("COMPLETED", error="invalid", error_type="x"))(handler)
        else:
            send_json({"detail": [DETAIL]}, 422, X_Fal_Needs_Retry="0")(handler)

    fal.answer = respond
    with pytest.raises(RequestFailedError) as caught:
        client.result(HANDLE)
    assert (caught.value.error_type, caught.value.retryable) == ("greater_than_equal", False)
    assert caught.value.details == (DETAIL,)


def test_result_of_failed_run_is_asked_for_again_where_the_connection_breaks_off(
    fal, client
) -> None:
    answers = [break_off(), send_json({"detail": [DETAIL]}, 422, X_Fal_Needs_Retry="0")]

    def respond(handler: ScriptedHandler) -> None:
        if handler.asked.path.endswith("/status"):
            send_json(build_status("COMPLETED", error="invalid", error_type="x"))(handler)
        else:
            answers.pop(0)(handler)

    fal.answer = respond
    with pytest.raises(InputRefusedError) as caught:
        client.result(HANDLE)
    assert (caught.value.error_type, caught.value.retryable) == ("greater_than_equal", False)
    assert caught.value.details == (DETAIL,)


def test_result_of_failed_run_that_cannot_be_read_is_what_its_status_says(fal, client) -> None:
    def respond(handler: ScriptedHandler) -> None:
        if handler.asked.path.endswith("/status"):
            send_json(build_status("COMPLETED", error="it broke", error_type="x"))(handler)

    fal.answer = respond
    with pytest.raises(RunFailedError, match="it broke") as caught:
        client.result(HANDLE)
    assert (caught.value.error_type, caught.value.details) == ("x", ())
    assert [one.path.rpartition("/")[2] for one in fal.asked] == ["status", "r-1", "r-1"]


def build_end(name: str, *, is_models: bool) -> Respond:
    """A run that failed so: in the model's words, or in the platform's."""
    detail: object = [DETAIL | {"type": name}] if is_models else "words"
    body = {"detail": detail, "error_type": name}

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/status"):
            return httpx.Response(200, json=build_status("COMPLETED", error="no"))
        return httpx.Response(422, json=body)

    return respond


@pytest.mark.parametrize(
    ("name", "is_models", "error"),
    [
        *((one.name, False, FAILURES[one.error_class]) for one in ERROR_TYPES.values()),
        ("type_of_tomorrow", True, InputRefusedError),
        ("type_of_tomorrow", False, RunFailedError),
    ],
)
def test_result_of_failed_run_raises_by_the_class_of_its_type(name, is_models, error) -> None:
    network = Network(build_end(name, is_models=is_models))
    with open_client(network) as client, pytest.raises(RequestFailedError) as caught:
        client.result(HANDLE)
    assert type(caught.value) is error
    assert caught.value.error_type == name
    assert isinstance(caught.value, RetryableError) is not isinstance(caught.value, PermanentError)


def test_result_that_is_no_object_is_unclear(fal, client) -> None:
    def respond(handler: ScriptedHandler) -> None:
        is_status = handler.asked.path.endswith("/status")
        send_json(DONE if is_status else ["no", "object"])(handler)

    fal.answer = respond
    with pytest.raises(RequestUnclearError, match="no JSON object"):
        client.result(HANDLE)


def test_client_never_shows_its_key_to_urls_of_strangers(fal, client) -> None:
    serve(fal, send_json({}, 404), DONE)
    with run_server(send_json(DONE)) as stranger:
        urls = (f"{stranger.url}/status", f"{stranger.url}/", f"{stranger.url}/cancel")
        client.status(Handle(ENDPOINT, "r-1", *urls))
        assert stranger.asked == []


def test_backups_are_those_that_fal_documents() -> None:
    assert http.BACKUP_URLS == {"https://queue.fal.run": "https://queue.falrun.com"}
