"""One wish, from another service to a video in the archive, on both databases."""

import hashlib
import json
from itertools import pairwise
from urllib.parse import unquote, urlsplit
from uuid import UUID

from tests.emulator.clips import probe
from tests.system.producers import CELERY_PRODUCER, PYTHON_PRODUCER, run_python
from tests.system.rows import Row
from tests.system.scene import SOURCE_FRAMES, Scene, same_json

PATH = ["queued", "submitting", "submitted", "completed", "archiving", "archived"]
NO_BROKER = "redis+socket:///nowhere/redis.sock"
TIMES = ["enqueued_at", "submitted_at", "completed_at", "archived_at"]


def send_wish(scene: Scene, job_id: UUID, **fields: object) -> None:
    wish = json.dumps({"job_id": str(job_id), **scene.build_fields(**fields)})
    run_python(scene, CELERY_PRODUCER, scene.deployment.settings["BROKER_URL"], wish)


def find_archived(job: Row) -> str:
    uri = urlsplit(job["archive_uri"])
    assert uri.scheme == "file"
    return unquote(uri.path)


def test_producer_with_only_celery_gets_its_video_archived(scene):
    job_id = UUID("018f0000-0000-7000-8000-0000000e2e01")
    send_wish(scene, job_id, prompt="Ein Schwenk über \U0001f30a, „weiter“ \\u0041 %s", fps=30)

    job = scene.table.wait_for_end(job_id)

    assert [event["to_state"] for event in scene.table.list_events(job_id)] == PATH
    assert [event["from_state"] for event in scene.table.list_events(job_id)] == [None, *PATH[:-1]]
    assert job["due_at"] is job["claimed_by"] is job["blocked_reason"] is job["error_code"] is None
    [attempt] = scene.table.list_attempts(job_id)
    assert (attempt["number"], attempt["outcome"]) == (1, "accepted")
    assert attempt["fal_request_id"] == job["fal_request_id"]
    [delivery] = scene.table.list_deliveries(job_id)
    assert (delivery["status"], delivery["times_received"]) == ("OK", 1)
    assert delivery["fal_request_id"] == job["fal_request_id"]
    assert delivery["attempt_id"] == attempt["id"]
    assert json.loads(delivery["body"])["payload"] == job["result"]


def test_times_of_an_archived_job_are_in_order(scene):
    job_id = scene.enqueue()
    job = scene.table.wait_for_end(job_id)

    assert all(earlier <= later for earlier, later in pairwise(job[name] for name in TIMES))
    moments = [event["at"] for event in scene.table.list_events(job_id)]
    assert moments == sorted(moments)
    assert (moments[0], moments[-1]) == (job["enqueued_at"], job["archived_at"])
    [attempt] = scene.table.list_attempts(job_id)
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


def test_python_producer_keeps_its_row_without_a_broker(scene):
    fields = json.dumps(scene.build_fields(tenant="python", labels={"team": "a"}, priority=7))
    settings = {**scene.deployment.settings, "BROKER_URL": NO_BROKER}

    *_, printed = run_python(scene, PYTHON_PRODUCER, fields, **settings).splitlines()

    job = scene.table.read_job(UUID(printed))
    assert (job["tenant"], job["labels"], job["priority"]) == ("python", {"team": "a"}, 7)
    assert len(scene.list_submissions(scene.table.wait_for_end(job["id"]))) == 1


def test_python_producer_without_a_broker_leaves_stdout_to_its_caller(sqlite_scene):
    fields = json.dumps(sqlite_scene.build_fields())
    settings = {**sqlite_scene.deployment.settings, "BROKER_URL": NO_BROKER}

    printed = run_python(sqlite_scene, PYTHON_PRODUCER, fields, **settings)

    assert len(printed.splitlines()) == 1


def list_arguments(scene: Scene) -> list[str]:
    """The options of `extend-video enqueue` for the cheapest wish."""
    fields = scene.build_fields()
    prompt, video = fields.pop("prompt"), fields.pop("video_url")
    pairs = [part for name, value in fields.items() for part in ("--set", f"{name}={value}")]
    return ["enqueue", "--prompt", prompt, "--video", video, *pairs]


def test_shell_waits_for_the_archive_and_prints_every_state(scene):
    ended = scene.deployment.run(*list_arguments(scene), "--wait")

    assert ended.returncode == 0, ended.stderr
    first, *_ = ended.stdout.splitlines()
    job = scene.table.read_job(UUID(first))
    assert job["state"] == "archived"
    places = [ended.stdout.index(f" {state} ") for state in PATH]
    assert places == sorted(places)
    assert job["archive_uri"] in ended.stdout
    assert len(scene.list_submissions(job)) == 1


def test_shell_prints_the_whole_story_as_json(sqlite_scene):
    enqueued = sqlite_scene.deployment.run(*list_arguments(sqlite_scene), "--json")
    assert enqueued.returncode == 0, enqueued.stderr
    job = sqlite_scene.table.wait_for_end(UUID(json.loads(enqueued.stdout)["id"]))

    shown = sqlite_scene.deployment.run("show", str(job["id"]), "--json")

    assert shown.returncode == 0, shown.stderr
    story = json.loads(shown.stdout)
    assert {name: story[name] for name in ("state", "archive_sha256", "input", "result")} == {
        name: job[name] for name in ("state", "archive_sha256", "input", "result")
    }
    assert [event["to_state"] for event in story["events"]] == PATH
    assert [len(story[name]) for name in ("attempts", "deliveries")] == [1, 1]


def test_shell_refuses_a_wrong_field_before_any_row(sqlite_scene):
    ended = sqlite_scene.deployment.run(
        *list_arguments(sqlite_scene), "--tenant", "wrong", "--set", "fps=900"
    )

    assert ended.returncode == 2
    assert "fps=900" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert sqlite_scene.table.list_jobs("wrong") == []


def test_many_jobs_at_once_are_each_paid_and_archived_once(scene):
    tenant = "many"
    for number in range(25):
        scene.send("enqueue", **scene.build_fields(tenant=tenant, labels={"n": str(number)}))

    jobs = scene.table.wait_for_ends(tenant, 25)

    assert sorted(int(job["labels"]["n"]) for job in jobs) == list(range(25))
    assert [len(scene.list_submissions(job)) for job in jobs] == [1] * 25
    assert [len(scene.table.list_attempts(job["id"])) for job in jobs] == [1] * 25
    assert [len(scene.list_archived(job["id"])) for job in jobs] == [1] * 25
    assert scene.list_partials() == []
    assert len({job["archive_sha256"] for job in jobs}) > 1
