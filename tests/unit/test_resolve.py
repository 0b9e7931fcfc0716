"""What the listing proves of unknown submissions, and what follows: all of it pure."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from itertools import count
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.jobs import ENDPOINT, LEASE, NOW
from worker.fal.platform import ListedRequest, is_same_input
from worker.ground.settings import UnknownPolicy
from worker.jobs.states import BlockedBy, JobEvent, JobState
from worker.jobs.values import Attempt, Job, Outcome, RequestClaim
from worker.stages.resolve import (
    Matches,
    ResolvePolicy,
    Waiting,
    describe_absence,
    judge_absence,
    match_requests,
    measure_wait,
    sign_whole,
    split_windows,
)

UNKNOWN = timedelta(minutes=90)
TERMS = ResolvePolicy(UNKNOWN, UnknownPolicy.RESUBMIT, 3, LEASE)
OLD = NOW - UNKNOWN - timedelta(seconds=1)
INPUT: dict[str, Any] = {
    "prompt": "on",
    "seed": 7,
    "fps": 25.0,
    "end_image_url": None,
    "loras": [{"scale": 1.0}],
}
numbers = count(1)


def build_attempt(**changes: Any) -> Attempt:
    number = next(numbers)
    values: dict[str, Any] = dict.fromkeys(Attempt.__dataclass_fields__)
    values |= {
        "id": UUID(int=number),
        "job_id": UUID(int=number),
        "number": 1,
        "fence": 1,
        "endpoint": ENDPOINT,
        "input": INPUT,
        "started_at": NOW,
        "options": {},
        "outcome": Outcome.UNKNOWN,
    }
    return Attempt(**(values | changes))


def build_job(**changes: Any) -> Job:
    values: dict[str, Any] = dict.fromkeys(Job.__dataclass_fields__)
    values |= {"id": UUID(int=1), "state": JobState.SUBMISSION_UNKNOWN, "enqueued_at": OLD}
    return Job(**(values | changes))


def list_request(request_id: str, sent: object = INPUT, *, ended: bool = True) -> ListedRequest:
    return ListedRequest(request_id, ended, 200 if ended else None, sent, None)  # type: ignore[arg-type]


def wait_for(attempt: Attempt) -> Waiting:
    """Watched since its start, by a clock that was right."""
    return Waiting(attempt, NOW, NOW - attempt.started_at, UNKNOWN)


def match(requests: Iterable[ListedRequest], *attempts: Attempt) -> dict[UUID, str]:
    return dict(match_all(requests, *attempts).paired)


def match_all(
    requests: Iterable[ListedRequest], *attempts: Attempt, claims: Iterable[RequestClaim] = ()
) -> Matches:
    """`claims` are of the first requests, in turn."""
    listed = list(requests)
    ids = [one.fal_request_id for one in listed]
    known = dict(zip(ids, claims, strict=False))
    waiting = [wait_for(one) for one in attempts]
    open_inputs = Counter(sign_whole(one) for one in waiting if one.is_open)
    return match_requests(listed, known, waiting, open_inputs, NOW)


# ------------------------------------------------------------------ the same input


def test_input_as_it_was_sent_is_the_same_also_with_fields_that_fal_added():
    assert is_same_input(dict(INPUT), INPUT)
    assert is_same_input({**INPUT, "sync_mode": False}, INPUT)


def test_input_that_differs_or_lacks_a_field_or_is_hidden_is_another():
    for name in INPUT:
        assert not is_same_input({**INPUT, name: "other"}, INPUT)
    for name in INPUT.keys() - {"end_image_url"}:
        assert not is_same_input({key: INPUT[key] for key in INPUT if key != name}, INPUT)
    hidden: list[Any] = [None, [], "text", {}]
    for listed in hidden:
        assert not is_same_input(listed, INPUT)


# ------------------------------------------------------------------ matching


def test_request_with_the_exact_input_is_matched():
    attempt = build_attempt()
    others = [list_request("b", {**INPUT, "seed": 8}), list_request("c", None)]
    assert match([*others, list_request("a")], attempt) == {attempt.id: "a"}


def test_running_request_is_matched_as_well():
    attempt = build_attempt()
    assert match([list_request("a", ended=False)], attempt) == {attempt.id: "a"}


@pytest.mark.parametrize("outcome", [None, Outcome.UNKNOWN])
def test_rivals_of_the_same_input_are_not_told_apart_while_either_may_answer(outcome):
    first, second = build_attempt(), build_attempt(outcome=outcome)
    requests = [list_request("a"), list_request("b")]
    assert match(requests, first, second) == {}
    assert match(requests[:1], first, second) == {}


def test_rivals_of_the_same_input_are_paired_once_neither_can_answer():
    first, second = build_attempt(started_at=OLD), build_attempt(started_at=OLD)
    paired = match([list_request("a"), list_request("b")], first, second)
    assert sorted(paired.values()) == ["a", "b"]


def test_one_request_is_never_given_to_two_attempts():
    first, second = build_attempt(started_at=OLD), build_attempt(started_at=OLD)
    assert list(match([list_request("a")], first, second).values()) == ["a"]


def test_the_earlier_of_two_old_rivals_is_served_first():
    later = build_attempt(started_at=OLD)
    earlier = build_attempt(started_at=OLD - LEASE)
    assert match([list_request("a")], later, earlier) == {earlier.id: "a"}


def test_rival_with_another_input_but_the_same_seed_and_prompt_takes_no_request():
    other = build_attempt(input={**INPUT, "fps": 30.0}, started_at=OLD)
    attempt = build_attempt(started_at=OLD)
    assert match([list_request("a")], other, attempt) == {attempt.id: "a"}


inputs = st.fixed_dictionaries(
    {"seed": st.integers(0, 2), "prompt": st.sampled_from("ab"), "fps": st.integers(1, 2)}
)
attempts = st.builds(
    lambda sent, outcome, age: build_attempt(
        input=sent, outcome=outcome, started_at=NOW - timedelta(minutes=age)
    ),
    inputs,
    st.sampled_from([None, Outcome.UNKNOWN]),
    st.integers(0, 180),
)
listed = st.lists(st.none() | st.just("text") | inputs, max_size=8).map(
    lambda found: [list_request(f"r{number}", sent) for number, sent in enumerate(found)]
)


@given(listed, st.lists(attempts, max_size=6))
def test_matching_is_exact_and_one_to_one(found, unsettled):
    paired = match(found, *unsettled)
    by_id = {one.id: one for one in unsettled}
    shown = {one.fal_request_id: one for one in found}
    assert len(set(paired.values())) == len(paired)
    for attempt_id, request_id in paired.items():
        assert is_same_input(shown[request_id].input, by_id[attempt_id].input)


@given(listed, st.lists(attempts, max_size=6))
def test_nobody_is_absent_while_there_are_as_many_requests_as_attempts(found, unsettled):
    matches = match_all(found, *unsettled)
    for attempt in unsettled:
        group = [one for one in unsettled if one.input == attempt.input]
        same = [one for one in found if is_same_input(one.input, attempt.input)]
        if len(same) >= len(group):
            assert attempt.id in matches.paired or attempt.id in matches.ambiguous


def test_old_twin_of_a_young_attempt_is_ambiguous_and_not_absent():
    """Seen: the young one was paired with the old one's request, and the old one bought again."""
    old, young = build_attempt(started_at=OLD), build_attempt()
    matches = match_all([list_request("a"), list_request("b")], old, young)
    assert matches == Matches({}, frozenset({old.id, young.id}))


