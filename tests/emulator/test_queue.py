import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import pytest

from emulator.queue import Queue
from emulator.records import FalRequest, Outcome, Status
from tests.emulator.processes import SHORT, Emulator

BROKEN = RuntimeError("broken run")


def read_positions(emulator: Emulator, request_ids: list[str]) -> list[int]:
    return [emulator.get_status(one)["queue_position"] for one in request_ids]


def read_seconds(record: dict[str, str], first: str, second: str) -> float:
    times = [datetime.fromisoformat(record[name]) for name in (first, second)]
    return (times[1] - times[0]).total_seconds()


def test_position_counts_requests_ahead(busy):
    waiting = [busy.submit() for _ in range(3)]
    assert read_positions(busy, waiting) == [0, 1, 2]
    busy.cancel(waiting[0])
    assert read_positions(busy, waiting[1:]) == [0, 1]


def test_low_priority_waits_behind_normal(busy):
    low = busy.post(headers={"X-Fal-Queue-Priority": "low"}).json()["request_id"]
    unknown = busy.post(headers={"X-Fal-Queue-Priority": "urgent"}).json()["request_id"]
    normal = busy.post(headers={"X-Fal-Queue-Priority": "normal"}).json()["request_id"]
    lowest = busy.post(headers={"X-Fal-Queue-Priority": "LOW"}).json()["request_id"]
    assert read_positions(busy, [unknown, normal, low, lowest]) == [0, 1, 2, 3]


def test_queue_and_run_times_are_least_times_and_runs_follow_each_other(unhurried):
    first, second = unhurried.submit(), unhurried.submit()
    unhurried.wait_for_status(first, "COMPLETED")
    unhurried.wait_for_status(second, "COMPLETED")
    before, after = unhurried.find(first), unhurried.find(second)
    assert read_seconds(before, "submitted_at", "started_at") >= 0.2
    assert unhurried.get_status(second)["metrics"]["inference_time"] >= 0.3
    assert after["started_at"] >= before["completed_at"]


@pytest.mark.parametrize("name", ["X-Fal-Request-Start-Timeout", "X-Fal-Request-Timeout"])
def test_start_timeout_ends_waiting_request(busy, name):
    request_id = busy.post(headers={name: "0.11"}).json()["request_id"]
    result = busy.get_result(request_id)
    status = busy.get_status(request_id)
    assert result.status_code == 504
    assert result.headers["X-Fal-Request-Timeout-Type"] == "user"
    assert result.json()["error_type"] == status["error_type"] == "request_timeout"
    assert busy.find(request_id)["charged"] is False


def test_start_timeout_spares_started_request():
    async def run_on(_request: FalRequest) -> Outcome:
        await asyncio.sleep(0.05)
        return Outcome(200, {})

    request = FalRequest(origin="http://x", input={}, start_timeout=timedelta(seconds=0.01))
    assert complete(request, run_on).status_code == 200


@pytest.mark.parametrize("value", ["0.1", "nan"])
def test_start_timeout_out_of_bounds_is_bad_request(quick, value):
    response = quick.post(headers={"X-Fal-Request-Start-Timeout": value})
    assert response.status_code == 400
    assert response.json()["error_type"] == "bad_request"


def test_max_queue_length_refuses_longer_queue(busy):
    busy.submit()
    assert busy.post(query={"fal_max_queue_length": "1"}).status_code == 200
    refused = busy.post(query={"fal_max_queue_length": "1"})
    assert refused.status_code == 429
    assert isinstance(refused.json()["detail"], str)


def test_max_queue_length_of_no_number_is_bad_request(quick):
    assert quick.post(query={"fal_max_queue_length": "-1"}).status_code == 400


def test_cancel_of_waiting_request_removes_it(busy):
    request_id = busy.submit()
    answer = busy.cancel(request_id)
    status = busy.get_status(request_id)
    result = busy.client.get(f"{SHORT}/requests/{request_id}")
    assert (answer.status_code, answer.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert (status["status"], status["error_type"]) == ("COMPLETED", "client_cancelled")
    assert result.status_code == 499
    assert busy.find(request_id)["charged"] is False


def test_cancel_of_running_request_lets_it_complete(unhurried):
    request_id = unhurried.submit()
    unhurried.wait_for_status(request_id, "IN_PROGRESS")
    answer = unhurried.cancel(request_id)
    assert (answer.status_code, answer.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert unhurried.get_result(request_id).status_code == 200
    assert unhurried.find(request_id)["cancel_requested"] is True


def test_cancel_of_completed_request_is_too_late(quick):
    request_id = quick.submit()
    quick.wait_for_status(request_id, "COMPLETED")
    answer = quick.cancel(request_id)
    assert (answer.status_code, answer.json()) == (400, {"status": "ALREADY_COMPLETED"})


def test_run_that_breaks_completes_as_internal_error():
    async def break_down(_request: FalRequest) -> Outcome:
        raise BROKEN

    outcome = complete(FalRequest(origin="http://x", input={}), break_down)
    assert (outcome.status_code, outcome.error_type) == (500, "internal_error")


def complete(request: FalRequest, run: Callable[[FalRequest], Awaitable[Outcome]]) -> Outcome:
    """The outcome of the request, alone in a queue of its own."""

    async def scenario() -> None:
        completed: asyncio.Queue[FalRequest] = asyncio.Queue()
        queue = Queue(
            concurrency=1,
            queue_time=timedelta(0),
            run=run,
            on_completed=completed.put_nowait,
        )
        queue.submit(request)
        await completed.get()

    asyncio.run(scenario())
    assert request.status is Status.COMPLETED
    assert request.outcome is not None
    return request.outcome
