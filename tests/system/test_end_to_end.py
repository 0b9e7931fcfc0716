"""One wish, from another service to a video in the archive, on both databases."""

import hashlib
import json
from itertools import pairwise
from urllib.parse import unquote, urlsplit
from uuid import UUID

import pytest

from tests.emulator.clips import probe
from tests.system.producers import CELERY_PRODUCER, PYTHON_PRODUCER, run_python
from tests.system.rows import Row
from tests.system.scene import SOURCE_FRAMES, Scene, same_json

PATH = ["queued", "submitting", "submitted", "completed", "archiving", "archived"]
NO_BROKER = "redis+socket:///nowhere/redis.sock"
TIMES = ["enqueued_at", "submitted_at", "completed_at", "archived_at"]
MANY = 25


def send_wish(scene: Scene, job_id: UUID, **fields: object) -> None:
    job_request = json.dumps({"job_id": str(job_id), **scene.build_fields(**fields)})
    run_python(scene, CELERY_PRODUCER, scene.deployment.settings["BROKER_URL"], job_request)


def find_archived(job: Row) -> str:
    uri = urlsplit(job["archive_uri"])
    assert uri.scheme == "file"
    return unquote(uri.path)


@pytest.mark.slow  # a Python starts, and imports Celery
def test_producer_with_only_celery_gets_its_video_archived(scene):
    job_id = UUID("018f0000-0000-7000-8000-0000000e2e01")
    send_wish(scene, job_id, prompt="Ein Schwenk über \U0001f30a, „weiter“ \\u0041 %s", fps=30)

    job = scene.table.wait_for_end(job_id)

    events = scene.table.list_events(job_id)
    assert [event["to_state"] for event in events] == PATH
    assert [event["from_state"] for event in events] == [None, *PATH[:-1]]
    assert job["due_at"] is job["claimed_by"] is job["blocked_reason"] is job["error_code"] is None
    [attempt] = scene.table.list_attempts(job_id)
    assert (attempt["number"], attempt["outcome"]) == (1, "accepted")
    assert attempt["fal_request_id"] == job["fal_request_id"]
    [delivery] = scene.table.list_deliveries(job_id)
    assert (delivery["status"], delivery["times_received"]) == ("OK", 1)
    assert delivery["fal_request_id"] == job["fal_request_id"]
    assert delivery["attempt_id"] == attempt["id"]
    assert json.loads(delivery["body"])["payload"] == job["result"]
    assert all(earlier <= later for earlier, later in pairwise(job[name] for name in TIMES))
    moments = [event["at"] for event in events]
    assert moments == sorted(moments)
    assert (moments[0], moments[-1]) == (job["enqueued_at"], job["archived_at"])
    assert job["enqueued_at"] <= attempt["started_at"] <= attempt["ended_at"]


def test_archived_file_holds_source_and_new_frames(scene):
    job_id = scene.enqueue(num_frames=17, num_context_frames=6)
    job = scene.table.wait_for_end(job_id)

    path = find_archived(job)
    [archived] = scene.list_archived(job_id)
    assert str(archived) == path
    assert archived.name == f"{job_id}.mp4"
    content = archived.read_bytes()
    assert hashlib.sha256(content).hexdigest() == job["archive_sha256"]
    assert len(content) == job["archive_bytes"] == job["result"]["video"]["file_size"]
    assert probe(archived).frames == SOURCE_FRAMES + 17 - 6


def test_fal_gets_each_of_39_fields_exactly_as_stored(scene):
    job_id = scene.enqueue(
        fps=30, video_size={"width": 64, "height": 48}, seed=2**40 + 1, negative_prompt=""
    )
    job = scene.table.wait_for_end(job_id)

    [submission] = scene.list_submissions(job)
    assert len(job["input"]) == 39
    assert same_json(submission["input"], job["input"])
    assert submission["request_id"] == job["fal_request_id"]
    [attempt] = scene.table.list_attempts(job_id)
    assert same_json(attempt["input"], job["input"])
    webhook = submission["webhook_url"]
    assert webhook.startswith(scene.deployment.settings["WEBHOOK_BASE_URL"] + "/webhooks/fal/")
    token = webhook.rpartition("/")[2]
    assert hashlib.sha256(token.encode()).hexdigest() == attempt["token_hash"]


@pytest.mark.slow  # a Python that starts, and a job that only a sweep finds
def test_python_producer_keeps_its_row_without_a_broker(sqlite_scene):
    scene = sqlite_scene
    fields = json.dumps(scene.build_fields(tenant="python", labels={"team": "a"}, priority=7))
    settings = {**scene.deployment.settings, "BROKER_URL": NO_BROKER}

    printed = run_python(scene, PYTHON_PRODUCER, fields, **settings)

    [line] = printed.splitlines()
    job = scene.table.read_job(UUID(line))
    assert (job["tenant"], job["labels"], job["priority"]) == ("python", {"team": "a"}, 7)
    assert len(scene.list_submissions(scene.table.wait_for_end(job["id"]))) == 1


def list_arguments(scene: Scene) -> list[str]:
    """The options of `extend-video enqueue` for the cheapest wish."""
    fields = scene.build_fields()
    prompt, video = fields.pop("prompt"), fields.pop("video_url")
    pairs = [part for name, value in fields.items() for part in ("--set", f"{name}={value}")]
    return ["enqueue", "--prompt", prompt, "--video", video, *pairs]


@pytest.mark.slow  # the shell starts, and waits for the archive
def test_shell_waits_for_the_archive_and_prints_every_state(sqlite_scene):
    """What fal says of the request is printed and kept, and the job's turn to ask is given back."""
    scene = sqlite_scene
    ended = scene.deployment.run(*list_arguments(scene), "--wait")

    assert ended.returncode == 0, ended.stderr
    first, *_ = ended.stdout.splitlines()
    job = scene.table.read_job(UUID(first))
    assert job["state"] == "archived"
    places = [ended.stdout.index(f" {state} ") for state in PATH]
    assert places == sorted(places)
    assert job["archive_uri"] in ended.stdout
    assert len(scene.list_submissions(job)) == 1
    assert "fal: COMPLETED, inference " in ended.stdout
    assert "Rendered 28 frames in all" in ended.stdout
    [attempt] = scene.table.list_attempts(job["id"])
    assert attempt["fal_status"] == "COMPLETED"
    assert attempt["inference_seconds"] > 0
    names = [row["name"] for row in scene.table.select("SELECT name FROM gates")]
    assert f"follow {job['id']}" not in names


@pytest.mark.slow  # so many videos are rendered and archived
def test_many_jobs_at_once_are_each_paid_and_archived_once(scene):
    tenant = "many"
    for number in range(MANY):
        scene.send("enqueue", **scene.build_fields(tenant=tenant, labels={"n": str(number)}))

    jobs = scene.table.wait_for_ends(tenant, MANY)

    assert sorted(int(job["labels"]["n"]) for job in jobs) == list(range(MANY))
    assert [len(scene.list_submissions(job)) for job in jobs] == [1] * MANY
    assert [len(scene.table.list_attempts(job["id"])) for job in jobs] == [1] * MANY
    assert [len(scene.list_archived(job["id"])) for job in jobs] == [1] * MANY
    assert scene.list_partials() == []
    assert len({job["archive_sha256"] for job in jobs}) > 1


def test_video_that_is_not_there_fails_with_fals_own_reason(sqlite_scene):
    scene = sqlite_scene
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
