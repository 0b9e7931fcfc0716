"""What the listing proves of unknown submissions, and what follows: all of it pure."""

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
from worker.fal.platform import ListedRequest
from worker.fal.same_input import is_same_input
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import HELD, Attempt, Job, Outcome
from worker.setting_types import UnknownPolicy
from worker.stages.resolve import (
    Evidence,
    ResolveTerms,
    judge_death,
    match_requests,
)

UNKNOWN = timedelta(minutes=90)
TERMS = ResolveTerms(UNKNOWN, UnknownPolicy.RESUBMIT, 3, LEASE)
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
        "outcome": Outcome.UNKNOWN,
    }
    return Attempt(**(values | changes))


def build_job(**changes: Any) -> Job:
    values: dict[str, Any] = dict.fromkeys(Job.__dataclass_fields__)
    values |= {"id": UUID(int=1), "state": JobState.SUBMISSION_UNKNOWN, "enqueued_at": OLD}
    return Job(**(values | changes))


def list_request(request_id: str, sent: object = INPUT, *, ended: bool = True) -> ListedRequest:
    return ListedRequest(request_id, ended, 200 if ended else None, sent, None)  # type: ignore[arg-type]


def match(requests: Iterable[ListedRequest], *attempts: Attempt) -> dict[UUID, str]:
    return match_requests(requests, attempts, NOW - UNKNOWN)


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


def test_attempt_whose_post_is_under_way_is_never_matched():
    attempt = build_attempt(outcome=None)
    assert match([list_request("a")], attempt) == {}
    assert match([list_request("a")], replace(attempt, started_at=OLD)) == {}


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
def test_matching_is_exact_one_to_one_and_only_of_settled_attempts(found, unsettled):
    paired = match(found, *unsettled)
    by_id = {one.id: one for one in unsettled}
    shown = {one.fal_request_id: one for one in found}
    assert len(set(paired.values())) == len(paired)
    for attempt_id, request_id in paired.items():
        attempt = by_id[attempt_id]
        assert attempt.outcome is not None
        assert is_same_input(shown[request_id].input, attempt.input)


@given(listed, st.lists(attempts, max_size=6))
def test_young_attempt_is_matched_only_where_no_young_rival_has_its_input(found, unsettled):
    paired = match(found, *unsettled)
    for attempt in (one for one in unsettled if one.id in paired):
        young = [
            one
            for one in unsettled
            if one.input == attempt.input and one.started_at > NOW - UNKNOWN
        ]
        assert len(young) <= 1
        assert not young or attempt in young


@given(listed, st.lists(attempts, max_size=6))
def test_matching_does_not_depend_on_the_order_of_the_rows(found, unsettled):
    def describe(paired: dict[UUID, str]) -> set[UUID]:
        return set(paired)

    # Those that began at the same time may be served in either order.
    once = [one for one in unsettled if [o.started_at for o in unsettled].count(one.started_at) < 2]
    assert describe(match(found, *once)) == describe(match(found, *reversed(once)))


# ------------------------------------------------------------------ evidence

GAP = "it cannot be read: HTTP 401"


def test_absence_is_proof_only_after_its_time_which_doubles_without_a_whole_listing():
    moment = timedelta(seconds=1)
    for waited, gap, proven in [
        (UNKNOWN - moment, None, False),
        (UNKNOWN, None, True),
        (2 * UNKNOWN - moment, GAP, False),
        (2 * UNKNOWN, GAP, True),
        (-UNKNOWN, None, False),
    ]:
        assert Evidence(waited, gap).is_proof(UNKNOWN) is proven


def test_evidence_says_how_long_and_what_the_listing_was_worth():
    assert Evidence(UNKNOWN, None).describe() == (
        "no webhook within 5400 s, and fal's listing has no request with its input"
    )
    assert GAP in Evidence(UNKNOWN, GAP).describe()


# ------------------------------------------------------------------ what follows

EVIDENCE = Evidence(UNKNOWN, None)
HOLD = replace(TERMS, policy=UnknownPolicy.HOLD)


def test_proven_death_is_submitted_again():
    event, move = judge_death(build_job(), EVIDENCE, 1, TERMS, NOW)
    assert (event, move.detail) == (JobEvent.DEATH_PROVEN, EVIDENCE.describe())
    assert move.due_at == NOW + LEASE


def test_proven_death_is_held_where_a_human_decides():
    event, move = judge_death(build_job(), EVIDENCE, 1, HOLD, NOW)
    assert (event, move.due_at) == (JobEvent.SUBMISSION_HELD, NOW + UNKNOWN)
    assert move.columns["blocked_reason"].startswith(HELD)
    assert EVIDENCE.describe() in move.columns["blocked_reason"]


@pytest.mark.parametrize("spent", [2, 3])
@pytest.mark.parametrize("terms", [TERMS, HOLD], ids=["resubmit", "hold"])
def test_bound_on_lost_submissions_ends_the_job(terms, spent):
    event, move = judge_death(build_job(), EVIDENCE, spent, terms, NOW)
    assert (event is JobEvent.SUBMISSION_EXHAUSTED) == (spent >= terms.max_attempts)
    if event is JobEvent.SUBMISSION_EXHAUSTED:
        assert move.due_at is None
        assert move.columns["error_code"] == "submission_exhausted"
        assert EVIDENCE.describe() in move.columns["error_message"]


@pytest.mark.parametrize("spent", [1, 3])
@pytest.mark.parametrize("terms", [TERMS, HOLD], ids=["resubmit", "hold"])
def test_wish_to_cancel_is_granted_once_death_is_proven(terms, spent):
    job = build_job(cancel_requested_at=OLD)
    event, move = judge_death(job, EVIDENCE, spent, terms, NOW)
    assert (event, move.due_at, move.detail) == (
        JobEvent.JOB_CANCELLED,
        None,
        EVIDENCE.describe(),
    )
