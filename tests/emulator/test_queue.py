import asyncio
from datetime import datetime, timedelta

import pytest

from emulator.queue import Queue
from emulator.records import FalRequest, Outcome, Status
from tests.emulator.conftest import lay_out
from tests.emulator.processes import SHORT, Emulator, start_emulator

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


def test_concurrency_bounds_running_requests(tmp_path, sample):
    options = ("--concurrency", "2", "--run-seconds", "3600")
    with start_emulator(lay_out(tmp_path / "two", sample), *options) as emulator:
        first, second, third = (emulator.submit() for _ in range(3))
        emulator.wait_for_status(first, "IN_PROGRESS")
        emulator.wait_for_status(second, "IN_PROGRESS")
        assert emulator.get_status(third)["status"] == "IN_QUEUE"


def test_queue_and_run_times_are_least_times(tmp_path, sample):
    options = ("--queue-seconds", "0.3", "--run-seconds", "0.4", "--concurrency", "1")
    with start_emulator(lay_out(tmp_path / "slow", sample), *options) as emulator:
        first, second = emulator.submit(), emulator.submit()
        emulator.wait_for_status(second, "COMPLETED")
        before, after = emulator.find(first), emulator.find(second)
        assert read_seconds(before, "submitted_at", "started_at") >= 0.3
        assert emulator.get_status(second)["metrics"]["inference_time"] >= 0.4
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


def test_start_timeout_prefers_new_header_name(busy):
    headers = {"X-Fal-Request-Start-Timeout": "0.11", "X-Fal-Request-Timeout": "3600"}
    request_id = busy.post(headers=headers).json()["request_id"]
    assert busy.get_result(request_id).status_code == 504


def test_start_timeout_spares_started_request(tmp_path, sample):
    with start_emulator(lay_out(tmp_path / "a", sample), "--run-seconds", "0.7") as emulator:
        headers = {"X-Fal-Request-Start-Timeout": "0.5"}
        request_id = emulator.post(headers=headers).json()["request_id"]
        assert emulator.get_result(request_id).status_code == 200


@pytest.mark.parametrize("value", ["0.1", "0", "-1", "soon", "nan", "inf", "1e300", ""])
def test_start_timeout_out_of_bounds_is_bad_request(emulator, value):
    response = emulator.post(headers={"X-Fal-Request-Start-Timeout": value})
    assert response.status_code == 400
    assert response.json()["error_type"] == "bad_request"


def test_max_queue_length_refuses_longer_queue(busy):
    busy.submit()
    assert busy.post(query={"fal_max_queue_length": "1"}).status_code == 200
    refused = busy.post(query={"fal_max_queue_length": "1"})
    assert refused.status_code == 429
    assert isinstance(refused.json()["detail"], str)


@pytest.mark.parametrize("value", ["-1", "many", "1.5", ""])
def test_max_queue_length_of_no_number_is_bad_request(emulator, value):
    assert emulator.post(query={"fal_max_queue_length": value}).status_code == 400


def test_cancel_of_waiting_request_removes_it(busy):
    request_id = busy.submit()
    answer = busy.cancel(request_id)
    status = busy.get_status(request_id)
    result = busy.client.get(f"{SHORT}/requests/{request_id}")
    assert (answer.status_code, answer.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert (status["status"], status["error_type"]) == ("COMPLETED", "client_cancelled")
    assert result.status_code == 499
    assert busy.find(request_id)["charged"] is False


def test_cancel_of_running_request_lets_it_complete(tmp_path, sample):
    with start_emulator(lay_out(tmp_path / "a", sample), "--run-seconds", "1") as emulator:
        request_id = emulator.submit()
        emulator.wait_for_status(request_id, "IN_PROGRESS")
        answer = emulator.cancel(request_id)
        assert (answer.status_code, answer.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
        assert emulator.get_result(request_id).status_code == 200
        assert emulator.find(request_id)["cancel_requested"] is True


def test_cancel_of_completed_request_is_too_late(emulator):
    request_id = emulator.submit()
    emulator.wait_for_status(request_id, "COMPLETED")
    answer = emulator.cancel(request_id)
    assert (answer.status_code, answer.json()) == (400, {"status": "ALREADY_COMPLETED"})


def test_run_that_breaks_completes_as_internal_error():
    async def break_down(_request: FalRequest) -> Outcome:
        raise BROKEN

    async def scenario() -> FalRequest:
        completed: asyncio.Queue[FalRequest] = asyncio.Queue()
        queue = Queue(
            concurrency=1,
            queue_time=timedelta(0),
            run=break_down,
            on_completed=completed.put_nowait,
        )
        queue.submit(FalRequest(origin="http://x", input={}))
        return await completed.get()

    request = asyncio.run(scenario())
    assert request.status is Status.COMPLETED
    assert request.outcome is not None
    assert (request.outcome.status_code, request.outcome.error_type) == (500, "internal_error")
