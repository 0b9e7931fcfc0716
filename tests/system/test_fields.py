"""Each of the model's fields, and each option, through every door of ours to fal's."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.harness.processes import EXTEND_VIDEO
from tests.harness.waiting import wait_until
from tests.system.producers import CELERY_PRODUCER, PYTHON_PRODUCER, run_python
from tests.system.rows import Row
from tests.system.scene import Scene, describe_types
from worker.fal.extend_video import ExtendVideoInput

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
    "x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 7200}',
    "x-fal-tags": "team=video,order=47 11",
    "x-fal-no-retry": "1",
    "x-app-fal-disable-fallback": "true",
    "x-fal-disable-fallbacks": "true",
    "x-fal-store-io": "1",
    "x-fal-runner-hint": "sticky",
}
Send = Callable[[Scene, Mapping[str, Any]], None]


def send_by_celery(scene: Scene, wish: Mapping[str, Any]) -> None:
    run_python(scene, CELERY_PRODUCER, scene.deployment.settings["BROKER_URL"], json.dumps(wish))


def send_by_python(scene: Scene, wish: Mapping[str, Any]) -> None:
    run_python(scene, PYTHON_PRODUCER, json.dumps(wish), **pick_settings(scene))


def send_by_shell(scene: Scene, wish: Mapping[str, Any]) -> None:
    fields = dict(wish)
    known = ["--prompt", fields.pop("prompt"), "--video", fields.pop("video_url")]
    options = fields.pop("fal_options", {})
    pairs = [part for name, value in fields.items() for part in ("--set", write_pair(name, value))]
    told = [
        part
        for name, value in options.items()
        for part in ("--fal-option", write_pair(name, value))
    ]
    command = [EXTEND_VIDEO, "enqueue", *known, *pairs, *told]
    ended = scene.deployment.yard.run(command, pick_settings(scene))
    assert ended.returncode == 0, ended.stderr


def write_pair(name: str, value: object) -> str:
    """As somebody types it."""
    if name == "video_size" and isinstance(value, Mapping):
        return f"{name}={value['width']}x{value['height']}"
    return f"{name}={value if isinstance(value, str) else json.dumps(value)}"


def pick_settings(scene: Scene) -> dict[str, str]:
    """What a producer has: a table and a broker."""
    return {name: scene.deployment.settings[name] for name in ("DATABASE_URL", "BROKER_URL")}


DOORS: dict[str, Send] = {
    "celery": send_by_celery,
    "python": send_by_python,
    "shell": send_by_shell,
}


def submit(scene: Scene, send: Send, wish: Mapping[str, Any]) -> tuple[Row, dict[str, Any]]:
    """The job, and the one request that reached fal."""
    send(scene, wish)

    def find_jobs() -> list[Row]:
        jobs = scene.table.select("SELECT * FROM jobs")
        return [job for job in jobs if job["input"]["prompt"] == wish["prompt"]]

    wait_until(lambda: len(find_jobs()) > 0)
    [job] = find_jobs()
    # Its own doorbell may be lost where a machine is busy; a second one does no harm.
    scene.send("submit", str(job["id"]))
    wait_until(lambda: len(scene.list_submissions(job)) > 0)
    [request] = scene.list_submissions(job)
    return job, request


def build_wish(scene: Scene, door: str, case: str) -> dict[str, Any]:
    return {"prompt": f"on it goes: {case} by {door}", "video_url": scene.emulator.sample_url}


@pytest.mark.parametrize("door", DOORS)
def test_each_field_arrives_with_its_very_type_and_each_option_as_header(
    sqlite_scene, door
) -> None:
    wish = build_wish(sqlite_scene, door, "each field") | CHOSEN
    assert list(wish) == list(ExtendVideoInput.model_fields)
    options = OPTIONS | ({"tags": "team=video,order=47 11"} if door == "shell" else {})

    job, request = submit(sqlite_scene, DOORS[door], wish | {"fal_options": options})

    for name, value in wish.items():
        assert describe_types(request["input"][name]) == describe_types(value), name
    assert len(request["input"]) == len(wish) == 39
    assert {name: request["headers"].get(name) for name in HEADERS} == HEADERS
    assert job["options"] == OPTIONS


@pytest.mark.parametrize("door", DOORS)
def test_fields_left_out_arrive_with_their_defaults(sqlite_scene, door) -> None:
    wish = build_wish(sqlite_scene, door, "defaults") | {"num_frames": 9, "num_context_frames": 5}
    arrived = submit(sqlite_scene, DOORS[door], wish)[1]["input"]
    defaults = {
        name: field.get_default()
        for name, field in ExtendVideoInput.model_fields.items()
        if not field.is_required() and name != "seed"
    }
    expected = json.loads(json.dumps(defaults)) | wish
    assert isinstance(arrived.pop("seed"), int)
    assert describe_types(arrived) == describe_types(expected)


@pytest.mark.parametrize("door", DOORS)
def test_numbers_given_as_integers_arrive_as_numbers(sqlite_scene, door) -> None:
    """JSON has one kind of number, and a shell has none."""
    whole = {"fps": 30, "video_cfg_scale": 20, "video_strength": 1, "audio_stg_scale": 0}
    wish = build_wish(sqlite_scene, door, "integers") | whole
    wish |= {"num_frames": 9, "num_context_frames": 5}
    arrived = submit(sqlite_scene, DOORS[door], wish)[1]["input"]
    kinds = {name: (type(arrived[name]), arrived[name]) for name in whole}
    assert kinds == {name: (float, float(value)) for name, value in whole.items()}
    assert type(arrived["num_frames"]) is int
