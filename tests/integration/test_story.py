"""What people and programs read of a job."""

from datetime import timedelta

import pytest
from uuid_utils.compat import uuid7

from tests.harness.jobs import (
    LEASE,
    REQUEST_ID,
    TOKEN,
    WAYS,
    build_result,
    insert_job,
    make_job,
    move_job,
    read_attempts,
)
from tests.harness.stages import SECOND
from tests.harness.together import call_together
from worker.fal.completion import Completion
from worker.fal.submit import RefusalClass, Refused
from worker.ground.errors import JobNotFoundError
from worker.jobs.states import JobEvent, JobState, PauseCause
from worker.ops.timeline import follow_events, read_story
from worker.stages.complete import receive_delivery

MINUTE = timedelta(minutes=1)


def test_read_story_tells_everything_that_was_written(db):
    job = make_job(db, JobState.SUBMITTED)
    completion = Completion(REQUEST_ID, None, "OK", build_result(), None)
    receipt = receive_delivery(TOKEN, completion, b"{}", db=db, dispatch_timeout=LEASE)
    story = read_story(job.id, db=db)
    assert story.job == receipt.job
    assert story.attempts == read_attempts(db, job.id)
    assert [delivery.body for delivery in story.deliveries] == [b"{}"]
    assert [event.reason for event in story.events] == ["enqueued", *WAYS[JobState.COMPLETED]]


def test_read_story_of_another_job_tells_nothing_of_this_one(db):
    make_job(db, JobState.SUBMITTED)
    story = read_story(insert_job(db).id, db=db)
    assert (story.attempts, story.deliveries, len(story.events)) == ([], [], 1)


def test_read_story_of_an_unknown_job_raises(db):
    with pytest.raises(JobNotFoundError, match="no job has the id"):
        read_story(uuid7(), db=db)


def test_follow_events_of_an_ended_job_gives_all_and_ends(db):
    job = make_job(db, JobState.ARCHIVED)
    reasons = [event.reason for event in follow_events(job.id, db=db)]
    assert reasons == ["enqueued", *WAYS[JobState.ARCHIVED]]


def test_follow_events_gives_each_event_once_as_it_comes(db):
    job = make_job(db, JobState.SUBMITTING)
    events = follow_events(job.id, db=db, timeout=timedelta(seconds=20))
    seen = [next(events).reason for _ in range(2)]
    move_job(db, job, JobEvent.SUBMISSION_REJECTED)
    assert [*seen, *(event.reason for event in events)] == [
        "enqueued",
        "submission_claimed",
        "submission_rejected",
    ]


def test_follow_events_beside_a_writer_misses_none(db):
    job = make_job(db, JobState.COMPLETED)

    def archive():
        claimed = move_job(db, job, JobEvent.ARCHIVE_CLAIMED)
        move_job(db, claimed, JobEvent.ARCHIVE_RECORDED)
        return []

    def follow():
        timeout = timedelta(seconds=20)
        return [event.reason for event in follow_events(job.id, db=db, timeout=timeout)]

    _, reasons = call_together(archive, follow)
    assert reasons == ["enqueued", *WAYS[JobState.ARCHIVED]]


def test_follow_events_beyond_its_timeout_says_where_the_job_stands(db):
    job = make_job(db, JobState.SUBMITTED)
    with pytest.raises(TimeoutError, match="still submitted"):
        list(follow_events(job.id, db=db, timeout=timedelta()))


def test_follow_events_of_an_unknown_job_raises(db):
    with pytest.raises(JobNotFoundError):
        next(follow_events(uuid7(), db=db))


def test_follow_events_ends_with_what_its_looker_raises(db):
    job = make_job(db, JobState.SUBMITTED)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(follow_events(job.id, db=db, on_read_events=stop))


def test_read_story_tells_states_with_their_durations(bench):
    job = bench.insert()
    bench.clock.move(2 * SECOND)
    submission = bench.begin(job)
    bench.clock.move(3 * SECOND)
    bench.accept(submission)
    bench.clock.move(4 * SECOND)
    story = read_story(job.id, db=bench.db, clock=bench.clock)
    assert [(stay.state, stay.duration) for stay in story.stays] == [
        (JobState.QUEUED, 2 * SECOND),
        (JobState.SUBMITTING, 3 * SECOND),
        (JobState.SUBMITTED, 4 * SECOND),
    ]


def test_what_a_lost_submission_was_said_to_wait_for_comes_true(bench):
    """The time told for its death is the time at which it is submitted once more."""
    submission = bench.begin(bench.insert())
    job = bench.lose(submission)
    wait = read_story(job.id, db=bench.db, policy=bench.resolve_policy, clock=bench.clock).wait
    death = submission.attempt.started_at + bench.resolve_policy.unknown_after
    assert f"from {death:%H:%M:%S} UTC on, it counts as not accepted" in wait.then
    bench.live(death - bench.clock() - SECOND)
    assert bench.read(job).state is JobState.SUBMISSION_UNKNOWN
    bench.live(10 * MINUTE)
    assert "death_proven" in bench.reasons(job)


def test_pause_of_submissions_is_told_of_each_queued_job(bench):
    job = bench.insert()
    refused = Refused(RefusalClass.ACCOUNT, 403, "fal_http_403", "no balance")
    bench.reply(bench.begin(bench.insert()), refused)
    wait = read_story(job.id, db=bench.db, clock=bench.clock).wait
    assert "no balance" in wait.waits_for
    pause = bench.pause(PauseCause.ACCOUNT)
    assert pause is not None
    assert wait.until == pause.until
