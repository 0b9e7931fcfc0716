"""Each of the model's fields, and each option, through every door of ours to fal's."""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from pydantic import SecretStr

from tests.emulator.processes import Emulator
from tests.harness.brokers import take_messages
from tests.harness.commands import patch_runtime
from tests.harness.jobs import ENDPOINT, LEASE, list_all_jobs, read_attempts
from tests.harness.logs import preserved_logging
from tests.harness.stages import submit_job
from worker import cli, producer, tasks
from worker.fal.model import ExtendVideoInput
from worker.fal.submit import QueueClient
from worker.ground.db import Database
from worker.ground.settings import load_settings
from worker.jobs.admission import Caps
from worker.jobs.values import Job
from worker.runtime import Runtime, read_request_options
from worker.stages.admit import AdmissionPolicy
from worker.stages.submit import SubmitPolicy

# No field but `sync_mode` has its default here.
CHOSEN: dict[str, Any] = {
    "end_image_url": "https://example.com/end.png",
    "num_frames": 17,
    "video_size": {"width": 64, "height": 48},
    "generate_audio": False,
    "use_multiscale": False,
    "match_input_fps": False,
    "fps": 30.0,
    "num_inference_steps": 8,
    "video_cfg_scale": 4.5,
    "video_stg_scale": 2.0,
    "video_rescaling_scale": 0.25,
    "video_modality_scale": 1.0,
    "audio_cfg_scale": 6.5,
    "audio_stg_scale": 1.0,
    "audio_rescaling_scale": 1.0,
    "audio_modality_scale": 2.5,
    "gradient_estimation_gamma": 2.0,
    "use_restart_sampling": False,
    "scheduler": "linear_quadratic",
    "acceleration": "full",
    "camera_lora": "jib_up",
    "camera_lora_scale": 0.5,
    "negative_prompt": "",
    "seed": -(2**63),
    "enable_prompt_expansion": False,
    "enable_safety_checker": False,
    "video_output_type": "VP9 (.webm)",
    "video_quality": "low",
    "video_write_mode": "small",
    "sync_mode": False,
    "distill_lora_first_pass_scale": 0.0,
    "distill_lora_second_pass_scale": 1.0,
    "extend_direction": "backward",
    "num_context_frames": 9,
    "video_strength": 0.75,
    "audio_strength": 0.0,
    "end_image_strength": 0.125,
}
OPTIONS: dict[str, Any] = {
    "priority": "low",
    "start_timeout": 90,
    "object_expiration": 7200,
    "initial_acl": {"default": "hide", "rules": [{"user": "u-1", "decision": "allow"}]},
    "tags": {"team": "video", "order": "47 11"},
    "no_retry": True,
    "disable_fallback": True,
    "store_io": True,
    "runner_hint": "sticky",
}
HEADERS = {
    "x-fal-queue-priority": "low",
    "x-fal-request-start-timeout": "90",
    "x-fal-request-timeout": "90",
    "x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 7200, '
    '"initial_acl": {"default": "hide", "rules": [{"user": "u-1", "decision": "allow"}]}}',
    "x-fal-tags": "team=video,order=47 11",
    "x-fal-no-retry": "1",
    "x-app-fal-disable-fallback": "true",
    "x-fal-disable-fallbacks": "true",
    "x-fal-store-io": "1",
    "x-fal-runner-hint": "sticky",
}
Send = Callable[[Mapping[str, Any]], None]


