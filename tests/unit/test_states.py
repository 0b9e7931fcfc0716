"""Every pair of state and event; the forbidden ones first."""

from itertools import product

import pytest

from tests.harness.jobs import WAYS
from worker.jobs.states import EDGES, ENDED, JobEvent, JobState, Step, next_state, step_for

S, E = JobState, JobEvent

PERMITTED = {
    S.QUEUED: {E.SUBMISSION_CLAIMED: S.SUBMITTING, E.RESULT_ARRIVED: S.COMPLETED},
    S.SUBMITTING: {
        E.SUBMISSION_ACCEPTED: S.SUBMITTED,
        E.SUBMISSION_POSTPONED: S.QUEUED,
        E.SUBMISSION_REJECTED: S.FAILED,
        E.SUBMISSION_LOST: S.SUBMISSION_UNKNOWN,
        E.RESULT_ARRIVED: S.COMPLETED,
        E.FAILURE_ARRIVED: S.FAILED,
    },
    S.SUBMISSION_UNKNOWN: {E.RESULT_ARRIVED: S.COMPLETED, E.FAILURE_ARRIVED: S.FAILED},
    S.SUBMITTED: {E.RESULT_ARRIVED: S.COMPLETED, E.FAILURE_ARRIVED: S.FAILED},
    S.COMPLETED: {E.ARCHIVE_CLAIMED: S.ARCHIVING},
    S.ARCHIVING: {
        E.ARCHIVE_RECORDED: S.ARCHIVED,
        E.ARCHIVE_POSTPONED: S.COMPLETED,
        E.ARCHIVE_REFUSED: S.FAILED,
        E.ARCHIVE_CLAIM_EXPIRED: S.COMPLETED,
    },
    S.ARCHIVED: {},
    S.FAILED: {},
    S.CANCELLED: {},
}
PAIRS = sorted(product(JobState, JobEvent))


@pytest.mark.parametrize(
    ("state", "event"), [pair for pair in PAIRS if pair[1] not in PERMITTED[pair[0]]]
)
def test_next_state_of_a_forbidden_pair_is_none(state, event):
    assert next_state(state, event) is None


@pytest.mark.parametrize(
    ("state", "event"), [pair for pair in PAIRS if pair[1] in PERMITTED[pair[0]]]
)
def test_next_state_of_a_permitted_pair_is_its_target(state, event):
    assert next_state(state, event) is PERMITTED[state][event]


def test_every_ended_state_has_no_way_out():
    assert not [state for state, _ in EDGES if state in ENDED]


def test_every_live_state_has_a_way_out():
    assert {state for state, _ in EDGES} == set(JobState) - ENDED


def test_every_event_leads_to_one_state_only():
    for event in set(JobEvent) - {E.ENQUEUED}:
        assert len({target for (_, edge), target in EDGES.items() if edge is event}) == 1


def test_every_reachable_state_has_a_way_in_the_harness():
    reachable = {S.QUEUED, *EDGES.values()}
    assert set(WAYS) == reachable


@pytest.mark.parametrize("state", list(JobState))
def test_step_for_rings_only_where_work_waits(state):
    expected = {S.QUEUED: Step.SUBMIT, S.COMPLETED: Step.ARCHIVE}
    assert step_for(state) is expected.get(state)
