import pytest

from tests.emulator.processes import SHORT


def test_faults_are_replaced_shown_and_cleared(faulty):
    faulty.order({"point": "status", "kind": "stuck"})
    faulty.order({"point": "jwks", "kind": "drop", "rate": 0.5, "times": 3})
    [shown] = faulty.client.get("/_emulator/faults").json()
    expected = {"point": "jwks", "kind": "drop", "rate": 0.5, "times": 3, "match": {}, "fired": 0}
    assert shown == expected
    assert faulty.client.delete("/_emulator/faults").json() == []
    assert faulty.client.get("/_emulator/faults").json() == []


@pytest.mark.parametrize("what", ["faults", "hooks"])
@pytest.mark.parametrize("body", [b"{", b'[{"point": "door"}]'])
def test_wrong_setting_is_refused_and_changes_nothing(faulty, what, body):
    faulty.order({"point": "jwks", "kind": "drop"})
    faulty.arm({"point": "cdn_sent"})
    before = faulty.client.get(f"/_emulator/{what}").json()
    response = faulty.client.put(f"/_emulator/{what}", content=body)
    assert response.status_code == 400
    assert response.json()["detail"]
    assert faulty.client.get(f"/_emulator/{what}").json() == before


def test_wrong_setting_is_named_in_the_refusal(faulty):
    response = faulty.client.put("/_emulator/faults", json=[{"point": "door", "kind": "drop"}])
    assert "faults[0]: unknown point: 'door'" in response.json()["detail"]


@pytest.mark.parametrize("tail", ["", "/erase"])
def test_request_never_made_is_not_found(faulty, tail):
    method = "POST" if tail else "GET"
    response = faulty.client.request(method, f"/_emulator/requests/none{tail}")
    assert (response.status_code, response.json()) == (404, {"detail": "No such request"})


def test_erased_request_is_known_behind_the_scenes_only(faulty):
    request_id = faulty.submit()
    video = faulty.get_result(request_id).json()["video"]
    faulty.client.post(f"/_emulator/requests/{request_id}/erase")
    base = f"{SHORT}/requests/{request_id}"
    answers = [faulty.client.get(base), faulty.client.get(f"{base}/status")]
    answers.append(faulty.cancel(request_id))
    assert [(one.status_code, one.json()) for one in answers] == [
        (404, {"status": "NOT_FOUND"})
    ] * 3
    shown = faulty.client.get(f"/_emulator/requests/{request_id}").json()
    assert (shown["request_id"], shown["erased"]) == (request_id, True)
    assert faulty.client.get(video["url"]).status_code == 200


def test_ledger_groups_by_exact_input(faulty):
    fields = {"prompt": "twice the same", "seed": 7}
    again = {"seed": 7, "prompt": "twice the same"}
    same = [faulty.submit(fields), faulty.submit(again)]
    other = faulty.submit({**fields, "seed": 8})
    for request_id in (*same, other):
        faulty.wait_for_status(request_id, "COMPLETED")
    groups = faulty.client.get("/_emulator/ledger").json()["by_input"]
    assert [one for one in groups if one["prompt"] == "twice the same"] == [
        {"prompt": "twice the same", "submissions": 2, "charges": 2, "request_ids": same},
        {"prompt": "twice the same", "submissions": 1, "charges": 1, "request_ids": [other]},
    ]


def test_ledger_tells_the_most_that_ran_and_the_most_that_were_there(busy):
    for _ in range(2):
        busy.submit()
    ledger = busy.client.get("/_emulator/ledger").json()
    assert ledger["most_running"] == 1
    assert ledger["most_at_once"] >= 3


def test_ledger_tells_that_a_run_cancelled_too_late_was_charged(unhurried):
    request_id = unhurried.submit()
    unhurried.wait_for_status(request_id, "IN_PROGRESS")
    unhurried.cancel(request_id)
    ledger = unhurried.client.get("/_emulator/ledger").json()
    assert ledger["cancelled"][-1] == {"request_id": request_id, "charged": True}
