"""`worker.producer.enqueue_many`, and `enqueue --from`: as `enqueue` again and again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness.brokers import find_closed_port
from tests.harness.commands import build_run
from tests.harness.jobs import list_all_jobs, read_job
from tests.harness.together import call_together
from worker import producer
from worker.broker.dispatch import MOST_WAITING
from worker.ground.db import Database
from worker.ground.errors import ExtendVideoError, IdempotencyConflictError, InvalidInputError
from worker.jobs import table
from worker.jobs.states import JobState
from worker.jobs.values import Job
from worker.stages import enqueue

pytestmark = pytest.mark.usefixtures("producing")
FIELDS: dict[str, Any] = {"prompt": "on it goes", "video_url": "https://example.com/a.mp4"}
Wished = dict[str, Any]
IDS = [UUID(int=number, version=4) for number in range(3)]


def count_rows(db: Database) -> dict[str, int]:
    with db.reading() as connection:
        return {
            name: connection.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar_one()
            for name in ("jobs", "events")
        }


def describe(job: Job) -> object:
    """All of a job that does not depend on when, and under which drawn id and seed, it was made."""
    chosen = job.id if job.id in IDS else None
    given = {name: value for name, value in job.input.items() if name != "seed"}
    return (job.state, job.tenant, job.idempotency_key, job.priority, job.labels, given, chosen)


# ------------------------------------------------------------------ as a loop of enqueue

job_requests = st.lists(
    st.fixed_dictionaries(
        {"prompt": st.sampled_from(["a", "b"]), "video_url": st.just(FIELDS["video_url"])},
        optional={
            "idempotency_key": st.sampled_from(["k", "l", "ä ' \" \\ 🎬"]),
            "job_id": st.sampled_from(IDS),
            "tenant": st.sampled_from(["default", "t"]),
            "priority": st.integers(-100, 100),
            "labels": st.dictionaries(st.sampled_from(["x", "y"]), st.text("é\"'\\%$", max_size=4)),
            "fal_options": st.sampled_from([{}, {"priority": "low"}, {"tags": {"a": "b"}}]),
            "fps": st.sampled_from([24.0, 12.5, 30]),
        },
    ),
    max_size=9,
)

MAX_IN_FLIGHT = 40


def enqueue_each(wished: list[Wished]) -> list[Job]:
    return [producer.enqueue(**one) for one in wished]


@pytest.mark.both_databases
@given(job_requests)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_enqueue_many_does_what_enqueue_does_for_each(db, wished) -> None:
    """The same jobs in the same places, or the same error."""
    outcomes: list[object] = []
    for call in (enqueue_each, producer.enqueue_many):
        try:
            jobs = call(wished)
        except IdempotencyConflictError as error:
            outcomes.append((type(error), str(error).partition(": ")[2] or str(error)))
        else:
            same = [[one.id == other.id for one in jobs] for other in jobs]
            outcomes.append(([describe(job) for job in jobs], same, count_rows(db)))
            assert [read_job(db, job.id) for job in jobs] == jobs
        with db.transaction() as connection:
            connection.exec_driver_sql("DELETE FROM events")
            connection.exec_driver_sql("DELETE FROM jobs")
    assert outcomes[0] == outcomes[1]


def test_enqueue_many_commits_rows_events_and_rings_once_each(db, read_doorbells) -> None:
    wished = [{**FIELDS, "prompt": f"part {number}"} for number in range(1100)]
    jobs = producer.enqueue_many(iter(wished))

    assert [job.input["prompt"] for job in jobs] == [one["prompt"] for one in wished]
    assert len({job.id for job in jobs}) == len({job.input["seed"] for job in jobs}) == 1100
    assert count_rows(db) == {"jobs": 1100, "events": 1100}
    # No more than may be submitted now, each time that a batch is committed.
    assert len(read_doorbells()) == 2 * MAX_IN_FLIGHT
    job = jobs[1034]
    assert read_job(db, job.id) == job
    with db.reading() as connection:
        (event,) = table.list_events(connection, job.id)
    assert (event.at, event.from_state, event.to_state) == (job.enqueued_at, None, JobState.QUEUED)
    assert (event.reason, event.fence, event.detail) == ("enqueued", 0, None)


@pytest.mark.both_databases
def test_backlog_that_no_worker_takes_gets_no_message_for_each_job(db, read_doorbells) -> None:
    for number in range(10):
        producer.enqueue_many([{**FIELDS, "prompt": f"{number}"}] * MAX_IN_FLIGHT)
    for _ in range(10):
        producer.enqueue(**FIELDS)

    assert count_rows(db)["jobs"] == 10 * MAX_IN_FLIGHT + 10
    assert len(read_doorbells()) == MOST_WAITING


def test_enqueue_many_of_nothing_does_nothing(db, read_doorbells) -> None:
    assert producer.enqueue_many([]) == []
    assert (count_rows(db), read_doorbells()) == ({"jobs": 0, "events": 0}, [])


def test_enqueue_many_again_gives_same_jobs_and_rings_no_more(db, read_doorbells) -> None:
    wished = [{**FIELDS, "idempotency_key": f"k{number}"} for number in range(60)]
    first = producer.enqueue_many(wished[:35])
    read_doorbells()
    again = producer.enqueue_many(wished)

    assert again[:35] == first
    assert count_rows(db) == {"jobs": 60, "events": 60}
    assert set(read_doorbells()) == {str(job.id) for job in again[35:]}


@pytest.mark.both_databases
def test_enqueue_many_at_once_makes_each_job_once(db, read_doorbells) -> None:
    """In other orders, too, which would make them wait for each other in a ring."""
    producer.get_runtime()
    wished = [{**FIELDS, "idempotency_key": f"k{number}"} for number in range(60)]
    orders = [wished, wished[::-1], wished[30:] + wished[:30]]
    found = call_together(*[lambda one=one: producer.enqueue_many(one) for one in orders])

    assert count_rows(db) == {"jobs": 60, "events": 60}
    assert len({frozenset(job.id for job in jobs) for jobs in found}) == 1
    assert MAX_IN_FLIGHT <= len(read_doorbells()) <= 60


def test_enqueue_many_wrong_wishes_are_all_named_and_nothing_is_written(
    db, read_doorbells, tmp_path
) -> None:
    (tmp_path / "no-video.mp4").write_text("no video")
    wished = [
        FIELDS,
        {**FIELDS, "prompt": " ", "fps": 0},
        {**FIELDS, "video_url": tmp_path / "no-video.mp4"},
        FIELDS,
        {"prompt": "x", "labels": {"": "y"}},
    ]
    with pytest.raises(InvalidInputError) as caught:
        producer.enqueue_many(wished)

    fields = {violation.field for violation in caught.value.violations}
    assert fields == {
        *("requests.1.prompt", "requests.1.fps", "requests.2.video_url"),
        *("requests.4.video_url", "requests.4.labels"),
    }
    assert (count_rows(db)["jobs"], read_doorbells()) == (0, [])


def test_enqueue_many_conflict_names_wish_and_keeps_whole_batches(
    db, read_doorbells, monkeypatch
) -> None:
    monkeypatch.setattr(enqueue.split_batches, "__defaults__", (3,))
    producer.enqueue(**FIELDS, idempotency_key="k7")
    read_doorbells()
    wished = [
        {**FIELDS, "prompt": "another", "idempotency_key": f"k{number}"} for number in range(9)
    ]
    with pytest.raises(IdempotencyConflictError, match=r"^requests\.7: k7 belongs to a job with"):
        producer.enqueue_many(wished)

    with db.reading() as connection:
        kept = {job.idempotency_key for job in list_all_jobs(connection)}
    assert kept == {"k7", *(f"k{number}" for number in range(6))}
    assert len(read_doorbells()) == 6, "what was committed is rung for"


def test_enqueue_many_without_broker_still_commits(db, monkeypatch) -> None:
    monkeypatch.setenv("BROKER_URL", f"redis://127.0.0.1:{find_closed_port()}/0")
    jobs = producer.enqueue_many([FIELDS] * 20)
    assert count_rows(db)["jobs"] == len(jobs) == 20


def test_enqueue_many_uploads_no_file_without_a_key_and_writes_nothing(db) -> None:
    """Files take the way they take in `enqueue`, which needs a key of fal's."""
    video = (Path(__file__).parents[1] / "emulator" / "clips.py").read_bytes()
    with pytest.raises(ExtendVideoError):
        producer.enqueue_many([FIELDS, {**FIELDS, "video_url": video}])
    assert count_rows(db)["jobs"] == 0


