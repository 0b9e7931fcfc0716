from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import httpx
import pytest

from emulator.faults import WrongSettingError
from emulator.hooks import POINTS, parse_hooks
from tests.emulator.processes import ENDPOINT, SHORT, Emulator, wait_until
from tests.emulator.uploading import complete, initiate, name_part, put


@pytest.fixture
def together():
    """Runs a call that will be held while the test goes on."""
    with ThreadPoolExecutor(2) as executor:
        yield executor.submit


def reach(emulator: Emulator, point: str, webhook: str) -> str | None:
    """Do what leads to the point, in a connection of its own; the id of the request reached."""
    with httpx.Client(base_url=emulator.url, headers=emulator.client.headers, timeout=30) as client:
        body = {"prompt": f"on to {point}", "video_url": emulator.sample_url}
        query = {"fal_webhook": webhook}
        if point.startswith(("submit", "webhook")):
            return str(client.post(ENDPOINT, json=body, params=query).json()["request_id"])
        if point == "jwks_received":
            assert client.get("/.well-known/jwks.json").status_code == 200
            return None
        if point == "listing_received":
            client.get(f"/v1/models/requests/by-endpoint?endpoint_id={ENDPOINT[1:]}")
            return None
        if point.startswith("upload"):
            url = initiate(emulator, is_multipart=True)["upload_url"]
            told = put(name_part(url, 1), b"a").json()
            assert complete(url, [told]).status_code == 200
            return None
        request_id = str(client.post(ENDPOINT, json=body).json()["request_id"])
        wait_until(lambda: emulator.find(request_id)["status"] == "COMPLETED")
        base = f"{SHORT}/requests/{request_id}"
        if point == "status_received":
            assert client.get(f"{base}/status").status_code == 200
        elif point == "stream_received":
            assert client.get(f"{base}/status/stream").status_code == 200
        elif point == "result_received":
            assert client.get(base).status_code == 200
        elif point == "cancel_received":
            assert client.put(f"{base}/cancel").status_code == 400
        else:
            video = emulator.find(request_id)["result"]["video"]
            assert len(client.get(video["url"]).content) == video["file_size"]
        return request_id


@pytest.mark.parametrize("point", POINTS)
def test_armed_point_holds_who_reaches_it_until_released(faulty, receiver, together, point):
    is_anybodys = point.startswith(("jwks", "listing", "upload"))
    match = {} if is_anybodys else {"prompt": f"on to {point}"}
    faulty.arm({"point": point, "times": 1, "match": match})
    reached = together(reach, faulty, point, receiver.url)
    [held] = faulty.wait_for_held()
    assert set(held) == {"id", "point", "request_id"}
    assert held["point"] == point
    assert faulty.release(held).json() == {"released": held["id"]}
    assert reached.result(timeout=20) == held["request_id"]
    assert faulty.client.get("/_emulator/hooks/held").json() == []


def test_submission_held_when_received_is_not_queued_yet(faulty, together):
    faulty.arm({"point": "submit_received", "match": {"prompt": "held here"}})
    reply = together(faulty.submit, {"prompt": "held here"})
    [held] = faulty.wait_for_held()
    ids = [one["request_id"] for one in faulty.list_requests()]
    assert held["request_id"] not in ids
    assert not reply.done()
    faulty.release(held)
    assert reply.result(timeout=20) == held["request_id"]


def test_submission_held_when_queued_runs_meanwhile(faulty, together):
    faulty.arm({"point": "submit_queued", "times": 1})
    reply = together(faulty.submit)
    [held] = faulty.wait_for_held()
    wait_until(lambda: faulty.find(held["request_id"])["status"] == "COMPLETED")
    assert not reply.done()
    faulty.release(held)
    assert reply.result(timeout=20) == held["request_id"]


