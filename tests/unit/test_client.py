"""What `FalClient` adds for its user: one POST at most, an exception by class, and following."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import cycle

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.harness.web import (
    ScriptedHandler,
    ScriptedServer,
    break_off,
    run_server,
    send_json,
)
from worker.fal import client as client_module
from worker.fal import requests, submit
from worker.fal.client import FalClient, Handle
from worker.fal.errors import (
    FAILURES,
    AccountRefusedError,
    ErrorClass,
    InputRefusedError,
    RequestFailedError,
    RequestPendingError,
    RequestUnclearError,
    RunFailedError,
    SubmissionPostponedError,
    SubmissionRefusedError,
    SubmissionUnknownError,
)
from worker.fal.requests import LogEntry, Progress
from worker.ground.errors import ExtendVideoError

KEY = SecretStr("the-secret-key")
ENDPOINT = "fal-ai/app/path"
HANDLE = Handle(ENDPOINT, "r-1")
FAL = "https://queue.fal.run"
QUICKLY = timedelta(milliseconds=1)
Respond = Callable[[httpx.Request], httpx.Response]
DETAIL = {"loc": ["body", "fps"], "msg": "too small", "type": "greater_than_equal"}


class Network:
    """All hosts there are: each request is noted, then answered or broken as the test says."""

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.asked: list[tuple[str, str]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.method, f"{request.url.scheme}://{request.url.host}"))
        given = self.respond(request)
        # Not read yet, as from a socket.
        body = httpx.ByteStream(given.content)
        return httpx.Response(given.status_code, headers=given.headers, stream=body)


def open_client(network: Network) -> FalClient:
    """A client without sockets."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (submit, requests):
            patch.setattr(
                module,
                "build_client",
                lambda *_, **__: httpx.Client(transport=httpx.MockTransport(network)),
            )
        return FalClient(KEY, queue_url=FAL)


def answer_json(value: object, status: int = 200, **headers: str) -> Respond:
    return lambda _: httpx.Response(status, json=value, headers=headers)


def break_with(error: Exception) -> Respond:
    def respond(_: httpx.Request) -> httpx.Response:
        raise error

    return respond


# ------------------------------------------------------------------ the paid POST

turns = st.sampled_from(
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("no HTTP"),
        httpx.Response(200, json={"request_id": "r-1"}),
        httpx.Response(200, content=b"{"),
        httpx.Response(307, headers={"location": "https://queue.falrun.com/x"}),
        httpx.Response(429, json={"detail": "slow down"}, headers={"retry-after": "0"}),
        httpx.Response(503, content=b"nginx"),
        httpx.Response(500, json={"detail": "no"}, headers={"x-fal-needs-retry": "1"}),
    ]
)


@given(st.lists(turns, min_size=1, max_size=6))
def test_subscribe_posts_once_whatever_happens_on_its_way(happening) -> None:
    """Submission, following, result and cancellation, each of them answered or broken at will."""
    coming = cycle(happening)

    def respond(_: httpx.Request) -> httpx.Response:
        turn: Exception | httpx.Response = next(coming)
        if isinstance(turn, Exception):
            raise turn
        return turn

    network = Network(respond)
    with pytest.MonkeyPatch.context() as patch, open_client(network) as client:
        patch.setattr(client_module, "STATUS_TIMEOUT", timedelta(milliseconds=5))
        with suppress(ExtendVideoError):
            client.subscribe(ENDPOINT, {}, interval=QUICKLY, timeout=timedelta(milliseconds=10))
    assert [one for one in network.asked if one[0] == "POST"] == [("POST", FAL)]


