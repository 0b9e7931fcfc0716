"""What people and programs read of a job."""

from datetime import timedelta

import pytest
from uuid_utils.compat import uuid7

from tests.harness.jobs import (
    LEASE,
    NOW,
    REQUEST_ID,
    TOKEN,
    WAYS,
    build_result,
    insert_job,
    make_job,
    move_job,
    read_attempts,
)
from tests.harness.together import call_together
from worker.errors import JobNotFoundError
from worker.fal.completion import Completion
from worker.jobs.states import JobEvent, JobState
from worker.stages.complete import receive_delivery
from worker.story import follow_events, list_jobs, read_story


def test_read_story_tells_everything_that_was_written(db):
    job = make_job(db, JobState.SUBMITTED)
    completion = Completion(REQUEST_ID, None, "OK", build_result(), None)
    receipt = receive_delivery(TOKEN, completion, b"{}", db=db, grace=LEASE)
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


def test_list_jobs_gives_the_newest_first_within_bounds(db):
    jobs = [insert_job(db, now=NOW + age * LEASE, tenant="a") for age in range(3)]
    insert_job(db, tenant="b")
    found = list_jobs(db=db, state=JobState.QUEUED, tenant="a", limit=2)
    assert found == [jobs[2], jobs[1]]
    assert list_jobs(db=db, state=JobState.FAILED, tenant=None, limit=9) == []


def test_follow_events_of_an_ended_job_gives_all_and_ends(db):
    job = make_job(db, JobState.ARCHIVED)
    reasons = [event.reason for event in follow_events(job.id, db=db)]
    assert reasons == ["enqueued", *WAYS[JobState.ARCHIVED]]


def test_follow_events_gives_each_event_once_as_it_comes(db):
    job = make_job(db, JobState.SUBMITTING)
    events = follow_events(job.id, db=db, patience=timedelta(seconds=20))
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
        patience = timedelta(seconds=20)
        return [event.reason for event in follow_events(job.id, db=db, patience=patience)]

    _, reasons = call_together(archive, follow)
    assert reasons == ["enqueued", *WAYS[JobState.ARCHIVED]]


def test_follow_events_out_of_patience_says_where_the_job_stands(db):
    job = make_job(db, JobState.SUBMITTED)
    with pytest.raises(TimeoutError, match="still submitted"):
        list(follow_events(job.id, db=db, patience=timedelta()))


def test_follow_events_of_an_unknown_job_raises(db):
    with pytest.raises(JobNotFoundError):
        next(follow_events(uuid7(), db=db))


def test_follow_events_ends_with_what_its_looker_raises(db):
    job = make_job(db, JobState.SUBMITTED)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(follow_events(job.id, db=db, on_look=stop))
