"""Events are added once each, to sums that only grow."""

from dataclasses import replace
from datetime import timedelta

from tests.harness.jobs import NOW
from worker.jobs.states import JobState
from worker.jobs.stats import CountedEvent
from worker.ops.metrics import BOUNDS, GAP_PATIENCE, MOST_GAPS, History, measure_phases

SECOND = timedelta(seconds=1)
ENQUEUED = CountedEvent(1, NOW, None, JobState.QUEUED, "enqueued", NOW, None, None, None, None)
ACCEPTED = replace(
    ENQUEUED,
    id=3,
    at=NOW + 4 * SECOND,
    from_state=JobState.SUBMITTING,
    to_state=JobState.SUBMITTED,
    reason="submission_accepted",
    submitted_at=NOW + 4 * SECOND,
)
ARRIVED = replace(
    ACCEPTED,
    id=4,
    at=NOW + 90 * SECOND,
    from_state=JobState.SUBMITTED,
    to_state=JobState.COMPLETED,
    reason="result_arrived",
    completed_at=NOW + 90 * SECOND,
)
ARCHIVED = replace(
    ARRIVED,
    id=6,
    at=NOW + 100 * SECOND,
    from_state=JobState.ARCHIVING,
    to_state=JobState.ARCHIVED,
    reason="archive_recorded",
    archived_at=NOW + 100 * SECOND,
    archive_bytes=1000,
)


def test_phases_end_at_the_first_visit_of_their_state() -> None:
    for event, phases in [
        (ENQUEUED, []),
        (ACCEPTED, [("submit", 4)]),
        (ARRIVED, [("run", 86)]),
        (ARCHIVED, [("archive", 10), ("whole", 100)]),
        # The webhook was faster than the reply.
        (replace(ARRIVED, from_state=JobState.SUBMITTING), [("run", 86), ("submit", 4)]),
        # A restart visits states anew: their times are those of the first visit.
        (replace(ACCEPTED, at=NOW + 500 * SECOND), []),
        (replace(ARCHIVED, at=NOW + 500 * SECOND), []),
        # Clocks of two workers differ.
        (replace(ACCEPTED, submitted_at=NOW - SECOND, at=NOW - SECOND), [("submit", 0)]),
    ]:
        assert measure_phases(event) == phases


def test_history_sums_reasons_phases_and_bytes() -> None:
    history = History()
    history.add([ENQUEUED, ACCEPTED, ARRIVED, ARCHIVED], NOW)
    assert history.reasons["archive_recorded"] == 1
    assert history.archive_bytes == 1000
    whole = history.phases["whole"]
    assert (sum(whole.counts), whole.seconds) == (1, 100)
    assert whole.counts[BOUNDS.index(120)] == 1
    assert history.cursor == 6


def test_history_survives_being_written() -> None:
    history = History()
    history.add([ENQUEUED, ACCEPTED, ARCHIVED], NOW)
    assert History.load(history.dump()) == history


def test_id_that_commits_late_is_looked_for_and_added_once() -> None:
    history = History()
    history.add([ENQUEUED, ACCEPTED], NOW)
    assert list(history.gaps) == [2]
    late = replace(ENQUEUED, id=2)
    history.add([late], NOW)
    assert history.reasons["enqueued"] == 2
    assert (history.gaps, history.cursor) == ({}, 3)


def test_id_that_never_comes_is_given_up() -> None:
    history = History()
    history.add([ENQUEUED, ACCEPTED], NOW)
    history.add([], NOW + GAP_PATIENCE - SECOND)
    assert list(history.gaps) == [2]
    history.add([], NOW + GAP_PATIENCE + SECOND)
    assert history.gaps == {}


def test_missing_ids_are_bounded() -> None:
    history = History()
    history.add([replace(ENQUEUED, id=10**9)], NOW)
    assert len(history.gaps) == MOST_GAPS
