"""Every pair of state and event, permitted and forbidden."""

from itertools import product

from tests.harness.jobs import WAYS
from worker.jobs.states import EDGES, ENDED, JobEvent, JobState, Step, next_state, step_for

S, E = JobState, JobEvent

PERMITTED = {
    S.QUEUED: {
        E.SUBMISSION_CLAIMED: S.SUBMITTING,
        E.SUBMISSION_DOUBTED: S.SUBMISSION_UNKNOWN,
        E.SUBMISSION_ACCEPTED: S.SUBMITTED,
        E.REQUEST_ADOPTED: S.SUBMITTED,
        E.RESULT_ARRIVED: S.COMPLETED,
        E.JOB_CANCELLED: S.CANCELLED,
        E.EXPIRED: S.FAILED,
    },
    S.SUBMITTING: {
        E.START_TIMED_OUT: S.QUEUED,
        E.SUBMISSION_ACCEPTED: S.SUBMITTED,
        E.SUBMISSION_POSTPONED: S.QUEUED,
        E.SUBMISSION_REJECTED: S.FAILED,
        E.SUBMISSION_EXHAUSTED: S.FAILED,
        E.SUBMISSION_LOST: S.SUBMISSION_UNKNOWN,
        E.SUBMISSION_CLAIM_EXPIRED: S.SUBMISSION_UNKNOWN,
        E.REQUEST_ADOPTED: S.SUBMITTED,
        E.RESULT_ARRIVED: S.COMPLETED,
        E.FAILURE_ARRIVED: S.FAILED,
        E.CANCEL_REQUESTED: S.SUBMITTING,
        E.JOB_CANCELLED: S.CANCELLED,
    },
    S.SUBMISSION_UNKNOWN: {
        E.START_TIMED_OUT: S.QUEUED,
        E.SUBMISSION_ACCEPTED: S.SUBMITTED,
        E.SUBMISSION_POSTPONED: S.QUEUED,
        E.SUBMISSION_REJECTED: S.FAILED,
        E.SUBMISSION_EXHAUSTED: S.FAILED,
        E.SUBMISSION_HELD: S.SUBMISSION_UNKNOWN,
        E.REQUEST_ADOPTED: S.SUBMITTED,
        E.DEATH_PROVEN: S.QUEUED,
        E.RESULT_ARRIVED: S.COMPLETED,
        E.FAILURE_ARRIVED: S.FAILED,
        E.CANCEL_REQUESTED: S.SUBMISSION_UNKNOWN,
        E.JOB_CANCELLED: S.CANCELLED,
        E.SUBMIT_REDRIVEN: S.QUEUED,
    },
    S.SUBMITTED: {
        E.START_TIMED_OUT: S.QUEUED,
        E.RESULT_ARRIVED: S.COMPLETED,
        E.FAILURE_ARRIVED: S.FAILED,
        E.CANCEL_REQUESTED: S.SUBMITTED,
        E.JOB_CANCELLED: S.CANCELLED,
    },
    S.COMPLETED: {E.ARCHIVE_CLAIMED: S.ARCHIVING},
    S.ARCHIVING: {
        E.ARCHIVE_RECORDED: S.ARCHIVED,
        E.ARCHIVE_POSTPONED: S.COMPLETED,
        E.ARCHIVE_REFUSED: S.FAILED,
        E.ARCHIVE_CLAIM_EXPIRED: S.COMPLETED,
    },
    S.ARCHIVED: {E.ARCHIVE_REPLACED: S.ARCHIVED},
    S.FAILED: {
        E.SUBMISSION_ACCEPTED: S.SUBMITTED,
        E.REQUEST_ADOPTED: S.SUBMITTED,
        E.RESULT_ARRIVED: S.COMPLETED,
        E.SUBMIT_REDRIVEN: S.QUEUED,
        E.POLL_REDRIVEN: S.SUBMITTED,
        E.ARCHIVE_REDRIVEN: S.COMPLETED,
    },
    S.CANCELLED: {
        E.REQUEST_ADOPTED: S.SUBMITTED,
        E.RESULT_ARRIVED: S.COMPLETED,
        E.SUBMIT_REDRIVEN: S.QUEUED,
    },
}
# What may move a job that has ended: a paid request that turns up after all, and an operator.
LATE_FINDS = {E.SUBMISSION_ACCEPTED, E.REQUEST_ADOPTED, E.RESULT_ARRIVED}
REDRIVES = {E.SUBMIT_REDRIVEN, E.POLL_REDRIVEN, E.ARCHIVE_REDRIVEN}
# What is noted of a job that stays where it is.
NOTES = {E.CANCEL_REQUESTED, E.SUBMISSION_HELD}
# What renews the good end without leaving it.
RENEWALS = {E.ARCHIVE_REPLACED}


def test_next_state_of_each_pair_is_its_target_or_none():
    """The forbidden pairs are all the others."""
    pairs = product(JobState, JobEvent)
    found = {(state, event): next_state(state, event) for state, event in pairs}
    permitted = {(state, event): to for state in S for event, to in PERMITTED[state].items()}
    assert found == dict.fromkeys(found) | permitted
    assert permitted == EDGES


def test_archived_is_left_for_nowhere():
    assert {target for (state, _), target in EDGES.items() if state is S.ARCHIVED} == {S.ARCHIVED}


def test_ended_states_are_left_only_for_a_paid_find_or_by_an_operator():
    left = {event for state, event in EDGES if state in ENDED} - RENEWALS
    assert left == LATE_FINDS | REDRIVES


def test_every_late_find_or_redrive_leads_to_a_live_state():
    assert not [pair for pair in EDGES if pair[1] in LATE_FINDS | REDRIVES and EDGES[pair] in ENDED]


def test_every_live_state_has_a_way_out():
    left = {state for (state, _), target in EDGES.items() if target is not state}
    assert left >= set(JobState) - ENDED


def test_every_event_leads_to_one_state_or_to_none():
    for event in set(JobEvent) - {E.ENQUEUED} - NOTES:
        assert len({target for (_, edge), target in EDGES.items() if edge is event}) == 1


def test_only_notes_and_renewals_leave_a_job_where_it_is():
    stays = {pair for pair, target in EDGES.items() if target is pair[0]}
    assert stays == {pair for pair in EDGES if pair[1] in NOTES | RENEWALS}


def test_submission_is_claimed_from_queued_only():
    assert [state for state, event in EDGES if event is E.SUBMISSION_CLAIMED] == [S.QUEUED]


def test_every_reachable_state_has_a_way_in_the_harness():
    reachable = {S.QUEUED, *EDGES.values()}
    assert set(WAYS) == reachable


def test_step_for_has_a_step_only_where_work_waits():
    expected = {
        S.QUEUED: Step.SUBMIT,
        S.SUBMITTED: Step.RECONCILE,
        S.SUBMISSION_UNKNOWN: Step.RECONCILE,
        S.COMPLETED: Step.ARCHIVE,
    }
    assert {state: step_for(state) for state in S} == dict.fromkeys(S) | expected
