"""Messages that come twice, late, never, or with nonsense in them."""

import json
from uuid import uuid4

import pytest
import redis

from tests.system.producers import PYTHON_PRODUCER, run_python
from tests.system.scene import Scene

GARBAGE = [("not-a-uuid",), (None,), (17,), ({"id": 1},), (), ("a", "b"), ("é" * 5000,)]

STEPS = ("submit", "reconcile", "archive", "cancel")


def count_jobs(scene: Scene) -> int:
    [row] = scene.table.select("SELECT count(*) AS n FROM jobs")
    return int(row["n"])


def assert_worker_is_well(scene: Scene) -> None:
    """It still takes the next wish to its end."""
    scene.table.wait_for_end(scene.enqueue())


def wait_for_refusal(scene: Scene, marker: str) -> dict[str, str]:
    """The first line in which the worker tells why it refused the wish with this marker."""
    scene.deployment.submitter.wait_for_log(marker)
    lines = scene.deployment.submitter.read_log().splitlines()
    refused = [line for line in lines if marker in line and "enqueue_refused" in line]
    assert refused, [line for line in lines if marker in line]
    return dict(json.loads(refused[0]))


def test_wish_sent_twice_with_one_key_is_one_job(scene):
    tenant = f"twice-{uuid4()}"
    wishes = [scene.build_fields(tenant=tenant, idempotency_key=f"key {n}") for n in range(5)]
    for wish in [*wishes, *wishes]:
        scene.send("enqueue", **wish)

    jobs = scene.table.wait_for_ends(tenant, 5)

    assert len(jobs) == 5
    assert [len(scene.list_submissions(job)) for job in jobs] == [1] * 5


def test_message_delivered_twice_is_one_job(scene):
    tenant = f"redelivered-{uuid4()}"
    task_id, wish = str(uuid4()), scene.build_fields(tenant=tenant)
    for _ in range(3):
        scene.send("enqueue", task_id=task_id, **wish)
    assert_worker_is_well(scene)

    [job] = scene.table.wait_for_ends(tenant, 1)

    assert len(scene.list_submissions(job)) == 1


def test_two_wishes_alike_are_two_jobs(scene):
    tenant = f"alike-{uuid4()}"
    wish = scene.build_fields(tenant=tenant)
    for _ in range(2):
        scene.send("enqueue", **wish)

    jobs = scene.table.wait_for_ends(tenant, 2)

    assert len(jobs) == 2
    assert len({job["input"]["seed"] for job in jobs}) == 2


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


def test_doorbells_after_the_end_change_nothing(scene):
    job_id = scene.enqueue()
    before = scene.table.wait_for_end(job_id)
    for task in STEPS:
        scene.send(task, str(job_id))
    assert_worker_is_well(scene)

    assert scene.table.read_job(job_id) == before
    assert len(scene.list_submissions(before)) == 1


@pytest.mark.parametrize("task", STEPS)
def test_doorbells_for_nobody_change_nothing(scene, task):
    before, submissions = count_jobs(scene), len(scene.emulator.list_requests())
    scene.send(task, str(uuid4()))
    for arguments in GARBAGE:
        scene.send(task, *arguments)
    assert_worker_is_well(scene)

    assert count_jobs(scene) == before + 1
    assert len(scene.emulator.list_requests()) == submissions + 1


def test_doorbell_with_a_garbage_id_is_a_line_in_the_log_and_no_traceback(sqlite_scene):
    worker, marker = sqlite_scene.deployment.submitter, f"no-id-{uuid4().hex}"
    assert_worker_is_well(sqlite_scene)
    before = worker.read_log().count("Traceback")
    sqlite_scene.send("submit", marker)
    assert_worker_is_well(sqlite_scene)

    assert worker.read_log().count("Traceback") == before
    assert marker in worker.read_log()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_frames", 100_000),
        ("fps", "fast"),
        ("video_url", "ftp://example.com/a.mp4"),
        ("video_size", {"width": -1, "height": 5}),
        ("prompt", None),
        ("no_such_field", 1),
        ("priority", 101),
        ("job_id", "not-a-uuid"),
        ("labels", ["a"]),
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
    assert_worker_is_well(scene)


def test_positional_arguments_make_no_row(scene):
    before, marker = count_jobs(scene), f"positional-{uuid4()}"
    scene.send("enqueue", marker, **scene.build_fields())

    refusal = wait_for_refusal(scene, marker)

    assert "args" in refusal["reason"]
    assert_worker_is_well(scene)
    assert count_jobs(scene) == before + 1


def test_key_with_another_input_is_refused_and_the_first_job_stays(scene):
    tenant, key = f"conflict-{uuid4()}", f"key-{uuid4()}"
    first = scene.build_fields(tenant=tenant, idempotency_key=key)
    scene.send("enqueue", **first)
    [job] = scene.table.wait_for_ends(tenant, 1)
    scene.send("enqueue", **{**first, "num_frames": 10})

    refusal = wait_for_refusal(scene, key)

    assert refusal["code"] == "idempotency_conflict"
    assert scene.table.list_jobs(tenant) == [job]
    assert_worker_is_well(scene)


def test_secrets_never_reach_the_log(scene):
    assert_worker_is_well(scene)
    [last, *_] = reversed(scene.emulator.list_requests())
    token = last["webhook_url"].rpartition("/")[2]

    logs = [part.read_log() for part in scene.deployment.yard.parts.values()]

    assert not [log for log in logs if token in log or "emulator-key" in log]


def test_messages_lost_by_the_broker_are_healed_by_two_sweeps(scene):
    worker, broker = scene.deployment.submitter, scene.deployment.settings["BROKER_URL"]
    second = scene.deployment.start_beat("second beat")
    tenant = f"lost-{uuid4()}"
    wishes = [json.dumps(scene.build_fields(tenant=tenant)) for _ in range(5)]
    with worker.standing_still():
        run_python(scene, PYTHON_PRODUCER, *wishes, **scene.deployment.settings)
        with redis.Redis(unix_socket_path=broker.removeprefix("redis+socket://")) as client:
            # the paused worker has asked for a message already, and gets the first one
            assert client.llen("extend_video.submit") >= 4
            client.flushall()

    jobs = scene.table.wait_for_ends(tenant, 5)

    second.end()
    assert [len(scene.list_submissions(job)) for job in jobs] == [1] * 5


def test_video_that_is_not_there_fails_with_fals_own_reason(scene):
    job_id = scene.enqueue(video_url=f"{scene.emulator.url}/files/none.mp4")

    job = scene.table.wait_for_end(job_id, "failed")

    assert job["error_code"] == "file_download_error"
    assert "download" in job["error_message"]
    assert job["failed_at"] is not None
    assert job["due_at"] is job["archive_uri"] is job["archived_at"] is None
    [delivery] = scene.table.list_deliveries(job_id)
    assert delivery["status"] == "ERROR"
    assert json.loads(delivery["body"])["payload"]["detail"][0]["type"] == "file_download_error"
    assert [event["to_state"] for event in scene.table.list_events(job_id)][-1] == "failed"
    assert scene.list_archived(job_id) == []
    assert len(scene.list_submissions(job)) == 1