def test_twin_in_another_window_that_may_still_answer_keeps_an_old_one_from_its_request():
    old, young = build_attempt(started_at=OLD), build_attempt()
    open_inputs = Counter([sign_whole(wait_for(young))])
    matches = match_requests([list_request("a")], {}, [wait_for(old)], open_inputs, NOW)
    assert matches == Matches({}, frozenset({old.id}))


@pytest.mark.parametrize(
    ("claim", "is_ambiguous"),
    [
        (RequestClaim(UUID(int=1), NOW - LEASE, is_verified=False), True),
        (RequestClaim(UUID(int=1), NOW - LEASE, is_verified=True), False),
        (RequestClaim(UUID(int=1), OLD, is_verified=False), False),
    ],
    ids=["given-by-its-input-lately", "proven-by-reply-or-webhook", "given-long-ago"],
)
def test_request_that_another_attempt_got_by_its_input_may_be_this_ones(claim, is_ambiguous):
    attempt = build_attempt(started_at=OLD)
    matches = match_all([list_request("a")], attempt, claims=[claim])
    assert matches.paired == {}
    assert (attempt.id in matches.ambiguous) is is_ambiguous


# ------------------------------------------------------------------ time


def test_wait_is_what_was_observed_since_the_start_whatever_the_clocks_say():
    attempt = build_attempt(observed_start=100.0, started_at=NOW - timedelta(days=1))
    assert measure_wait(attempt, timedelta(seconds=160)) == timedelta(minutes=1)
    assert measure_wait(attempt, timedelta(seconds=90)) == timedelta()
    assert measure_wait(replace(attempt, observed_start=None), UNKNOWN) == timedelta()


@pytest.mark.parametrize(
    ("own", "seconds"), [(None, 5400), (60, 5400), (7200, 9000), (604_800, 606_600)]
)
def test_verdict_waits_for_the_attempts_own_start_timeout_and_a_run(own, seconds):
    attempt = build_attempt(options={} if own is None else {"start_timeout": own})
    assert TERMS.judge_after(attempt) == timedelta(seconds=seconds)


