"""Our own client against the emulator: the scenarios that fal's official clients get through."""

from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from pydantic import JsonValue, SecretStr

from tests.emulator.clips import make_clip
from tests.emulator.processes import Emulator, start_emulator
from tests.emulator.receiver import start_receiver
from tests.harness.brokers import find_closed_port
from tests.harness.jobs import ENDPOINT
from worker.fal.client import FalClient, Handle
from worker.fal.client_errors import (
    AccountRefusedError,
    RequestFailedError,
    RequestNotFoundError,
    RequestPendingError,
    RequestUnclearError,
    SubmissionPostponedError,
    SubmissionRefusedError,
    SubmissionUnknownError,
)
from worker.fal.options import RequestOptions
from worker.fal.status import Completed, InProgress, Queued, RequestStatus
from worker.fal.truth import CancelAnswer

KEY = SecretStr("emulator-key")
NOBODY = Handle(ENDPOINT, "7f3c1d0e-0000-4000-8000-00000000ffff")
QUICKLY = timedelta(milliseconds=10)


@pytest.fixture(scope="module")
def shared_fal(tmp_path_factory) -> Iterator[Emulator]:
    options = ("--render", "fake", "--concurrency", "8", "--webhook-retry-seconds", "0.05")
    with start_emulator(tmp_path_factory.mktemp("fal"), *options) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def rendering_fal(tmp_path_factory) -> Iterator[Emulator]:
    """One that renders, and logs what it does."""
    directory = tmp_path_factory.mktemp("rendering")
    (directory / "files").mkdir()
    make_clip(directory / "files" / "ready.mp4")
    with start_emulator(directory, "--run-seconds", "0.2") as emulator:
        yield emulator


@pytest.fixture
def fal(shared_fal) -> Iterator[Emulator]:
    """One that answers at once, and goes wrong as the test orders."""
    yield shared_fal
    shared_fal.client.delete("/_emulator/faults")
    shared_fal.client.delete("/_emulator/hooks")


@pytest.fixture(scope="module")
def shared_busy(tmp_path_factory) -> Iterator[Emulator]:
    options = ("--render", "fake", "--concurrency", "1", "--run-seconds", "3600")
    with start_emulator(tmp_path_factory.mktemp("busy"), *options) as emulator:
        emulator.wait_for_status(emulator.submit(), "IN_PROGRESS")
        yield emulator


@pytest.fixture
def busy_fal(shared_busy) -> Iterator[Emulator]:
    """One whose only runner is taken by a request that does not end; nobody waits behind it."""
    yield shared_busy
    for request in shared_busy.list_requests():
        if request["status"] == "IN_QUEUE":
            shared_busy.cancel(request["request_id"])


@pytest.fixture
def client(fal) -> Iterator[FalClient]:
    with FalClient(KEY, queue_url=fal.url) as client:
        yield client


@pytest.fixture
def waiting_client(busy_fal) -> Iterator[FalClient]:
    with FalClient(KEY, queue_url=busy_fal.url) as client:
        yield client


def build_arguments(emulator: Emulator, **fields: JsonValue) -> dict[str, JsonValue]:
    """Of a prompt that no other test has, by which the ledger counts."""
    url = f"{emulator.url}/files/ready.mp4"
    known: dict[str, JsonValue] = {"prompt": f"on it goes {uuid4()}", "video_url": url, "seed": 7}
    return known | {"num_frames": 9, "num_context_frames": 5} | fields


def count_submissions(emulator: Emulator, arguments: dict[str, JsonValue]) -> int:
    ledger = emulator.client.get("/_emulator/ledger").json()["by_input"]
    return sum(one["submissions"] for one in ledger if one["prompt"] == arguments["prompt"])


def finish(client: FalClient, handle: Handle, **options: Any) -> Completed:
    *_, last = client.iter_events(handle, interval=QUICKLY, **options)
    assert isinstance(last, Completed)
    return last


# ------------------------------------------------------------------ submit, follow, result


def test_client_submits_follows_and_gets_result(rendering_fal) -> None:
    with FalClient(KEY, queue_url=rendering_fal.url) as client:
        handle = client.submit(ENDPOINT, build_arguments(rendering_fal))
        statuses = list(client.iter_events(handle, logs=True, interval=QUICKLY))
        result = client.result(handle)
    ended = statuses[-1]
    assert isinstance(ended, Completed)
    told = rendering_fal.get_status(handle.fal_request_id, logs="1")["logs"]
    assert len(told) >= 3
    assert [entry.message for entry in ended.logs] == [entry["message"] for entry in told]
    assert [entry.level for entry in ended.logs] == [entry["level"] for entry in told]
    assert all(one.logs == ended.logs[: len(one.logs)] for one in statuses)
    assert ended.inference_time is not None
    assert ended.inference_time > timedelta()
    assert (ended.error, ended.error_type) == (None, None)
    assert result == rendering_fal.get_result(handle.fal_request_id).json()
    assert isinstance(result["video"], dict)
    assert result["video"]["num_frames"] == 28


