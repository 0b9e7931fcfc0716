import json
import time
from datetime import datetime

import pytest
from cryptography.exceptions import InvalidSignature

from tests.emulator.processes import Emulator, wait_until
from tests.emulator.receiver import Received, Receiver
from tests.emulator.signatures import verify


def submit_to_end(emulator: Emulator, receiver: Receiver, prompt: str = "p") -> str:
    """Submit, and wait for the completion that sets the webhook going."""
    request_id = emulator.submit({"prompt": prompt}, fal_webhook=f"{receiver.url}/first")
    emulator.wait_for_status(request_id, "COMPLETED")
    return request_id


def take_all(emulator: Emulator, receiver: Receiver) -> list[Received]:
    """All that came before the webhook of a further request, which goes wrong in nothing."""
    emulator.order()
    emulator.submit(fal_webhook=f"{receiver.url}/last")
    taken = [receiver.take()]
    while taken[-1].path != "/last":
        taken.append(receiver.take())
    return taken[:-1]


def test_webhook_lost_never_comes(faulty, receiver):
    faulty.order({"point": "webhook", "kind": "lost"})
    request_id = submit_to_end(faulty, receiver)
    wait_until(lambda: faulty.count_fired() == [1])
    assert take_all(faulty, receiver) == []
    assert faulty.find(request_id)["deliveries"] == []


def test_webhook_repeated_comes_so_often(faulty, receiver):
    faulty.order({"point": "webhook", "kind": "repeat", "count": 3})
    request_id = submit_to_end(faulty, receiver)
    received = [receiver.take() for _ in range(3)]
    assert len({one.body for one in received}) == 1
    assert len(faulty.wait_for_deliveries(request_id, 3)) == 3
    assert take_all(faulty, receiver) == []


def test_webhook_early_is_answered_before_the_submission(faulty, receiver):
    faulty.order({"point": "webhook", "kind": "early"})
    faulty.arm({"point": "submit_replied"})
    body = faulty.post(query={"fal_webhook": receiver.url}).json()
    [held] = faulty.wait_for_held()
    [delivery] = faulty.find(body["request_id"])["deliveries"]
    assert held["request_id"] == body["request_id"]
    assert (delivery["status_code"], body["status"]) == (200, "IN_QUEUE")
    assert faulty.count_fired() == [1]


def test_webhook_delayed_comes_so_much_later(faulty, receiver):
    faulty.order({"point": "webhook", "kind": "delay", "seconds": 0.2})
    request_id = submit_to_end(faulty, receiver)
    [delivery] = faulty.wait_for_deliveries(request_id, 1)
    completed = faulty.find(request_id)["completed_at"]
    assert read_gap(completed, delivery["at"]) >= 0.2


def test_webhook_reordered_comes_after_the_next_one(faulty, receiver):
    faulty.order({"point": "webhook", "kind": "reorder", "match": {"prompt": "first"}})
    first = submit_to_end(faulty, receiver, "the first")
    second = submit_to_end(faulty, receiver, "the second")
    ids = [json.loads(receiver.take().body)["request_id"] for _ in range(2)]
    assert ids == [second, first]


def test_webhook_reordered_without_another_comes_after_all(faulty, receiver):
    faulty.order({"point": "webhook", "kind": "reorder", "seconds": 0.1})
    request_id = submit_to_end(faulty, receiver)
    assert json.loads(receiver.take().body)["request_id"] == request_id


@pytest.mark.parametrize("kind", ["forged", "wrong_key"])
def test_webhook_by_somebody_else_fails_verification(faulty, receiver, kind):
    receiver.answers.put(401)
    faulty.order({"point": "webhook", "kind": kind})
    request_id = submit_to_end(faulty, receiver)
    received = receiver.take()
    with pytest.raises(InvalidSignature):
        verify(faulty, received)
    assert json.loads(received.body)["request_id"] == request_id
    assert received.headers["x-fal-webhook-user-id"] == "emulator-user"
    [delivery] = faulty.wait_for_deliveries(request_id, 1)
    assert (delivery["fault"], delivery["status_code"]) == (kind, 401)
    assert take_all(faulty, receiver) == []


def test_webhook_of_wrong_user_is_signed_for_that_user(faulty, receiver):
    faulty.order({"point": "webhook", "kind": "wrong_user", "user_id": "stranger"})
    submit_to_end(faulty, receiver)
    received = receiver.take()
    verify(faulty, received)
    assert received.headers["x-fal-webhook-user-id"] == "stranger"


def test_webhook_stale_is_signed_with_its_old_time_and_repeated(faulty, receiver):
    receiver.answers.put(503)
    faulty.order({"point": "webhook", "kind": "stale", "seconds": 7200})
    submit_to_end(faulty, receiver)
    for received in (receiver.take(), receiver.take()):
        verify(faulty, received)
        age = time.time() - int(received.headers["x-fal-webhook-timestamp"])
        assert 7200 <= age < 7260


def test_webhook_truncated_is_signed_as_it_is(faulty, receiver):
    faulty.order({"point": "webhook", "kind": "truncated"})
    submit_to_end(faulty, receiver)
    received = receiver.take()
    verify(faulty, received)
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(received.body)


@pytest.mark.parametrize(
    ("fields", "status", "error"),
    [
        ({}, "OK", None),
        ({"fps": 0}, "ERROR", "Invalid status code: 422"),
    ],
)
def test_webhook_without_payload_says_why(faulty, receiver, fields, status, error):
    faulty.order({"point": "webhook", "kind": "payload_null", "status": status})
    faulty.submit(fields, fal_webhook=receiver.url)
    received = receiver.take()
    body = json.loads(received.body)
    verify(faulty, received)
    assert (body["status"], body["payload"], body.get("error")) == (status, None, error)
    assert body["payload_error"]


def test_webhook_spoiled_and_genuine_both_come_if_so_ordered(faulty, receiver):
    faulty.order({"point": "webhook", "kind": "forged", "also": True})
    request_id = submit_to_end(faulty, receiver)
    received = [receiver.take() for _ in range(2)]
    verify(faulty, received[1])
    assert json.loads(received[1].body)["payload"] == faulty.get_result(request_id).json()
    deliveries = faulty.wait_for_deliveries(request_id, 2)
    assert [one["fault"] for one in deliveries] == ["forged", None]


def test_rotated_key_alone_is_published_and_kept(faulty, receiver):
    faulty.submit(fal_webhook=receiver.url)
    before = receiver.take()
    verify(faulty, before)
    published = faulty.client.post("/_emulator/rotate-keys").json()
    with pytest.raises(InvalidSignature):
        verify(faulty, before)
    faulty.submit(fal_webhook=receiver.url)
    verify(faulty, receiver.take())
    assert len(published["keys"]) == 1
    assert (faulty.directory / "signing-key").stat().st_mode & 0o777 == 0o600


def read_gap(first: str, second: str) -> float:
    gap = datetime.fromisoformat(second) - datetime.fromisoformat(first)
    return gap.total_seconds()
