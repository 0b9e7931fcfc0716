"""`extend-video schema`: against the emulator's published document, and against files."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulator.processes import Emulator, start_emulator
from tests.harness.commands import Ended, build_run
from tests.harness.web import run_server, send_json

ENDPOINT = "fal-ai/ltx-2.3-22b/extend-video"
Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def fal(tmp_path_factory) -> Iterator[Emulator]:
    with start_emulator(tmp_path_factory.mktemp("fal"), "--render", "fake") as emulator:
        yield emulator


@pytest.fixture
def run(monkeypatch, capsys) -> Run:
    run_command = build_run(monkeypatch, capsys)

    def run_schema(*arguments: str, platform: str = "http://127.0.0.1:9/v1") -> Ended:
        monkeypatch.setenv("FAL_PLATFORM_URL", platform)
        return run_command("schema", *arguments)

    return run_schema


@pytest.fixture
def published(fal) -> dict[str, Any]:
    """The platform's reply of the emulator."""
    params = {"endpoint_id": ENDPOINT, "expand": "openapi-3.0"}
    return dict(fal.client.get("/v1/models", params=params).json())


@pytest.fixture
def save(tmp_path) -> Callable[[object], str]:
    def write(document: object) -> str:
        path = Path(tmp_path) / "openapi.json"
        path.write_text(json.dumps(document))
        return str(path)

    return write


def find_fields(published: dict[str, Any]) -> dict[str, Any]:
    """The input's properties inside the reply, to be changed there."""
    schemas = published["models"][0]["openapi"]["components"]["schemas"]
    properties: dict[str, Any] = schemas["Ltx2322bExtendVideoInput"]["properties"]
    return properties


# What fal has changed since the model's page was written, with the emulator as fal is now.
NEWER_DEFAULTS = {
    "num_inference_steps",
    "video_stg_scale",
    "video_rescaling_scale",
    "gradient_estimation_gamma",
    "use_restart_sampling",
    "scheduler",
    "acceleration",
}


def test_emulators_document_differs_from_our_model_in_newer_defaults_only(fal, run) -> None:
    """Two tables of the 39 fields, written apart, agree in every type, range and value."""
    ended = run(platform=f"{fal.url}/v1")
    assert (ended.code, ended.err) == (0, "")
    same, explained, *defaults = ended.out.splitlines()
    assert f"{ENDPOINT} are as our model has them" in same
    assert "every field is sent: ADR 6" in explained
    named = {line.split(":")[0].strip().removeprefix("input.") for line in defaults}
    assert named == NEWER_DEFAULTS


def test_drifted_document_in_a_file_ends_with_1_and_names_each_difference(
    run, published, save
) -> None:
    given = find_fields(published)
    given["num_frames"]["maximum"] = 241
    del given["fps"]
    given["lora"] = {"type": "string"}

    ended = run("--file", save(published["models"][0]["openapi"]))

    assert (ended.code, ended.err) == (1, "")
    assert ended.out.splitlines()[:3] == [
        "~ input.num_frames: range: ours 9..481, fal's 9..241",
        "- input.fps: was number, 1..60, default 24",
        "+ input.lora: string, default none",
    ]


def test_other_default_counts_only_where_it_is_asked_for(run, published, save) -> None:
    file = save(published)
    assert run("--file", file).code == 0
    ended = run("--file", file, "--json", "--strict-defaults")
    assert (ended.code, ended.err, ended.json["drift"]) == (1, "", [])
    assert ended.json["defaults"][0] == {
        "change": "changed",
        "field": "input.num_inference_steps",
        "aspect": "default",
        "ours": "15",
        "theirs": "40",
    }


def test_nothing_to_compare_with_ends_with_2(run, tmp_path) -> None:
    (tmp_path / "odd.json").write_text("{")
    for name, reason in (("odd.json", "schema_unreadable: "), ("nothing.json", "No such file")):
        ended = run("--file", str(tmp_path / name))
        assert (ended.code, ended.out) == (2, "")
        assert reason in ended.err
    with run_server(send_json({"error": {"type": "not_found"}}, 404)) as server:
        ended = run(platform=f"{server.url}/v1")
    assert (ended.code, ended.out) == (2, "")
    assert ": HTTP 404, not_found" in ended.err
