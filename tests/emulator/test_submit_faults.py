from datetime import UTC, datetime
from time import monotonic
from typing import Any

import httpx
import pytest

from tests.emulator.processes import ENDPOINT, SHORT, Emulator, wait_until


def find_by_prompt(emulator: Emulator, prompt: str) -> list[dict[str, Any]]:
    return [one for one in emulator.list_requests() if one["input"]["prompt"] == prompt]


def list_posts(emulator: Emulator, prompt: str) -> list[dict[str, Any]]:
    posts = emulator.client.get("/_emulator/ledger").json()["posts"]
    return [one for one in posts if prompt in (one["prompt"] or "")]


@pytest.fixture
def prompt(request) -> str:
    """A prompt no other test uses, by which to find what was queued."""
    return f"prompt of {request.node.name}"


@pytest.mark.parametrize(
    ("options", "body"),
    [
        ({"code": 401}, {"detail": "Cannot access application without a key"}),
        ({"code": 400}, {"detail": "Bad request", "error_type": "bad_request"}),
        ({"code": 500}, {"detail": "Internal server error", "error_type": "internal_error"}),
        (
            {"code": 429, "detail": "Slow", "error_type": "concurrent_requests_limit"},
            {"detail": "Slow", "error_type": "concurrent_requests_limit"},
        ),
    ],
)
def test_submit_with_status_fault_is_refused_in_fals_shape(faulty, prompt, options, body):
    faulty.order({"point": "submit", "kind": "status", **options})
    response = faulty.post({"prompt": prompt})
    assert (response.status_code, response.json()) == (options["code"], body)
    assert response.headers["x-fal-request-id"]
    assert response.headers.get("x-fal-error-type") == body.get("error_type")
    assert "retry-after" not in response.headers
    assert find_by_prompt(faulty, prompt) == []


def test_submit_with_unprocessable_fault_has_a_detail_list(faulty):
    faulty.order({"point": "submit", "kind": "status", "code": 422})
    [item] = faulty.post().json()["detail"]
    assert (item["loc"], item["type"]) == (["body"], "value_error")


def test_submit_with_status_fault_carries_ordered_headers(faulty):
    headers = {"X-Fal-Request-Id": None, "X-Fal-Needs-Retry": "1"}
    fault = {"point": "submit", "kind": "status", "code": 429, "retry_after": 1.5}
    faulty.order({**fault, "headers": headers})
    answered = faulty.post().headers
    assert (answered["retry-after"], answered["x-fal-needs-retry"]) == ("1.5", "1")
    assert "x-fal-request-id" not in answered


def test_every_submission_of_an_account_at_its_rate_is_refused_and_counted(faulty, prompt):
    faulty.order({"point": "submit", "kind": "status", "code": 429, "retry_after": 2})
    refused = [faulty.post({"prompt": f"{prompt} {number}"}) for number in range(3)]
    assert [one.status_code for one in refused] == [429] * 3
    assert {one.headers["retry-after"] for one in refused} == {"2"}
    posts = list_posts(faulty, prompt)
    assert [(one["status_code"], one["accepted"]) for one in posts] == [(429, False)] * 3


def test_queue_length_is_exceeded_by_others_only_for_whom_it_matters(faulty, prompt):
    faulty.order({"point": "submit", "kind": "crowded", "waiting": 5})
    codes = [
        faulty.post({"prompt": prompt}, query=query).status_code
        for query in ({"fal_max_queue_length": "4"}, {"fal_max_queue_length": "5"}, {})
    ]
    assert codes == [429, 200, 200]
    assert len(find_by_prompt(faulty, prompt)) == 2


def test_slow_request_waits_beyond_its_start_timeout_and_costs_nothing(faulty, prompt):
    faulty.order({"point": "submit", "kind": "slow", "queue_seconds": 3600})
    headers = {"X-Fal-Request-Start-Timeout": "0.2"}
    request_id = faulty.post({"prompt": prompt}, headers=headers).json()["request_id"]
    faulty.wait_for_status(request_id, "COMPLETED")
    found = faulty.find(request_id)
    assert (found["error_type"], found["charged"]) == ("request_timeout", False)


def test_slow_request_runs_as_long_as_ordered(faulty, prompt):
    faulty.order({"point": "submit", "kind": "slow", "run_seconds": 0.3})
    request_id = faulty.submit({"prompt": prompt})
    faulty.wait_for_status(request_id, "COMPLETED")
    assert faulty.get_status(request_id)["metrics"]["inference_time"] >= 0.3


def test_post_whose_connection_is_closed_is_in_the_ledger_without_a_code(faulty, prompt):
    faulty.order({"point": "submit", "kind": "execute_then_drop"})
    said = f"{prompt} tenant=big"
    with pytest.raises(httpx.RemoteProtocolError):
        faulty.post({"prompt": said})
    [request] = find_by_prompt(faulty, said)
    [post] = list_posts(faulty, prompt)
    assert (post["accepted"], post["status_code"]) == (True, None)
    assert (post["tenant"], post["request_id"]) == ("big", request["request_id"])


