"""Messages that come twice, late, never, or with nonsense in them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
import redis
from sqlalchemy.exc import OperationalError

from tests.harness.poison import ENTRIES
from tests.harness.processes import Part
from tests.harness.waiting import wait_until
from tests.system.producers import PYTHON_PRODUCER, run_python
from tests.system.scene import Scene

GARBAGE = [("not-a-uuid",), (None,), (17,), ({"id": 1},), (), ("a", "b"), ("é" * 5000,)]

NOWHERE = "redis+socket:///nowhere/redis.sock"

STEPS = ("submit", "reconcile", "archive", "cancel")


def count_jobs(scene: Scene) -> int:
    [row] = scene.table.select("SELECT count(*) AS n FROM jobs")
    return int(row["n"])


def count_refused(scene: Scene) -> int:
    [row] = scene.table.select("SELECT count(*) AS n FROM job_requests WHERE state = 'refused'")
    return int(row["n"])


def assert_worker_is_well(scene: Scene) -> None:
    """It still takes the next wish to its end."""
    scene.table.wait_for_end(scene.enqueue())


@contextmanager
def stopped_between_writes(scene: Scene, worker: Part) -> Iterator[None]:
    """Stop the worker where it does not hold SQLite's write lock, which would stop everybody."""
    while True:
        with worker.standing_still():
            try:
                scene.table.write_nothing()
            except OperationalError:
                continue  # let it go on, and try again
            yield
            return


def wait_for_refusal(scene: Scene, marker: str) -> dict[str, str]:
    """The first line in which the worker tells why it refused the wish with this marker."""
    scene.deployment.submitter.wait_for_log(marker)
    lines = scene.deployment.submitter.read_log().splitlines()
    refused = [line for line in lines if marker in line and "enqueue_refused" in line]
    assert refused, [line for line in lines if marker in line]
    return dict(json.loads(refused[0]))


def test_wish_sent_twice_with_one_key_is_one_job(scene):
    tenant = f"twice-{uuid4()}"
    job_requests = [scene.build_fields(tenant=tenant, idempotency_key=f"key {n}") for n in range(5)]
    for job_request in [*job_requests, *job_requests]:
        scene.send("enqueue", **job_request)

    jobs = scene.table.wait_for_ends(tenant, 5)

    assert len(jobs) == 5
    assert [len(scene.list_submissions(job)) for job in jobs] == [1] * 5


def test_message_delivered_twice_is_one_job_and_two_wishes_alike_are_two(sqlite_scene):
    scene = sqlite_scene
    redelivered, alike = f"redelivered-{uuid4()}", f"alike-{uuid4()}"
    task_id, job_request = str(uuid4()), scene.build_fields(tenant=redelivered)
    for _ in range(3):
        scene.send("enqueue", task_id=task_id, **job_request)
    for _ in range(2):
        scene.send("enqueue", **{**job_request, "tenant": alike})

    first, second = scene.table.wait_for_ends(alike, 2)
    [job] = scene.table.wait_for_ends(redelivered, 1)

    assert first["input"]["seed"] != second["input"]["seed"]
    assert len(scene.list_submissions(job)) == 3, "one for each job with this prompt"


def test_doorbells_doubled_by_hand_pay_once(scene):
    job_ids = [scene.enqueue() for _ in range(3)]
    for _ in range(5):
        for job_id in job_ids:
            for task in STEPS:
                scene.send(task, str(job_id))

    for job_id in job_ids:
        job = scene.table.wait_for_end(job_id)
        assert len(scene.list_submissions(job)) == 1
        assert [one["outcome"] for one in scene.table.list_attempts(job_id)] == ["accepted"]


def test_doorbells_after_the_end_and_for_nobody_change_nothing(sqlite_scene):
    scene, worker, marker = sqlite_scene, sqlite_scene.deployment.submitter, f"no-{uuid4().hex}"
    job_id = scene.enqueue()
    ended = scene.table.wait_for_end(job_id)
    jobs, submissions = count_jobs(scene), len(scene.emulator.list_requests())
    for task in STEPS:
        scene.send(task, str(job_id))
        scene.send(task, str(uuid4()))
        for arguments in (*GARBAGE, (marker,)):
            scene.send(task, *arguments)
    assert_worker_is_well(scene)

    assert scene.table.read_job(job_id) == ended
    assert count_jobs(scene) == jobs + 1
    assert len(scene.emulator.list_requests()) == submissions + 1
    # A submission is of the next job, whatever its message says; the others name what they refuse.
    told = [line for line in worker.read_log().splitlines() if marker in line]
    assert len(told) >= len(STEPS) - 1
    assert not [line for line in told if "Traceback" in line]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_frames", 100_000),
        ("video_url", "ftp://example.com/a.mp4"),
        ("no_such_field", 1),
        ("job_id", "not-a-uuid"),
    ],
)
def test_wrong_field_makes_no_row_and_is_named_in_the_log(sqlite_scene, field, value):
    scene, tenant = sqlite_scene, f"wrong-{uuid4()}"
    marker = f"odd_{uuid4().hex}"
    # the marker is a second wrong field: both are told at once
    scene.send("enqueue", **scene.build_fields(tenant=tenant, **{field: value, marker: 1}))

    refusal = wait_for_refusal(scene, marker)

    assert refusal["code"] == "invalid_input"
    assert field in refusal["reason"]
    assert scene.table.list_jobs(tenant) == []


