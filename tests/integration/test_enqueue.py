"""Wishes become rows: once each, checked whole, as they will be sent."""

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness.clock import FakeClock
from tests.harness.jobs import ENDPOINT, LEASE, NOW, list_all_jobs, read_job
from tests.harness.together import call_together
from worker.fal.model import ExtendVideoInput
from worker.ground.errors import IdempotencyConflictError, InvalidInputError
from worker.jobs import table
from worker.jobs.states import Doorbell, JobState, Step
from worker.stages.enqueue import enqueue_job, parse_job_request

FIELDS = {"prompt": "on it goes", "video_url": "https://example.com/a.mp4"}
ONE_DRAW = 2**31
DEFAULTS = {
    name: field.get_default()
    for name, field in ExtendVideoInput.model_fields.items()
    if not field.is_required()
}


def enqueue(db, *, endpoint=ENDPOINT, clock=FakeClock(), **fields):  # noqa: B008 - never moved
    job_request = parse_job_request({**FIELDS, **fields})
    return enqueue_job(job_request, db=db, endpoint=endpoint, dispatch_timeout=LEASE, clock=clock)


def list_all(db):
    with db.reading() as connection:
        return list_all_jobs(connection)


def list_events(db, job):
    with db.reading() as connection:
        return table.list_events(connection, job.id)


@pytest.mark.both_databases
def test_enqueue_job_writes_a_queued_row_with_its_event(db):
    enqueued = enqueue(db, tenant="shop", priority=7, labels={"order": "4711"})
    job = read_job(db, enqueued.job.id)
    assert enqueued.created
    assert enqueued.job == job
    assert (job.state, job.fence, job.tenant, job.priority) == (JobState.QUEUED, 0, "shop", 7)
    assert (job.labels, job.endpoint) == ({"order": "4711"}, ENDPOINT)
    assert (job.enqueued_at, job.due_at) == (NOW, NOW + LEASE)
    assert job.doorbell == Doorbell(Step.SUBMIT, job.id)
    assert [(event.reason, event.at) for event in list_events(db, job)] == [("enqueued", NOW)]


def test_enqueue_job_without_id_and_key_makes_a_job_each_time(db):
    ids = {enqueue(db, seed=1).job.id for _ in range(3)}
    assert len(ids) == 3
    assert {job_id.version for job_id in ids} == {7}


def test_enqueue_job_stores_all_39_fields_explicitly(db):
    job = enqueue(db).job
    seed = job.input["seed"]
    assert len(job.input) == 39
    assert 0 <= seed < ONE_DRAW
    assert job.input == {**DEFAULTS, **FIELDS, "seed": seed}


@pytest.mark.both_databases
def test_enqueue_job_keeps_the_kind_of_each_number(db):
    job = read_job(
        db, enqueue(db, fps=30, video_cfg_scale=2, num_frames=99.0, seed=2**63 - 1).job.id
    )
    kinds = {name: type(job.input[name]) for name in ("fps", "video_cfg_scale", "num_frames")}
    assert kinds == {"fps": float, "video_cfg_scale": float, "num_frames": int}
    assert job.input["seed"] == 2**63 - 1


def test_enqueue_job_with_a_size_of_its_own_stores_an_object(db):
    job = enqueue(db, video_size={"width": 640, "height": 480}).job
    assert read_job(db, job.id).input["video_size"] == {"width": 640, "height": 480}


strengths = st.floats(0, 1, allow_subnormal=True)
inputs = st.fixed_dictionaries(
    {
        "prompt": st.text(
            st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
        ).filter(str.strip),
    },
    optional={
        "negative_prompt": st.text(
            st.characters(exclude_categories=["Cs"], exclude_characters="\0")
        ),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "fps": st.floats(1, 60) | st.integers(1, 60),
        "video_strength": strengths,
        "audio_strength": strengths,
        "end_image_strength": strengths,
        "video_stg_scale": st.floats(0, 20),
        "generate_audio": st.booleans(),
        "camera_lora": st.sampled_from(["dolly_in", "none", "static"]),
        "end_image_url": st.none() | st.just("https://example.com/ü.png?x=%00&y='\""),
        "num_frames": st.integers(9, 481),
    },
)