def test_status_has_logs_only_if_they_are_asked_for(rendering_fal) -> None:
    with FalClient(KEY, queue_url=rendering_fal.url) as client:
        handle = client.submit(ENDPOINT, build_arguments(rendering_fal))
        finish(client, handle)
        assert len(client.status(handle, logs=True).logs) >= 3
        assert client.status(handle).logs == ()


def test_handle_built_again_from_its_id_gets_the_same(fal, client) -> None:
    handle = client.submit(ENDPOINT, build_arguments(fal))
    finish(client, handle)
    again = Handle(ENDPOINT, handle.fal_request_id)
    assert client.result(again) == client.result(handle)
    assert client.status(again) == client.status(handle)
    assert client.cancel(again) is CancelAnswer.ALREADY_COMPLETED


def test_client_subscribes_and_tells_each_status_once(fal, client) -> None:
    updates: list[RequestStatus] = []
    result = client.subscribe(
        ENDPOINT, build_arguments(fal), on_queue_update=updates.append, interval=QUICKLY
    )
    assert result["seed"] == 7
    assert isinstance(updates[-1], Completed)
    assert all(one != other for one, other in pairwise(updates))


def test_client_subscribes_by_asking_where_there_is_no_stream(fal, client) -> None:
    fal.order({"point": "stream", "kind": "status", "code": 404})
    told: list[RequestStatus] = []
    arguments = build_arguments(fal)
    output = client.subscribe(ENDPOINT, arguments, on_queue_update=told.append, interval=QUICKLY)
    assert isinstance(told[-1], Completed)
    assert isinstance(output["video"], dict)
    assert fal.count_fired() == [1]
    assert count_submissions(fal, arguments) == 1


def test_client_sends_webhook_and_every_option(fal, client) -> None:
    options = RequestOptions.model_validate(
        {
            "priority": "low",
            "start_timeout": 30,
            "object_expiration": 7200,
            "initial_acl": {"default": "allow"},
            "tags": {"team": "video"},
            "no_retry": True,
            "disable_fallback": True,
            "store_io": False,
            "runner_hint": "sticky",
        }
    )
    with start_receiver() as receiver:
        handle = client.submit(
            ENDPOINT, build_arguments(fal), options=options, webhook_url=f"{receiver.url}/a?b=c"
        )
        assert receiver.take().path == "/a?b=c"
    arrived = fal.find(handle.fal_request_id)["headers"]
    sent = {name.lower(): value for name, value in options.to_headers().items()}
    assert len(sent) == 10
    assert {name: arrived.get(name) for name in sent} == sent


def test_client_gets_result_of_sync_mode_inside_it(fal, client) -> None:
    result = client.subscribe(ENDPOINT, build_arguments(fal, sync_mode=True), interval=QUICKLY)
    assert isinstance(result["video"], dict)
    assert str(result["video"]["url"]).startswith("data:video/mp4;base64,")


# ------------------------------------------------------------------ waiting, running, cancelled


def test_client_sees_positions_and_cancels(busy_fal, waiting_client) -> None:
    first = waiting_client.submit(ENDPOINT, build_arguments(busy_fal))
    low = RequestOptions.model_validate({"priority": "low"})
    second = waiting_client.submit(ENDPOINT, build_arguments(busy_fal), options=low)
    assert waiting_client.status(second) == Queued(1)
    with pytest.raises(RequestPendingError) as pending:
        waiting_client.result(second)
    assert pending.value.fal_request_id == second.fal_request_id

    assert waiting_client.cancel(first) is CancelAnswer.REQUESTED
    cancelled = waiting_client.status(first)
    assert isinstance(cancelled, Completed)
    assert cancelled.error_type == "client_cancelled"
    with pytest.raises(RequestFailedError) as failed:
        waiting_client.result(first)
    assert failed.value.error_type == "client_cancelled"


def test_client_sees_running_request(busy_fal, waiting_client) -> None:
    running = Handle(ENDPOINT, busy_fal.list_requests()[0]["request_id"])
    assert isinstance(waiting_client.status(running, logs=True), InProgress)


def test_client_that_times_out_cancels_and_names_the_request(busy_fal, waiting_client) -> None:
    arguments = build_arguments(busy_fal)
    with pytest.raises(RequestPendingError) as caught:
        waiting_client.subscribe(
            ENDPOINT, arguments, interval=QUICKLY, timeout=timedelta(seconds=0.2)
        )
    request = busy_fal.find(caught.value.fal_request_id)
    assert request["status"] == "COMPLETED"
    assert count_submissions(busy_fal, arguments) == 1


# ------------------------------------------------------------------ refused, failed, unknown