# ------------------------------------------------------------------ the shell


@pytest.fixture
def shell(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs `extend-video enqueue` in this process: its exit code, and what it has printed."""
    run = build_run(monkeypatch, capsys, producer.get_runtime)

    def run_enqueue(*arguments: str) -> tuple[int, str, str]:
        ended = run("enqueue", *arguments)
        return ended.code, ended.out, ended.err

    return run_enqueue


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_enqueue_from_file_prints_an_id_for_each_line(db, shell, tmp_path) -> None:
    job_id = uuid4()
    file = write_lines(tmp_path / "wishes.jsonl", FIELDS, {**FIELDS, "job_id": str(job_id)}, FIELDS)
    code, out, err = shell("--from", str(file), "--json")

    assert code == 0, err
    ids = [UUID(text) for text in json.loads(out)["ids"]]
    assert ids[1] == job_id
    assert [read_job(db, one).state for one in ids] == [JobState.QUEUED] * 3


def test_enqueue_from_file_ends_lines_where_json_does(db, shell, tmp_path) -> None:
    """Elsewhere these end lines, too; JSON may have them inside of a text."""
    file = tmp_path / "wishes.jsonl"
    job_request = {**FIELDS, "prompt": "on\u2028it\x85goes"}
    file.write_text(json.dumps(job_request, ensure_ascii=False) + "\r\n", "utf-8", newline="")
    code, out, err = shell("--from", str(file), "--json")

    assert code == 0, err
    assert read_job(db, UUID(json.loads(out)["ids"][0])).input["prompt"] == job_request["prompt"]


def test_enqueue_from_file_names_wrong_lines(db, shell, tmp_path) -> None:
    file = write_lines(tmp_path / "wishes.jsonl", FIELDS, {**FIELDS, "prompt": ""}, {"fpss": 1})
    code, out, err = shell("--from", str(file))

    assert (code, out) == (2, "")
    for words in ("line 2.prompt", "line 3.fpss", "line 3.video_url"):
        assert words in err
    assert count_rows(db)["jobs"] == 0


def test_enqueue_from_file_takes_only_objects(db, shell, tmp_path) -> None:
    file = tmp_path / "wishes.jsonl"
    for line in ("[1]", "no JSON", ""):
        file.write_text(f"{json.dumps(FIELDS)}\n{line}\n")
        code, _, err = shell("--from", str(file))
        assert code == 2
        assert "line 2=" in err
    assert count_rows(db)["jobs"] == 0


def test_enqueue_from_file_with_other_options_is_wrong_usage(shell) -> None:
    for others in (("missing.jsonl",), ("-", "--wait"), ("-", "--prompt", "x")):
        code, out, err = shell("--from", *others)
        assert (code, out) == (2, "")
        assert "Error" in err
