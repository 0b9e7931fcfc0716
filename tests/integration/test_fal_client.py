"""Our own client against the emulator: it follows, cancels, and submits no request twice."""

from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from pydantic import JsonValue, SecretStr

from tests.emulator.processes import Emulator
from tests.harness.jobs import ENDPOINT
from worker.fal.client import FalClient, Handle
from worker.fal.errors import (
    AccountRefusedError,
    RequestFailedError,
    RequestPendingError,
    SubmissionUnknownError,
)
from worker.fal.options import RequestOptions
from worker.fal.requests import CancelAnswer, Progress

KEY = SecretStr("emulator-key")
NOBODY = Handle(ENDPOINT, "7f3c1d0e-0000-4000-8000-00000000ffff")
QUICKLY = timedelta(milliseconds=10)


@pytest.fixture
def client(emulator) -> Iterator[FalClient]:
    with FalClient(KEY, queue_url=emulator.url) as client:
        yield client


@pytest.fixture
def waiting_client(busy_emulator) -> Iterator[FalClient]:
    with FalClient(KEY, queue_url=busy_emulator.url) as client:
        yield client


def build_arguments(emulator: Emulator, **fields: JsonValue) -> dict[str, JsonValue]:
    """Of a prompt that no other test has, by which the ledger counts."""
    url = f"{emulator.url}/files/ready.mp4"
    known: dict[str, JsonValue] = {"prompt": f"on it goes {uuid4()}", "video_url": url, "seed": 7}
    return known | {"num_frames": 9, "num_context_frames": 5} | fields


def count_submissions(emulator: Emulator, arguments: dict[str, JsonValue]) -> int:
    ledger = emulator.client.get("/_emulator/ledger").json()["by_input"]
    return sum(one["submissions"] for one in ledger if one["prompt"] == arguments["prompt"])


def finish(client: FalClient, handle: Handle, **options: Any) -> Progress:
    *_, last = client.iter_events(handle, interval=QUICKLY, **options)
    assert last.has_ended
    return last


# ------------------------------------------------------------------ submit, follow, result


def test_client_subscribes_and_tells_each_status_once(emulator, client) -> None:
    updates: list[Progress] = []
    result = client.subscribe(
        ENDPOINT, build_arguments(emulator), on_queue_update=updates.append, interval=QUICKLY
    )
    assert result["seed"] == 7
    assert updates[-1].has_ended
    assert all(one != other for one, other in pairwise(updates))


# ------------------------------------------------------------------ waiting, running, cancelled


def test_client_sees_positions_and_cancels(busy_emulator, waiting_client) -> None:
    first = waiting_client.submit(ENDPOINT, build_arguments(busy_emulator))
    low = RequestOptions.model_validate({"priority": "low"})
    second = waiting_client.submit(ENDPOINT, build_arguments(busy_emulator), options=low)
    assert waiting_client.status(second).queue_position == 1
    with pytest.raises(RequestPendingError) as pending:
        waiting_client.result(second)
    assert pending.value.fal_request_id == second.fal_request_id

    assert waiting_client.cancel(first) is CancelAnswer.REQUESTED
    cancelled = waiting_client.status(first)
    assert cancelled.has_ended
    assert cancelled.error_type == "client_cancelled"
    with pytest.raises(RequestFailedError) as failed:
        waiting_client.result(first)
    assert failed.value.error_type == "client_cancelled"


# ------------------------------------------------------------------ refused, failed, unknown


def test_client_names_each_field_of_refused_input(emulator, client) -> None:
    handle = client.submit(ENDPOINT, build_arguments(emulator, num_frames=1, fps=0))
    finish(client, handle)
    with pytest.raises(RequestFailedError) as caught:
        client.result(handle)
    assert caught.value.error_type == "greater_than_equal"
    places = [detail["loc"] for detail in caught.value.details]
    assert places == [["body", "num_frames"], ["body", "fps"]]


def test_client_with_wrong_key_is_refused_as_an_account(emulator) -> None:
    with FalClient(SecretStr("wrong"), queue_url=emulator.url) as stranger:
        for call in (
            lambda: stranger.submit(ENDPOINT, build_arguments(emulator)),
            lambda: stranger.status(NOBODY),
        ):
            with pytest.raises(AccountRefusedError) as caught:
                call()
            assert caught.value.http_status == 401


def test_client_whose_reply_is_lost_submits_once_and_says_so(emulator, client) -> None:
    """Where fal's own clients submit again, and pay twice."""
    arguments = build_arguments(emulator)
    emulator.order({"point": "submit", "kind": "execute_then_drop", "times": 1})
    with pytest.raises(SubmissionUnknownError):
        client.submit(ENDPOINT, arguments)
    assert count_submissions(emulator, arguments) == 1