@pytest.mark.parametrize(
    ("respond", "error"),
    [
        (answer_json({"detail": [DETAIL]}, 422), SubmissionRefusedError),
        (answer_json({"detail": "User is locked"}, 403), AccountRefusedError),
        (answer_json({"detail": "wait"}, 429, **{"retry-after": "9"}), SubmissionPostponedError),
        (break_with(httpx.ConnectError("refused")), SubmissionPostponedError),
        (answer_json({"detail": "no"}, 500), SubmissionUnknownError),
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


def serve(fal: ScriptedServer, *polls: dict[str, object]) -> None:
    """Answer each poll with the next status, and then always with the last."""
    waiting = list(polls)

    def respond(handler: ScriptedHandler) -> None:
        send_json(waiting.pop(0) if len(waiting) > 1 else waiting[0])(handler)

    fal.answer = respond


def watch(client: FalClient, **options: timedelta) -> list[Progress]:
    return list(client.iter_events(HANDLE, logs=True, interval=QUICKLY, **options))


def name_logs(*messages: str) -> tuple[LogEntry, ...]:
    return tuple({"message": message, "level": "INFO"} for message in messages)


WAITING = build_status("IN_QUEUE", queue_position=2)
RUNNING = build_status("IN_PROGRESS", "a")
DONE = build_status("COMPLETED", "a", "b", metrics={"inference_time": 1.5})
FOLLOWED = [
    Progress("IN_QUEUE", 2, logs=()),
    Progress("IN_PROGRESS", logs=name_logs("a")),
    Progress("COMPLETED", None, 1.5, name_logs("a", "b")),
]


def test_following_tells_each_status_once(fal, client) -> None:
    serve(fal, WAITING, RUNNING, RUNNING, DONE)
    assert watch(client) == FOLLOWED
    assert {one.target for one in fal.asked} == {"/fal-ai/app/requests/r-1/status?logs=1"}


def test_following_past_its_time_names_the_request(fal, client) -> None:
    serve(fal, WAITING)
    with pytest.raises(RequestPendingError) as caught:
        watch(client, timeout=timedelta(seconds=0.05))
    assert caught.value.fal_request_id == "r-1"


def test_following_ends_once_nothing_is_learnt_for_long(fal, client, monkeypatch) -> None:
    monkeypatch.setattr(client_module, "STATUS_TIMEOUT", timedelta(seconds=0.05))
    fal.answer = send_json({"detail": "away"}, 503)
    with pytest.raises(RequestUnclearError, match="503"):
        watch(client)


# ------------------------------------------------------------------ results


def fail_run(fal: ScriptedServer, *results: Callable[[ScriptedHandler], None]) -> None:
    """The status says that the run failed; its result is answered so in turn, then not at all."""
    left = list(results)

    def respond(handler: ScriptedHandler) -> None:
        if handler.asked.path.endswith("/status"):
            send_json(build_status("COMPLETED", error="it broke", error_type="x"))(handler)
        else:
            (left.pop(0) if left else break_off())(handler)

    fal.answer = respond


REFUSED = send_json({"detail": [DETAIL]}, 422, X_Fal_Needs_Retry="0")


@pytest.mark.parametrize("results", [[REFUSED], [break_off(), REFUSED]])
def test_result_of_failed_run_has_fields_and_what_fal_says_of_another_try(
    fal, client, results
) -> None:
    """It is asked for again where the connection breaks off."""
    fail_run(fal, *results)
    with pytest.raises(InputRefusedError) as caught:
        client.result(HANDLE)
    assert (caught.value.error_type, caught.value.retryable) == ("greater_than_equal", False)
    assert caught.value.details == (DETAIL,)


def test_result_of_failed_run_that_cannot_be_read_is_what_its_status_says(fal, client) -> None:
    fail_run(fal)
    with pytest.raises(RunFailedError, match="it broke") as caught:
        client.result(HANDLE)
    assert (caught.value.error_type, caught.value.details) == ("x", ())
    assert [one.path.rpartition("/")[2] for one in fal.asked] == ["status", "r-1", "r-1"]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("content_policy_violation", FAILURES[ErrorClass.INPUT]),
        ("generation_timeout", FAILURES[ErrorClass.MODEL]),
        ("runner_disconnected", FAILURES[ErrorClass.PLATFORM]),
        ("client_cancelled", FAILURES[ErrorClass.CALLER]),
        ("authorization_error", FAILURES[ErrorClass.API]),
        ("type_of_tomorrow", RunFailedError),
    ],
)
def test_result_of_failed_run_raises_by_the_class_of_its_type(fal, client, name, error) -> None:
    fail_run(fal, send_json({"detail": "words", "error_type": name}, 422))
    with pytest.raises(RequestFailedError) as caught:
        client.result(HANDLE)
    assert type(caught.value) is error
    assert caught.value.error_type == name