def test_verdict_waits_for_a_start_timeout_beyond_unknown_seconds():
    """Seen: 7 charges for 3 jobs at UNKNOWN_SECONDS=12 and a job's own start_timeout of 60."""
    policy = replace(TERMS, unknown_after=timedelta(seconds=12))
    assert policy.judge_after(build_attempt(options={"start_timeout": 60})).total_seconds() == 64


def test_each_window_holds_the_whole_life_of_its_requests_and_no_more():
    near = [build_attempt(started_at=NOW - timedelta(minutes=age)) for age in (30, 10)]
    far = build_attempt(started_at=NOW - timedelta(days=3))
    windows = list(split_windows([wait_for(one) for one in (*near, far)], NOW))
    assert [[one.attempt for one in window.waiting] for window in windows] == [[far], near]
    assert windows[0].start == far.started_at - timedelta(minutes=5)
    assert windows[0].end == far.started_at + UNKNOWN + timedelta(minutes=5)
    assert windows[1].end == NOW + timedelta(minutes=5)


def test_window_of_an_attempt_that_began_by_a_wrong_clock_is_where_it_was_observed():
    waiting = Waiting(build_attempt(started_at=NOW + timedelta(hours=2)), NOW, UNKNOWN, UNKNOWN)
    (window,) = split_windows([waiting], NOW)
    assert window.start == NOW - UNKNOWN - timedelta(minutes=5)


# ------------------------------------------------------------------ evidence

GAP = "fal's listing cannot be read: HTTP 401"


@pytest.mark.parametrize(
    ("waited", "is_due"), [(UNKNOWN - timedelta(seconds=1), False), (UNKNOWN, True)]
)
def test_nothing_is_decided_before_its_time(waited, is_due):
    assert Waiting(build_attempt(), NOW, waited, UNKNOWN).is_due is is_due


def test_evidence_says_how_long_and_what_the_listing_was_worth():
    assert describe_absence(UNKNOWN, ()) == (
        "no webhook within 5400 s, and fal's listing has no request with its input"
    )
    assert GAP in describe_absence(UNKNOWN, (GAP,))


# ------------------------------------------------------------------ what follows

ABSENT = describe_absence(UNKNOWN, ())
HOLD = replace(TERMS, policy=UnknownPolicy.HOLD)


def test_proven_death_is_submitted_again():
    event, move = judge_absence(build_job(), ABSENT, (), 1, TERMS, NOW)
    assert (event, move.detail) == (JobEvent.DEATH_PROVEN, ABSENT)
    assert move.due_at == NOW + LEASE


def test_proven_death_is_held_where_a_human_decides():
    event, move = judge_absence(build_job(), ABSENT, (), 1, HOLD, NOW)
    assert event is JobEvent.SUBMISSION_HELD
    assert move.columns["blocked_by"] == BlockedBy.HOLD


@pytest.mark.parametrize("spent", [1, 3])
@pytest.mark.parametrize("policy", [TERMS, HOLD], ids=["resubmit", "hold"])
@pytest.mark.parametrize("waited", [UNKNOWN, 100 * UNKNOWN])
def test_job_is_held_without_proof_whatever_the_policy_and_however_long(policy, spent, waited):
    """Seen: 9 charges for 3 jobs while the listing answered 401."""
    detail = describe_absence(waited, (GAP,))
    event, move = judge_absence(build_job(), detail, (GAP,), spent, policy, NOW)
    assert event is JobEvent.SUBMISSION_HELD
    reason = move.columns["blocked_reason"]
    assert GAP in reason
    assert "redrive ID --pay-again" in reason


@pytest.mark.parametrize("spent", [2, 3])
@pytest.mark.parametrize("policy", [TERMS, HOLD], ids=["resubmit", "hold"])
def test_bound_on_lost_submissions_ends_the_job(policy, spent):
    event, move = judge_absence(build_job(), ABSENT, (), spent, policy, NOW)
    assert (event is JobEvent.SUBMISSION_EXHAUSTED) == (spent >= policy.max_attempts)
    if event is JobEvent.SUBMISSION_EXHAUSTED:
        assert move.due_at is None
        assert move.columns["error_code"] == "submission_exhausted"
        assert ABSENT in move.columns["error_message"]


@pytest.mark.parametrize("spent", [1, 3])
@pytest.mark.parametrize("policy", [TERMS, HOLD], ids=["resubmit", "hold"])
def test_wish_to_cancel_is_granted_once_death_is_proven(policy, spent):
    job = build_job(cancel_requested_at=OLD)
    event, move = judge_absence(job, ABSENT, (), spent, policy, NOW)
    assert (event, move.due_at, move.detail) == (
        JobEvent.JOB_CANCELLED,
        None,
        ABSENT,
    )