def test_webhook_held_before_is_not_sent_and_after_is_answered(faulty, receiver):
    match = {"match": {"prompt": "held twice"}}
    faulty.arm({"point": "webhook_sending", **match}, {"point": "webhook_sent", **match})
    request_id = faulty.submit({"prompt": "held twice"}, fal_webhook=receiver.url)
    [held] = faulty.wait_for_held()
    assert (held["point"], faulty.find(request_id)["deliveries"]) == ("webhook_sending", [])
    faulty.release(held)
    [held] = faulty.wait_for_held()
    [delivery] = faulty.find(request_id)["deliveries"]
    assert (held["point"], delivery["status_code"]) == ("webhook_sent", 200)


def test_file_held_halfway_has_come_halfway(faulty):
    request_id = faulty.submit()
    video = faulty.get_result(request_id).json()["video"]
    faulty.arm({"point": "cdn_half"})
    with httpx.stream("GET", video["url"], trust_env=False) as response:
        chunks = response.iter_raw()
        received = b""
        while len(received) < video["file_size"] // 2:
            received += next(chunks)
        [held] = faulty.wait_for_held()
        assert len(received) == video["file_size"] // 2
        faulty.release(held)
        assert len(received + b"".join(chunks)) == video["file_size"]


def test_held_request_goes_on_by_itself_in_the_end(faulty):
    faulty.arm({"point": "submit_queued", "hold_seconds": 0.1})
    began = monotonic()
    faulty.submit()
    assert monotonic() - began >= 0.1
    assert faulty.client.get("/_emulator/hooks/held").json() == []


def test_hook_holds_so_many_times_and_no_more(faulty):
    faulty.arm({"point": "submit_replied", "times": 2})
    for _ in range(3):
        faulty.submit()
    [hook] = faulty.client.get("/_emulator/hooks").json()
    held = faulty.wait_for_held()
    assert hook["times"] == 0
    assert [one["point"] for one in held] == ["submit_replied"] * 2
    assert len({one["id"] for one in held}) == 2


def test_hook_for_one_prompt_spares_the_others(faulty):
    faulty.arm({"point": "submit_replied", "match": {"prompt": "this one"}})
    faulty.submit({"prompt": "that one"})
    request_id = faulty.submit({"prompt": "it is this one"})
    assert [one["request_id"] for one in faulty.wait_for_held()] == [request_id]


def test_clearing_hooks_lets_everybody_go(faulty, together):
    faulty.arm({"point": "submit_received", "hold_seconds": 3600})
    replies = [together(faulty.submit) for _ in range(2)]
    wait_until(lambda: len(faulty.client.get("/_emulator/hooks/held").json()) == 2)
    assert faulty.client.delete("/_emulator/hooks").json() == []
    assert all(reply.result(timeout=20) for reply in replies)


def test_waiting_for_nobody_ends_in_time(faulty):
    began = monotonic()
    assert faulty.client.get("/_emulator/hooks/held?wait=0.1").json() == []
    assert monotonic() - began >= 0.1


def test_releasing_nobody_is_not_found(faulty):
    assert faulty.release({"id": "none"}).status_code == 404


@pytest.mark.parametrize("wait", ["601", "soon"])
def test_waiting_out_of_bounds_is_refused(faulty, wait):
    response = faulty.client.get(f"/_emulator/hooks/held?wait={wait}")
    assert response.status_code == 400
    assert wait in response.json()["detail"]


@pytest.mark.parametrize(
    ("hook", "complaint"),
    [
        ({"point": "door"}, "unknown point: 'door'; known: submit_received, "),
        ({"point": "cdn_half", "seconds": 1}, 'unknown key "seconds" of a hook'),
        ({"point": "cdn_half", "hold_seconds": "1"}, "hold_seconds must be a number"),
        ({"point": "cdn_half", "match": {"x": "y"}}, 'unknown key "x" of match'),
    ],
)
def test_parse_of_wrong_hook_names_place_and_reason(hook, complaint):
    with pytest.raises(WrongSettingError) as caught:
        parse_hooks([{"point": "cdn_sent"}, hook])
    assert str(caught.value).startswith("hooks[1]: ")
    assert complaint in str(caught.value)