@pytest.mark.both_databases
@settings(
    deadline=None,
    derandomize=True,
    database=None,
    # every example makes a job of its own in the same database
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(fields=inputs)
def test_enqueue_job_stores_any_accepted_wish_as_it_will_be_sent(db, fields):
    job_request = parse_job_request({**FIELDS, **fields})
    job = enqueue_job(job_request, db=db, endpoint=ENDPOINT, dispatch_timeout=LEASE).job
    stored = read_job(db, job.id).input
    assert json.dumps(stored, sort_keys=True) == json.dumps(job_request.input, sort_keys=True)
    assert {name: stored[name] for name in fields} == fields


@pytest.mark.both_databases
def test_enqueue_job_twice_by_id_gives_the_first_job(db):
    job_id = uuid4()
    first = enqueue(db, job_id=str(job_id))
    later = FakeClock(NOW + timedelta(hours=1))
    second = enqueue(db, job_id=job_id, clock=later)
    assert (first.created, second.created) == (True, False)
    assert second.job == first.job == read_job(db, job_id)
    assert len(list_events(db, first.job)) == 1


@pytest.mark.both_databases
def test_enqueue_job_twice_by_key_gives_the_first_job(db):
    first, second = (enqueue(db, idempotency_key="k") for _ in range(2))
    assert (first.created, second.created) == (True, False)
    assert second.job == first.job
    assert list_all(db) == [first.job]


def test_enqueue_job_again_after_it_moved_gives_the_row_as_it_is(db):
    first = enqueue(db, idempotency_key="k").job
    with db.transaction() as connection:
        table.advance_due(connection, first, NOW + 9 * LEASE)
    assert enqueue(db, idempotency_key="k").job.due_at == NOW + 9 * LEASE


@pytest.mark.both_databases
def test_enqueue_job_keeps_keys_apart_by_tenant(db):
    jobs = {enqueue(db, tenant=tenant, idempotency_key="k").job.id for tenant in ("a", "b", "a")}
    assert len(jobs) == 2


def test_enqueue_job_does_not_count_a_seed_that_was_drawn(db):
    first = enqueue(db, idempotency_key="k", seed=5)
    again = enqueue(db, idempotency_key="k")
    null = enqueue(db, idempotency_key="k", seed=None)
    assert first.job == again.job == null.job
    assert again.job.input["seed"] == 5


def test_enqueue_job_counts_a_seed_that_was_given(db):
    first = enqueue(db, idempotency_key="k")
    other = (first.job.input["seed"] + 1) % ONE_DRAW
    with pytest.raises(IdempotencyConflictError):
        enqueue(db, idempotency_key="k", seed=other)
    assert enqueue(db, idempotency_key="k", seed=first.job.input["seed"]).job == first.job


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"idempotency_key": "k"}, {"idempotency_key": "k", "prompt": "other"}),
        ({"idempotency_key": "k"}, {"idempotency_key": "k", "endpoint": "fal-ai/other"}),
        ({"idempotency_key": "k"}, {"idempotency_key": "k", "job_id": UUID(int=2)}),
        ({"job_id": UUID(int=1)}, {"job_id": UUID(int=1), "tenant": "other"}),
        (
            {"job_id": UUID(int=1), "idempotency_key": "k"},
            {"job_id": UUID(int=1), "idempotency_key": "other", "prompt": "other"},
        ),
    ],
)
def test_enqueue_job_of_another_wish_is_refused_and_changes_nothing(db, first, second):
    job = enqueue(db, **first).job
    with pytest.raises(IdempotencyConflictError, match="choose another key or id"):
        enqueue(db, **second)
    assert list_all(db) == [job]
    assert len(list_events(db, job)) == 1


@pytest.mark.both_databases
def test_enqueue_job_whose_id_and_key_are_of_two_jobs_is_refused(db):
    by_id = enqueue(db, job_id=UUID(int=1)).job
    by_key = enqueue(db, idempotency_key="k").job
    with pytest.raises(IdempotencyConflictError):
        enqueue(db, job_id=by_id.id, idempotency_key="k")
    assert {job.id for job in list_all(db)} == {by_id.id, by_key.id}


