"""`from worker.producer import enqueue`, as another service uses it."""

import sys
import time
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.exc import DBAPIError

from tests.harness.brokers import find_closed_port, open_black_hole, take_messages
from tests.harness.jobs import read_job
from tests.harness.processes import run_yard
from tests.harness.together import call_together
from worker import producer
from worker.ground.errors import IdempotencyConflictError, InvalidInputError, InvalidSettingsError
from worker.jobs.states import JobState
from worker.jobs.values import Job

pytestmark = pytest.mark.usefixtures("producing")
FIELDS: dict[str, Any] = {"prompt": "on it goes", "video_url": "https://example.com/a.mp4"}


def test_enqueue_commits_row_and_rings(db, read_doorbells) -> None:
    job = producer.enqueue(**FIELDS, tenant="t", priority=5, labels={"a": "b"}, num_frames=49)

    assert isinstance(job, Job)
    assert read_job(db, job.id) == job
    assert (job.state, job.tenant, job.priority, job.labels) == (
        JobState.QUEUED,
        "t",
        5,
        {"a": "b"},
    )
    assert job.input["num_frames"] == 49
    assert job.input["fps"] == 24.0, "defaults are written out"
    assert isinstance(job.input["seed"], int), "a seed is drawn"
    assert read_doorbells() == [str(job.id)]


def test_enqueue_rings_only_for_committed_row(db, monkeypatch) -> None:
    seen: list[str] = []
    with open_black_hole() as hole:
        monkeypatch.setenv("BROKER_URL", hole.redis_url)

        def look() -> None:
            with db.reading() as connection:
                rows = connection.exec_driver_sql("SELECT state FROM jobs").scalars().all()
            seen.extend(rows)

        hole.on_connect = look
        producer.enqueue(**FIELDS)
    assert seen[:1] == ["queued"]


def test_enqueue_same_id_gives_same_job_and_rings_once(read_doorbells) -> None:
    chosen = uuid4()
    first = producer.enqueue(**FIELDS, job_id=str(chosen))

    assert producer.enqueue(**FIELDS, job_id=chosen) == first
    assert first.id == chosen
    assert read_doorbells() == [str(chosen)]


def test_enqueue_same_key_gives_same_job_within_tenant() -> None:
    first = producer.enqueue(**FIELDS, idempotency_key="k")
    assert producer.enqueue(**FIELDS, idempotency_key="k").id == first.id
    assert producer.enqueue(**FIELDS, idempotency_key="k", tenant="other").id != first.id


@pytest.mark.both_databases
def test_enqueue_same_key_at_once_gives_one_job(read_doorbells) -> None:
    producer.get_runtime()
    jobs = call_together(*[lambda: producer.enqueue(**FIELDS, idempotency_key="k")] * 6)

    assert len({job.id for job in jobs}) == 1
    assert read_doorbells() == [str(jobs[0].id)]


def test_enqueue_same_key_with_other_input_is_refused(read_doorbells) -> None:
    producer.enqueue(**FIELDS, idempotency_key="k")
    read_doorbells()
    with pytest.raises(IdempotencyConflictError, match="k belongs to a job with another input"):
        producer.enqueue(**(FIELDS | {"prompt": "another"}), idempotency_key="k")
    assert read_doorbells() == []


def test_enqueue_wrong_wish_names_every_field_and_writes_nothing(db, read_doorbells) -> None:
    with pytest.raises(InvalidInputError) as caught:
        producer.enqueue(
            prompt=" ", num_frames=1, fpss=3, job_id="x", tenant="", priority=101, labels={"": "b"}
        )

    fields = {violation.field for violation in caught.value.violations}
    assert fields == {
        "prompt",
        "video_url",
        "num_frames",
        "fpss",
        "job_id",
        "tenant",
        "priority",
        "labels",
    }
    with db.reading() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM jobs").scalar_one() == 0
    assert read_doorbells() == []


@pytest.mark.parametrize("away", ["refusing", "silent"])
def test_enqueue_without_broker_still_returns_committed_job(db, monkeypatch, away) -> None:
    with open_black_hole() as hole:
        port = hole.port if away == "silent" else find_closed_port()
        monkeypatch.setenv("BROKER_URL", f"redis://127.0.0.1:{port}/0")
        started = time.monotonic()
        job = producer.enqueue(**FIELDS)
        assert time.monotonic() - started < 2.5

    assert read_job(db, job.id).state is JobState.QUEUED


def test_enqueue_without_table_raises_and_rings_for_nobody(monkeypatch, read_doorbells) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///empty.db")
    with pytest.raises(DBAPIError, match="jobs"):
        producer.enqueue(**FIELDS)
    assert read_doorbells() == []


def test_enqueue_with_wrong_settings_names_them(monkeypatch) -> None:
    monkeypatch.setenv("LEASE_SECONDS", "soon")
    with pytest.raises(InvalidSettingsError, match="LEASE_SECONDS=soon"):
        producer.enqueue(**FIELDS)


def test_five_lines_of_another_service_enqueue(tmp_path, database_url, redis_url, db) -> None:
    script = (
        "from worker.producer import enqueue\n"
        "job = enqueue(prompt='on it goes', video_url='https://example.com/a.mp4')\n"
        "print(job.id)\n"
    )
    with run_yard(tmp_path) as yard:
        settings = {"DATABASE_URL": database_url, "BROKER_URL": redis_url}
        ended = yard.run([sys.executable, "-c", script], settings)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert read_job(db, UUID(ended.stdout.strip())).state is JobState.QUEUED
    assert len(take_messages(redis_url, "extend_video.submit")) == 1
