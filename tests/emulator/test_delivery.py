import json
import time
from datetime import datetime
from itertools import pairwise

import pytest
from cryptography.exceptions import InvalidSignature

from emulator.signing import KeyRing
from tests.emulator.receiver import Received, start_meeting
from tests.emulator.signatures import verify


def test_webhook_of_success_carries_the_result(emulator, receiver):
    request_id = emulator.submit(fal_webhook=f"{receiver.url}/hook/1?a=b&c=d")
    received = receiver.take()
    assert received.path == "/hook/1?a=b&c=d"
    assert received.headers["content-type"] == "application/json"
    assert json.loads(received.body) == {
        "request_id": request_id,
        "gateway_request_id": request_id,
        "status": "OK",
        "payload": emulator.get_result(request_id).json(),
    }


def test_webhook_of_refused_input_carries_the_detail(emulator, receiver):
    request_id = emulator.submit({"fps": 0}, fal_webhook=receiver.url)
    body = json.loads(receiver.take().body)
    assert (body["status"], body["error"]) == ("ERROR", "Invalid status code: 422")
    assert body["payload"] == emulator.get_result(request_id).json()


def test_webhook_of_cancelled_request_is_an_error(busy, receiver):
    busy.cancel(busy.submit(fal_webhook=receiver.url))
    body = json.loads(receiver.take().body)
    assert (body["status"], body["error"]) == ("ERROR", "Invalid status code: 499")
    assert body["payload"]["error_type"] == "client_cancelled"


def test_webhook_signature_holds_over_the_raw_body(emulator, receiver):
    request_id = emulator.submit(fal_webhook=receiver.url)
    received = receiver.take()
    verify(emulator, received)
    assert received.headers["x-fal-webhook-request-id"] == request_id
    assert received.headers["x-fal-webhook-user-id"] == "emulator-user"
    assert abs(time.time() - int(received.headers["x-fal-webhook-timestamp"])) < 30


def test_webhook_signature_fails_over_another_body(emulator, receiver):
    emulator.submit(fal_webhook=receiver.url)
    received = receiver.take()
    with pytest.raises(InvalidSignature):
        verify(emulator, Received(received.path, received.headers, received.body + b" "))


@pytest.mark.parametrize("answer", [500, 401])
def test_webhook_refused_is_sent_again_with_same_body(emulator, receiver, answer):
    receiver.answers.put(answer)
    request_id = emulator.submit(fal_webhook=receiver.url)
    first, second = receiver.take(), receiver.take()
    verify(emulator, second)
    deliveries = emulator.wait_for_deliveries(request_id, 2)
    assert first.body == second.body
    assert [one["status_code"] for one in deliveries] == [answer, 200]
    assert deliveries[0]["at"] < deliveries[1]["at"]


def test_webhook_retries_wait_twice_as_long_each_time(emulator, receiver):
    for _ in range(3):
        receiver.answers.put(500)
    request_id = emulator.submit(fal_webhook=receiver.url)
    deliveries = emulator.wait_for_deliveries(request_id, 4)
    times = [datetime.fromisoformat(one["at"]) for one in deliveries]
    gaps = [(after - before).total_seconds() for before, after in pairwise(times)]
    assert [one["status_code"] for one in deliveries] == [500, 500, 500, 200]
    assert all(gap > 0.9 * least for gap, least in zip(gaps, (0.05, 0.1, 0.2), strict=True))


def test_webhook_redirect_is_neither_followed_nor_repeated(emulator, receiver):
    receiver.answers.put(307)
    request_id = emulator.submit(fal_webhook=receiver.url)
    receiver.take()
    deliveries = emulator.wait_for_deliveries(request_id, 1)
    emulator.submit(fal_webhook=f"{receiver.url}/next")
    assert receiver.take().path == "/next"
    assert [one["status_code"] for one in deliveries] == [307]


def test_webhook_to_nobody_records_the_error_and_goes_on(emulator):
    request_id = emulator.submit(fal_webhook="http://127.0.0.1:1/hook")
    deliveries = emulator.wait_for_deliveries(request_id, 2)
    assert deliveries[0]["status_code"] is None
    assert "127.0.0.1" in deliveries[0]["error"]


def test_webhook_gives_up_after_ten_retries(busy, receiver):
    for _ in range(20):
        receiver.answers.put(500)
    request_id = busy.submit(fal_webhook=receiver.url)
    busy.cancel(request_id)
    busy.wait_for_deliveries(request_id, 11)
    busy.cancel(busy.submit(fal_webhook=f"{receiver.url}/next"))
    paths = [receiver.take().path for _ in range(12)]
    assert paths.count("/") == 11
    assert paths[-1] == "/next"


def test_webhooks_are_posted_so_many_at_once(busy):
    with start_meeting(2) as meeting:
        ids = [busy.submit(fal_webhook=meeting.url) for _ in range(8)]
        for request_id in ids:
            busy.cancel(request_id)
        deliveries = [busy.wait_for_deliveries(one, 1)[0] for one in ids]
    assert [one["status_code"] for one in deliveries] == [200] * 8
    assert max(meeting.present) == 2


def test_signing_key_survives_a_restart(tmp_path):
    path = tmp_path / "signing-key"
    keys = [KeyRing(path, "me").signer.publish_keys() for _ in range(2)]
    assert keys[0] == keys[1]
    assert path.stat().st_mode & 0o777 == 0o600