def test_positional_arguments_make_no_row(sqlite_scene):
    scene = sqlite_scene
    before, marker = count_jobs(scene), f"positional-{uuid4()}"
    scene.send("enqueue", marker, **scene.build_fields())

    refusal = wait_for_refusal(scene, marker)

    assert "args" in refusal["reason"]
    assert_worker_is_well(scene)
    assert count_jobs(scene) == before + 1


def test_key_with_another_input_is_refused_and_the_first_job_stays(sqlite_scene):
    scene, tenant, key = sqlite_scene, f"conflict-{uuid4()}", f"key-{uuid4()}"
    first = scene.build_fields(tenant=tenant, idempotency_key=key)
    scene.send("enqueue", **first)
    [job] = scene.table.wait_for_ends(tenant, 1)
    scene.send("enqueue", **{**first, "num_frames": 10})

    refusal = wait_for_refusal(scene, key)

    assert refusal["code"] == "idempotency_conflict"
    assert scene.table.list_jobs(tenant) == [job]


def test_secrets_never_reach_the_log(sqlite_scene):
    scene = sqlite_scene
    assert_worker_is_well(scene)
    [last, *_] = reversed(scene.emulator.list_requests())
    token = last["webhook_url"].rpartition("/")[2]

    logs = [part.read_log() for part in scene.deployment.yard.parts.values()]

    assert not [log for log in logs if token in log or "emulator-key" in log]


@pytest.mark.slow  # a second scheduler starts, and a sweep has to come
def test_messages_lost_by_the_broker_are_healed_by_two_sweeps(scene):
    worker, broker = scene.deployment.submitter, scene.deployment.settings["BROKER_URL"]
    second = scene.deployment.start_beat("second beat")
    tenant = f"lost-{uuid4()}"
    job_requests = [json.dumps(scene.build_fields(tenant=tenant)) for _ in range(5)]
    with stopped_between_writes(scene, worker):
        run_python(scene, PYTHON_PRODUCER, *job_requests, **scene.deployment.settings)
        with redis.Redis(unix_socket_path=broker.removeprefix("redis+socket://")) as client:
            # the paused worker has asked for a message already, and gets the first one
            assert client.llen("extend_video.submit") >= 4
            client.flushall()

    jobs = scene.table.wait_for_ends(tenant, 5)

    second.end()
    assert [len(scene.list_submissions(job)) for job in jobs] == [1] * 5


def read_refusals(worker: Part) -> list[dict[str, Any]]:
    lines = worker.read_log().splitlines()
    return [json.loads(line) for line in lines if '"enqueue_refused"' in line]


def test_every_poisonous_entry_is_refused_alone_and_the_worker_goes_on(sqlite_scene):
    scene, worker = sqlite_scene, sqlite_scene.deployment.submitter
    jobs, refused, before = count_jobs(scene), len(read_refusals(worker)), len(worker.read_log())
    rows = count_refused(scene)
    broker = scene.deployment.settings["BROKER_URL"].removeprefix("redis+socket://")
    with redis.Redis(unix_socket_path=broker) as client:
        for entry in ENTRIES.values():
            client.lpush("extend_video", entry.encode(errors="surrogateescape"))
        assert_worker_is_well(scene)

        wait_until(lambda: len(read_refusals(worker)) == refused + len(ENTRIES))
        wait_until(lambda: client.hlen("unacked") == 0)
    assert worker.is_running
    assert count_jobs(scene) == jobs + 1
    assert count_refused(scene) == rows + len(ENTRIES)
    said = worker.read_log()[before:]
    assert "nobody may log" not in said
    assert "Traceback" not in said
    codes = {one["code"] for one in read_refusals(worker)[refused:]}
    assert codes == {"malformed_message", "unknown_task", "message_compressed"}


@pytest.mark.slow  # three periods of the sweep have to pass
def test_lost_messages_are_healed_while_beat_is_away(sqlite_scene):
    scene, worker = sqlite_scene, sqlite_scene.deployment.submitter
    scene.deployment.yard.parts["beat"].end()
    tenant = f"no-beat-{uuid4()}"
    settings = {**scene.deployment.settings, "BROKER_URL": NOWHERE}
    run_python(scene, PYTHON_PRODUCER, json.dumps(scene.build_fields(tenant=tenant)), **settings)

    [job] = scene.table.wait_for_ends(tenant, 1)

    assert len(scene.list_submissions(job)) == 1
    worker.wait_for_log("sweep_missing")
