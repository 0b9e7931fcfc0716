"""Asking the emulator about requests over HTTP: status, result, cancellation and listing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

import worker.fal.http
import worker.fal.platform
import worker.fal.requests
from tests.emulator.processes import Emulator
from tests.harness.brokers import find_closed_port, open_black_hole
from tests.harness.jobs import ENDPOINT
from worker.fal.completion import Completion
from worker.fal.options import RequestOptions
from worker.fal.platform import PlatformClient
from worker.fal.requests import (
    CancelAnswer,
    Forgotten,
    Pending,
    RequestClient,
    ResultGone,
    Truth,
    Unclear,
)
from worker.fal.submit import Accepted, Ambiguous, QueueClient, RefusalClass, Refused, SubmitReply

KEY = SecretStr("emulator-key")
NOBODY = "7f3c1d0e-0000-4000-8000-00000000ffff"
RESULT_TIME = timedelta(hours=1)


@dataclass(frozen=True)
class Ref:
    """A request as its attempt knows it."""

    endpoint: str = ENDPOINT
    status_url: str | None = None
    response_url: str | None = None
    cancel_url: str | None = None


@pytest.fixture
def ask(emulator) -> Iterator[RequestClient]:
    client = RequestClient(emulator.url, KEY)
    yield client
    client.close()


@pytest.fixture
def platform(emulator) -> Iterator[PlatformClient]:
    client = PlatformClient(f"{emulator.url}/v1", KEY)
    yield client
    client.close()


@pytest.fixture
def post(emulator) -> Iterator[Callable[..., SubmitReply]]:
    """Submits as the worker does."""
    client = QueueClient(emulator.url, KEY)

    def submit(prompt: str = "on it goes", *, store_io: bool = True, **fields: int) -> SubmitReply:
        url = f"{emulator.url}/files/ready.mp4"
        return client.submit(
            ENDPOINT,
            {"prompt": prompt, "video_url": url, **fields},
            webhook_url=f"http://127.0.0.1:{find_closed_port()}/webhooks/fal/x",
            options=RequestOptions(start_timeout=timedelta(minutes=1), store_io=store_io),
        )

    yield submit
    client.close()


def submit(post: Callable[..., SubmitReply], **options: object) -> Accepted:
    reply = post(**options)
    assert isinstance(reply, Accepted)
    return reply


def refer(accepted: Accepted) -> Ref:
    return Ref(ENDPOINT, accepted.status_url, accepted.response_url, accepted.cancel_url)


def finish(emulator: Emulator, accepted: Accepted) -> str:
    emulator.wait_for_status(accepted.fal_request_id, "COMPLETED")
    return accepted.fal_request_id


# ------------------------------------------------------------------ status and result


def test_truth_of_finished_request_is_its_result(emulator, ask, post) -> None:
    accepted = submit(post)
    request_id = finish(emulator, accepted)
    result = emulator.get_result(request_id).json()
    expected = Completion(request_id, None, "OK", result, None)
    assert ask.find_truth(refer(accepted), request_id) == expected
    assert ask.find_truth(Ref(), request_id) == expected, "also without the URLs it came with"


def test_truth_of_failed_request_is_models_own_words(emulator, ask, post) -> None:
    accepted = submit(post, fps=0)
    truth = ask.find_truth(refer(accepted), finish(emulator, accepted))
    assert isinstance(truth, Completion)
    assert truth.status == "ERROR"
    assert isinstance(truth.payload, dict)
    assert isinstance(truth.payload["detail"], list)


@pytest.mark.parametrize("place", ["running", "waiting"])
def test_truth_of_unfinished_request_is_pending(busy_emulator, place) -> None:
    running = busy_emulator.list_requests()[0]["request_id"]
    request_id = running if place == "running" else busy_emulator.submit()
    status = {"running": "IN_PROGRESS", "waiting": "IN_QUEUE"}[place]
    client = RequestClient(busy_emulator.url, KEY)
    assert client.find_truth(Ref(), request_id) == Pending(status)
    client.close()


def test_truth_of_unknown_request_is_forgotten(ask) -> None:
    assert ask.find_truth(Ref(), NOBODY) == Forgotten()


def test_truth_of_erased_request_is_forgotten(emulator, ask, post) -> None:
    accepted = submit(post)
    request_id = finish(emulator, accepted)
    emulator.client.post(f"/_emulator/requests/{request_id}/erase")
    assert ask.find_truth(refer(accepted), request_id) == Forgotten()


def test_truth_of_result_gone_before_it_was_read_says_so(emulator, ask, post) -> None:
    accepted = submit(post)
    request_id = finish(emulator, accepted)
    emulator.order({"point": "result", "kind": "status", "code": 404})
    assert ask.find_truth(refer(accepted), request_id) == ResultGone()


@pytest.mark.parametrize("point", ["status", "result"])
@pytest.mark.parametrize("fault", [{"kind": "status", "code": 500}, {"kind": "drop"}])
def test_truth_behind_fault_is_unclear_and_learnt_later(emulator, ask, post, point, fault) -> None:
    accepted = submit(post)
    request_id = finish(emulator, accepted)
    emulator.order({"point": point, "times": 1, **fault})
    assert isinstance(ask.find_truth(refer(accepted), request_id), Unclear)
    assert isinstance(ask.find_truth(refer(accepted), request_id), Completion)


@pytest.mark.parametrize("point", ["status", "result"])
def test_truth_of_silent_fal_is_unclear_within_the_bound(
    emulator, ask, post, monkeypatch, point
) -> None:
    accepted = submit(post)
    request_id = finish(emulator, accepted)
    emulator.order({"point": point, "kind": "hang", "seconds": 60})
    monkeypatch.setattr(worker.fal.http, "TOTAL_TIMEOUT", timedelta(seconds=0.3))
    monkeypatch.setattr(worker.fal.requests, "RESULT_TIME", timedelta(seconds=0.3))
    truth = ask.find_truth(refer(accepted), request_id)
    assert truth == Unclear("no reply within 0.3 s")


@pytest.mark.parametrize("place", ["closed", "silent"])
def test_truth_without_fal_is_unclear(monkeypatch, place) -> None:
    monkeypatch.setattr(worker.fal.http, "TOTAL_TIMEOUT", timedelta(seconds=0.3))
    with open_black_hole() as hole:
        port = hole.port if place == "silent" else find_closed_port()
        client = RequestClient(f"http://127.0.0.1:{port}", KEY)
        truths: list[Truth] = [client.find_truth(Ref(), NOBODY)]
        assert client.cancel(Ref(), NOBODY) is CancelAnswer.UNCLEAR
        client.close()
    assert isinstance(truths[0], Unclear)


# ------------------------------------------------------------------ cancellation


def test_cancel_of_waiting_request_ends_it_as_cancelled(busy_emulator) -> None:
    request_id = busy_emulator.submit()
    client = RequestClient(busy_emulator.url, KEY)
    assert client.cancel(Ref(), request_id) is CancelAnswer.REQUESTED
    truth = client.find_truth(Ref(), request_id)
    client.close()
    assert isinstance(truth, Completion)
    assert truth.status == "ERROR"
    assert isinstance(truth.payload, dict)
    assert truth.payload["error_type"] == "client_cancelled"


def test_cancel_of_finished_request_comes_too_late(emulator, ask, post) -> None:
    accepted = submit(post)
    request_id = finish(emulator, accepted)
    assert ask.cancel(refer(accepted), request_id) is CancelAnswer.ALREADY_COMPLETED


def test_cancel_of_unknown_request_says_so(ask) -> None:
    assert ask.cancel(Ref(), NOBODY) is CancelAnswer.NOT_FOUND


def test_cancel_behind_fault_is_unclear(emulator, ask, post) -> None:
    accepted = submit(post)
    request_id = finish(emulator, accepted)
    emulator.order({"point": "cancel", "times": 1, "kind": "drop"})
    assert ask.cancel(refer(accepted), request_id) is CancelAnswer.UNCLEAR
    assert ask.cancel(refer(accepted), request_id) is CancelAnswer.ALREADY_COMPLETED


# ------------------------------------------------------------------ submission


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"kind": "status", "code": 403}, RefusalClass.ACCOUNT),
        ({"kind": "status", "code": 429, "retry_after": 7}, RefusalClass.BUSY),
        ({"kind": "status", "code": 422}, RefusalClass.INPUT),
        ({"kind": "ingress", "code": 503}, RefusalClass.UNAVAILABLE),
    ],
)
def test_submission_refused_is_queued_nowhere(emulator, post, fault, why) -> None:
    before = len(emulator.list_requests())
    emulator.order({"point": "submit", **fault})
    reply = post()
    assert isinstance(reply, Refused)
    assert (reply.why, reply.retry_after) == (why, timedelta(seconds=fault.get("retry_after", 0)))
    assert len(emulator.list_requests()) == before


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "execute_then_drop"},
        {"kind": "execute_then_status", "code": 500},
        {"kind": "malformed", "form": "no_request_id"},
        {"kind": "drop"},
    ],
)
def test_submission_of_unclear_outcome_is_ambiguous_after_one_post(emulator, post, fault) -> None:
    emulator.order({"point": "submit", **fault})
    before = len(emulator.list_requests())
    assert isinstance(post(), Ambiguous)
    assert emulator.count_fired() == [1]
    is_queued = fault["kind"].startswith(("execute", "malformed"))
    assert len(emulator.list_requests()) == before + is_queued


# ------------------------------------------------------------------ listing


def test_listing_shows_input_and_output_of_every_request_in_the_window(
    emulator, platform, post
) -> None:
    start = datetime.now(UTC)
    accepted = submit(post, seed=11)
    request_id = finish(emulator, accepted)
    end = datetime.now(UTC) + timedelta(seconds=1)
    listing = platform.list_requests(ENDPOINT, start, end)
    assert (listing.gap, listing.lists_all) == (None, True)
    (one,) = listing.requests
    assert (one.fal_request_id, one.ended, one.status_code) == (request_id, True, 200)
    assert one.input == emulator.find(request_id)["input"]
    result = emulator.get_result(request_id).json()
    assert one.completion == Completion(request_id, None, "OK", result, None)
    assert platform.list_requests(ENDPOINT, end, end + RESULT_TIME).requests == ()
    assert platform.list_requests("fal-ai/other", start, end).requests == ()


def test_listing_of_more_than_a_page_has_each_request_once(
    emulator, platform, post, monkeypatch
) -> None:
    monkeypatch.setattr(worker.fal.platform, "PAGE", 2)
    start = datetime.now(UTC)
    ids = {submit(post, seed=number).fal_request_id for number in range(5)}
    for request_id in ids:
        emulator.wait_for_status(request_id, "COMPLETED")
    listing = platform.list_requests(ENDPOINT, start, datetime.now(UTC) + RESULT_TIME)
    listed = [one.fal_request_id for one in listing.requests]
    assert listing.gap is None
    assert sorted(listed) == sorted(ids)


def test_listing_that_omits_payloads_has_gap_but_every_id(emulator, platform, post) -> None:
    start = datetime.now(UTC)
    accepted = submit(post)
    finish(emulator, accepted)
    emulator.order({"point": "listing", "kind": "omit_payloads"})
    listing = platform.list_requests(ENDPOINT, start, datetime.now(UTC) + RESULT_TIME)
    assert (listing.gap, listing.lists_all) == ("shows no input for 1 of 1 requests", True)
    assert [one.completion for one in listing.requests] == [None]


def test_listing_of_request_whose_input_fal_does_not_keep_has_gap(emulator, platform, post) -> None:
    start = datetime.now(UTC)
    submit(post, store_io=False)
    listing = platform.list_requests(ENDPOINT, start, datetime.now(UTC) + RESULT_TIME)
    assert listing.gap == "shows no input for 1 of 1 requests"


def test_listing_that_omits_running_requests_looks_whole(busy_emulator) -> None:
    """So absence of a request that may still run proves nothing."""
    client = PlatformClient(f"{busy_emulator.url}/v1", KEY)
    start, end = datetime.now(UTC) - RESULT_TIME, datetime.now(UTC) + RESULT_TIME
    running = busy_emulator.list_requests()[0]["request_id"]
    assert client.find_request(ENDPOINT, running).requests
    busy_emulator.order({"point": "listing", "kind": "omit_running"})
    assert client.find_request(ENDPOINT, running).requests == ()
    assert client.list_requests("fal-ai/other", start, end).gap is None
    client.close()


@pytest.mark.parametrize("fault", [{"kind": "drop"}, {"kind": "malformed", "form": "truncated"}])
def test_listing_behind_fault_has_gap(emulator, platform, fault) -> None:
    emulator.order({"point": "listing", **fault})
    listing = platform.list_requests(ENDPOINT, datetime.now(UTC) - RESULT_TIME, datetime.now(UTC))
    assert str(listing.gap).startswith("cannot be read: ")
    assert (listing.requests, listing.lists_all) == ((), False)
    assert not platform.find_request(ENDPOINT, NOBODY).lists_all


def test_listing_with_wrong_key_has_gap(emulator) -> None:
    client = PlatformClient(f"{emulator.url}/v1", SecretStr("another-key"))
    listing = client.list_requests(ENDPOINT, datetime.now(UTC) - RESULT_TIME, datetime.now(UTC))
    client.close()
    assert listing.gap is not None
    assert listing.gap.startswith("cannot be read: HTTP 401, authorization_error: ")