def test_client_names_each_field_of_refused_input(fal, client) -> None:
    handle = client.submit(ENDPOINT, build_arguments(fal, num_frames=1, fps=0))
    finish(client, handle)
    with pytest.raises(RequestFailedError) as caught:
        client.result(handle)
    assert caught.value.error_type == "greater_than_equal"
    places = [detail["loc"] for detail in caught.value.details]
    assert places == [["body", "num_frames"], ["body", "fps"]]


def test_client_with_wrong_key_is_refused_as_an_account(fal) -> None:
    with FalClient(SecretStr("wrong"), queue_url=fal.url) as stranger:
        for call in (
            lambda: stranger.submit(ENDPOINT, build_arguments(fal)),
            lambda: stranger.status(NOBODY),
        ):
            with pytest.raises(AccountRefusedError) as caught:
                call()
            assert caught.value.http_status == 401


def test_client_of_locked_account_hears_fals_words(fal, client) -> None:
    fal.order({"point": "submit", "kind": "status", "code": 403})
    with pytest.raises(AccountRefusedError, match="User is locked"):
        client.submit(ENDPOINT, build_arguments(fal))


def test_client_at_wrong_application_is_refused(fal, client) -> None:
    with pytest.raises(SubmissionRefusedError, match="not found") as caught:
        client.submit("fal-ai/no-such-app", build_arguments(fal))
    assert (caught.value.http_status, caught.value.error_type) == (404, "fal_http_404")


@pytest.mark.parametrize(
    "fault", [{"kind": "status", "code": 429}, {"kind": "ingress", "code": 503}]
)
def test_client_of_busy_fal_may_submit_later(fal, client, fault) -> None:
    arguments = build_arguments(fal)
    fal.order({"point": "submit", "times": 1, **fault})
    with pytest.raises(SubmissionPostponedError):
        client.submit(ENDPOINT, arguments)
    assert count_submissions(fal, arguments) == 0
    client.submit(ENDPOINT, arguments)
    assert count_submissions(fal, arguments) == 1


def test_client_without_fal_may_submit_later(fal) -> None:
    with FalClient(KEY, queue_url=f"http://127.0.0.1:{find_closed_port()}") as lonely:
        with pytest.raises(SubmissionPostponedError):
            lonely.submit(ENDPOINT, build_arguments(fal))
        with pytest.raises(RequestUnclearError):
            lonely.status(NOBODY)
        with pytest.raises(RequestUnclearError):
            lonely.cancel(NOBODY)


@pytest.mark.parametrize("kind", ["execute_then_drop", "execute_then_ingress"])
def test_client_whose_reply_is_lost_submits_once_and_says_so(fal, client, kind) -> None:
    """Where fal's own clients submit again, and pay twice."""
    arguments = build_arguments(fal)
    fal.order({"point": "submit", "kind": kind, "times": 1})
    with pytest.raises((SubmissionUnknownError, SubmissionPostponedError)) as caught:
        client.submit(ENDPOINT, arguments)
    assert count_submissions(fal, arguments) == 1
    if kind == "execute_then_drop":
        assert isinstance(caught.value, SubmissionUnknownError)


def test_client_asked_about_nobody_says_so(client) -> None:
    for call in (client.status, client.result):
        with pytest.raises(RequestNotFoundError):
            call(NOBODY)
    assert client.cancel(NOBODY) is CancelAnswer.NOT_FOUND


def test_client_whose_result_is_gone_says_so(fal, client) -> None:
    handle = client.submit(ENDPOINT, build_arguments(fal))
    finish(client, handle)
    fal.order({"point": "result", "kind": "status", "code": 404})
    with pytest.raises(RequestNotFoundError):
        client.result(handle)


@pytest.mark.parametrize("point", ["status", "result"])
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "code": 500},
        {"kind": "ingress", "code": 504},
        {"kind": "drop"},
        {"kind": "malformed", "form": "not_json"},
    ],
)
def test_client_that_learns_nothing_may_ask_again(fal, client, point, fault) -> None:
    handle = client.submit(ENDPOINT, build_arguments(fal))
    finish(client, handle)
    fal.order({"point": point, "times": 1, **fault})
    with pytest.raises(RequestUnclearError) as caught:
        client.result(handle)
    assert caught.value.fal_request_id == handle.fal_request_id
    assert client.result(handle)["seed"] == 7


def test_following_goes_on_while_fal_stumbles(fal, client) -> None:
    handle = client.submit(ENDPOINT, build_arguments(fal))
    fal.order(
        {"point": "status", "kind": "status", "code": 503, "times": 2},
        {"point": "status", "kind": "drop", "times": 1},
    )
    assert isinstance(finish(client, handle), Completed)


def test_call_of_silent_fal_ends_within_its_limit(fal) -> None:
    fal.order({"point": "status", "kind": "hang", "seconds": 60})
    with FalClient(KEY, queue_url=fal.url, limit=timedelta(seconds=0.3)) as hasty:
        handle = hasty.submit(ENDPOINT, build_arguments(fal))
        with pytest.raises(RequestUnclearError, match=r"no reply within 0\.3 s"):
            hasty.status(handle)