@pytest.fixture(autouse=True)
def environment(monkeypatch, database_url, redis_url) -> Iterator[None]:
    """What a producer has: a table and a broker. All that was opened is closed again."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("BROKER_URL", redis_url)
    runtime = Runtime(load_settings())
    for module in (producer, tasks):
        monkeypatch.setattr(module, "get_runtime", lambda: runtime)
    patch_runtime(monkeypatch, lambda: runtime)
    with preserved_logging():
        yield
    runtime.db.close()
    runtime.dispatcher.close()


@pytest.fixture(params=["celery", "python", "shell"])
def send(request, monkeypatch, redis_url) -> Send:
    """Enqueues a wish through each door in turn."""

    def send_by_celery(job_request: Mapping[str, Any]) -> None:
        """Published by nothing but Celery, and read from the broker as a worker reads it."""
        take_messages(redis_url, "extend_video")
        with Celery("producer", broker=redis_url, set_as_current=False) as app:
            app.send_task("extend_video.enqueue", kwargs=dict(job_request), queue="extend_video")
        [message] = take_messages(redis_url, "extend_video")
        args, fields, _ = json.loads(base64.b64decode(message["body"]))
        tasks.enqueue.apply(args=args, kwargs=fields, task_id=str(uuid4()), throw=True)

    def send_by_python(job_request: Mapping[str, Any]) -> None:
        producer.enqueue(**job_request)

    def send_by_shell(job_request: Mapping[str, Any]) -> None:
        monkeypatch.setattr("sys.argv", ["extend-video", "enqueue", *write_arguments(job_request)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code

    doors = {"celery": send_by_celery, "python": send_by_python, "shell": send_by_shell}
    return doors[request.param]


def write_arguments(job_request: Mapping[str, Any]) -> list[str]:
    """As somebody types them."""
    fields = dict(job_request)
    options = fields.pop("fal_options", {})
    known = ["--prompt", fields.pop("prompt"), "--video", fields.pop("video_url")]
    texts = [part for pair in fields.items() for part in ("--set", write_pair(*pair))]
    return [*known, *texts] + [
        part for pair in options.items() for part in ("--fal-option", write_pair(*pair))
    ]


def write_pair(name: str, value: object) -> str:
    match value:
        case {"width": width, "height": height}:
            return f"{name}={width}x{height}"
        case {"default": _}:
            return f"{name}={json.dumps(value)}"
        case dict():
            return f"{name}={','.join(f'{key}={text}' for key, text in value.items())}"
        case str():
            return f"{name}={value}"
        case _:
            return f"{name}={json.dumps(value)}"


@pytest.fixture
def submit(db, emulator, send) -> Callable[[Mapping[str, Any]], tuple[Job, dict[str, Any]]]:
    """Sends a wish and submits its job; the job, and the one request that reached fal."""

    def submit(job_request: Mapping[str, Any]) -> tuple[Job, dict[str, Any]]:
        send(job_request)
        job = submit_only_job(db, emulator)
        requests = emulator.list_requests()
        [request] = [one for one in requests if one["input"]["prompt"] == job_request["prompt"]]
        return job, request

    return submit


def submit_only_job(db: Database, emulator: Emulator) -> Job:
    with db.reading() as connection:
        [job] = list_all_jobs(connection)
    policy = SubmitPolicy(
        worker="w:1",
        webhook_base_url="http://127.0.0.1:9",
        options=read_request_options(load_settings()),
        lease=LEASE,
        poll_after=LEASE,
        retry_for=timedelta(days=1),
        probe_after=LEASE,
        admission=AdmissionPolicy(Caps(1000), ENDPOINT),
    )
    queue = QueueClient(emulator.url, SecretStr("emulator-key"))
    moved = submit_job(job, db=db, queue=queue, policy=policy)
    queue.close()
    assert moved is not None
    return moved


def build_wish(emulator: Emulator, **fields: object) -> dict[str, Any]:
    url = f"{emulator.url}/files/ready.mp4"
    return {"prompt": f"on it goes {uuid4()}", "video_url": url, **fields}


def describe_types(value: object) -> object:
    """Equal only with the very types of JSON: 24 is not 24.0, and true is not 1."""
    if isinstance(value, Mapping):
        return {name: describe_types(inner) for name, inner in value.items()}
    return (type(value).__name__, value)


def test_each_field_arrives_with_its_very_type(emulator, submit) -> None:
    job_request = build_wish(emulator, **CHOSEN)
    assert list(job_request) == list(ExtendVideoInput.model_fields)

    _, request = submit(job_request)

    for name, value in job_request.items():
        assert describe_types(request["input"][name]) == describe_types(value), name
    assert len(request["input"]) == len(job_request) == 39


def test_each_option_arrives_as_its_header_and_is_on_record(db, emulator, submit) -> None:
    job, request = submit(build_wish(emulator, fal_options=OPTIONS))

    assert {name: request["headers"].get(name) for name in HEADERS} == HEADERS
    assert job.options == OPTIONS
    [attempt] = read_attempts(db, job.id)
    assert attempt.options == OPTIONS


@pytest.mark.parametrize("send", ["python"], indirect=True)
def test_fields_left_out_arrive_with_their_defaults(emulator, submit) -> None:
    job_request = build_wish(emulator)
    defaults = {
        name: field.get_default()
        for name, field in ExtendVideoInput.model_fields.items()
        if not field.is_required() and name != "seed"
    }

    _, request = submit(job_request)

    arrived = dict(request["input"])
    assert isinstance(arrived.pop("seed"), int)
    assert describe_types(arrived) == describe_types(json.loads(json.dumps(defaults)) | job_request)


@pytest.mark.parametrize("send", ["celery", "shell"], indirect=True)
def test_numbers_given_as_integers_arrive_as_numbers(emulator, submit) -> None:
    """JSON has one kind of number, and a shell has none."""
    whole = {"fps": 30, "video_cfg_scale": 20, "video_strength": 1, "audio_stg_scale": 0}
    _, request = submit(build_wish(emulator, **whole))
    kinds = {name: describe_types(request["input"][name]) for name in whole}
    assert kinds == {name: ("float", float(value)) for name, value in whole.items()}