def test_submit_with_ingress_fault_shows_nothing_of_fal(faulty, prompt):
    faulty.order({"point": "submit", "kind": "ingress", "code": 504})
    response = faulty.post({"prompt": prompt})
    assert response.status_code == 504
    assert response.headers["content-type"].startswith("text/html")
    assert "<center>nginx</center>" in response.text
    assert not [name for name in response.headers if name.startswith("x-fal")]
    assert find_by_prompt(faulty, prompt) == []


@pytest.mark.parametrize(
    ("fault", "submissions", "seconds"),
    [
        ({"kind": "drop"}, 0, 0),
        ({"kind": "hang", "seconds": 0.1}, 0, 0.1),
        ({"kind": "execute_then_drop"}, 1, 0),
        ({"kind": "execute_then_hang", "seconds": 0.1}, 1, 0.1),
    ],
)
def test_submit_that_breaks_off_queues_if_it_says_so(faulty, prompt, fault, submissions, seconds):
    faulty.order({"point": "submit", **fault})
    began = monotonic()
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        faulty.post({"prompt": prompt})
    assert monotonic() - began >= seconds
    found = find_by_prompt(faulty, prompt)
    assert len(found) == submissions
    for one in found:
        faulty.wait_for_status(one["request_id"], "COMPLETED")
    assert [one["charged"] for one in find_by_prompt(faulty, prompt)] == [True] * submissions


@pytest.mark.parametrize(
    ("fault", "code", "is_fals"),
    [
        ({"kind": "execute_then_status"}, 500, True),
        ({"kind": "execute_then_ingress", "code": 502}, 502, False),
    ],
)
def test_submit_executed_then_refused_runs_all_the_same(faulty, prompt, fault, code, is_fals):
    faulty.order({"point": "submit", **fault})
    response = faulty.post({"prompt": prompt})
    assert response.status_code == code
    assert ("x-fal-request-id" in response.headers) is is_fals
    [found] = find_by_prompt(faulty, prompt)
    assert faulty.get_result(found["request_id"]).status_code == 200


def test_submit_with_late_reply_is_queued_at_once(faulty, prompt):
    faulty.order({"point": "submit", "kind": "late", "seconds": 0.2})
    response = faulty.post({"prompt": prompt})
    replied_at = datetime.now(UTC)
    [found] = find_by_prompt(faulty, prompt)
    assert response.json()["request_id"] == found["request_id"]
    assert response.json()["status"] == "IN_QUEUE"
    queued_at = datetime.fromisoformat(found["submitted_at"])
    assert (replied_at - queued_at).total_seconds() >= 0.2


@pytest.mark.parametrize("form", ["truncated", "no_request_id"])
def test_submit_with_useless_reply_is_queued(faulty, prompt, form):
    faulty.order({"point": "submit", "kind": "malformed", "form": form})
    response = faulty.post({"prompt": prompt})
    assert response.status_code == 200
    assert len(find_by_prompt(faulty, prompt)) == 1
    if form == "truncated":
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            response.json()
    else:
        assert "request_id" not in response.json()
        assert "status_url" in response.json()


def test_submit_with_foreign_urls_names_another_host(faulty):
    faulty.order({"point": "submit", "kind": "foreign_urls", "base": "http://elsewhere:1/"})
    body = faulty.post().json()
    base = f"http://elsewhere:1{SHORT}/requests/{body['request_id']}"
    urls = [body[name] for name in ("response_url", "status_url", "cancel_url")]
    assert urls == [base, f"{base}/status", f"{base}/cancel"]


def test_submit_of_another_prompt_or_after_its_times_is_spared(faulty, prompt):
    fault = {"point": "submit", "kind": "status", "times": 2, "match": {"prompt": prompt}}
    faulty.order(fault)
    others = [faulty.post().status_code for _ in range(2)]
    codes = [faulty.post({"prompt": f"{prompt}!"}).status_code for _ in range(4)]
    assert others == [200, 200]
    assert codes == [500, 500, 200, 200]
    assert faulty.count_fired() == [2]


def test_submit_that_is_wrong_itself_is_refused_before_any_fault(faulty):
    faulty.order({"point": "submit", "kind": "status"})
    assert faulty.client.post(ENDPOINT, content=b"{").status_code == 400
    assert faulty.count_fired() == [0]


def test_submit_whose_caller_leaves_is_queued_all_the_same(faulty, prompt):
    faulty.order({"point": "submit", "kind": "late", "seconds": 0.3})
    with httpx.Client(base_url=faulty.url, headers=faulty.client.headers) as hasty:
        body = {"prompt": prompt, "video_url": faulty.sample_url}
        with pytest.raises(httpx.ReadTimeout):
            hasty.post(ENDPOINT, json=body, timeout=0.1)
    wait_until(lambda: [one["status"] for one in find_by_prompt(faulty, prompt)] == ["COMPLETED"])