@pytest.mark.both_databases
@pytest.mark.parametrize("identity", [{"job_id": UUID(int=1)}, {"idempotency_key": "k"}])
def test_enqueue_job_at_once_from_many_threads_makes_one_row(db, identity):
    enqueued = call_together(*[lambda: enqueue(db, **identity)] * 4)
    assert sorted(one.created for one in enqueued) == [False, False, False, True]
    assert [*{one.job.id for one in enqueued}] == [job.id for job in list_all(db)]
    assert len(list_events(db, enqueued[0].job)) == 1


@pytest.mark.both_databases
def test_enqueue_job_at_once_with_two_inputs_keeps_one_of_them(db):
    def try_enqueue(prompt):
        try:
            return enqueue(db, idempotency_key="k", prompt=prompt).job.input["prompt"]
        except IdempotencyConflictError:
            return None

    kept = call_together(lambda: try_enqueue("a"), lambda: try_enqueue("b"))
    (winner,) = [prompt for prompt in kept if prompt is not None]
    assert [job.input["prompt"] for job in list_all(db)] == [winner]


def test_parse_wish_lists_every_violation_of_input_and_options_at_once():
    fields = {
        "prompt": " ",
        "fps": 61,
        "promt": "x",
        "job_id": "7",
        "idempotency_key": "",
        "tenant": "a b",
        "priority": 101,
        "labels": {"a b": "c"},
    }
    with pytest.raises(InvalidInputError) as caught:
        parse_job_request(fields)
    named = [violation.field for violation in caught.value.violations]
    assert sorted(named) == sorted([*fields, "video_url"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("job_id", 7),
        ("idempotency_key", "a\0b"),
        ("idempotency_key", "k" * 256),
        ("tenant", ""),
        ("tenant", "\ud800"),
        ("priority", True),
        ("priority", -101),
        ("labels", {"a": 1}),
        ("labels", {"a": "b" * 257}),
        ("labels", {str(number): "" for number in range(33)}),
    ],
)
def test_parse_wish_with_a_wrong_option_names_it(field, value):
    with pytest.raises(InvalidInputError) as caught:
        parse_job_request({**FIELDS, field: value})
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.both_databases
def test_parse_wish_takes_the_widest_options_that_databases_hold(db):
    options = {
        "idempotency_key": "ü" * 255,
        "tenant": "🎬" * 128,
        "priority": -100,
        "labels": {f"a.b/{number}": "ü" * 256 for number in range(32)},
    }
    job = enqueue(db, **options).job
    again = read_job(db, job.id)
    assert {name: getattr(again, name) for name in options} == options


# ------------------------------------------------------------------ a job's own times


@pytest.mark.both_databases
def test_times_come_as_text_with_an_offset_and_are_kept_as_utc(db):
    times = {"not_before": "2126-01-01T01:00:00+01:00", "expires_at": "2126-01-02T00:00:00Z"}
    request = parse_job_request({**FIELDS, **times})
    job = enqueue_job(request, db=db, endpoint="e", dispatch_timeout=LEASE).job
    assert job.not_before == datetime(2126, 1, 1, tzinfo=UTC)
    assert job.expires_at == datetime(2126, 1, 2, tzinfo=UTC)
    assert (job.blocked_by, job.due_at) == ("not_before", job.not_before)
    assert read_job(db, job.id) == job


@pytest.mark.parametrize("wrong", ["tomorrow", "2126-01-01T00:00:00", 7, True])
@pytest.mark.parametrize("field", ["not_before", "expires_at"])
def test_a_time_without_an_offset_is_refused_by_name(field, wrong):
    with pytest.raises(InvalidInputError, match=f"{field}.*ISO 8601"):
        parse_job_request({**FIELDS, field: wrong})


def test_a_job_that_would_expire_before_its_time_is_refused():
    times = {"not_before": "2126-01-02T00:00:00Z", "expires_at": "2126-01-01T00:00:00Z"}
    with pytest.raises(InvalidInputError, match="expires_at"):
        parse_job_request({**FIELDS, **times})
