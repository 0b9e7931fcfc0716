"""`extend-video schema`: against the emulator's published document, and against files."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulator.processes import Emulator, start_emulator
from tests.harness.brokers import find_closed_port
from tests.harness.logs import preserved_logging
from tests.harness.web import run_server, send_body, send_json
from tests.integration.test_cli import Ended
from worker import cli

ENDPOINT = "fal-ai/ltx-2.3-22b/extend-video"
Run = Callable[..., Ended]


@pytest.fixture(autouse=True)
def logging_undone() -> Iterator[None]:
    with preserved_logging():
        yield


@pytest.fixture(scope="module")
def fal(tmp_path_factory) -> Iterator[Emulator]:
    with start_emulator(tmp_path_factory.mktemp("fal"), "--render", "fake") as emulator:
        yield emulator


@pytest.fixture
def run(monkeypatch, capsys) -> Run:
    """Runs the command in this process."""

    def run_in_process(*arguments: str, platform: str = "http://127.0.0.1:9/v1") -> Ended:
        monkeypatch.setenv("FAL_PLATFORM_URL", platform)
        monkeypatch.setattr("sys.argv", ["extend-video", "schema", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert isinstance(caught.value.code, int)
        return Ended(caught.value.code, captured.out, captured.err)

    return run_in_process


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


def test_emulators_document_is_compared_without_and_with_a_key(fal, run, monkeypatch) -> None:
    bare = run("--json", platform=f"{fal.url}/v1")
    monkeypatch.setenv("FAL_KEY", "emulator-key")
    assert run("--json", platform=f"{fal.url}/v1") == bare
    assert (bare.code, bare.json["endpoint"], bare.json["drift"]) == (0, ENDPOINT, [])
    assert len(bare.json["defaults"]) == len(NEWER_DEFAULTS)


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


@pytest.mark.parametrize(("options", "code"), [((), 0), (("--strict-defaults",), 1)])
def test_other_default_counts_only_where_it_is_asked_for(
    run, published, save, options, code
) -> None:
    ended = run("--file", save(published), "--json", *options)
    assert (ended.code, ended.err, ended.json["drift"]) == (code, "", [])
    assert ended.json["defaults"][0] == {
        "change": "changed",
        "field": "input.num_inference_steps",
        "aspect": "default",
        "ours": "15",
        "theirs": "40",
    }


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"models": []}', "[" * 100_000])
def test_file_that_is_no_document_ends_with_2(run, tmp_path, content) -> None:
    path = tmp_path / "odd.json"
    path.write_text(content)
    ended = run("--file", str(path))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("schema_unreadable: ")


def test_missing_file_ends_with_2(run, tmp_path) -> None:
    ended = run("--file", str(tmp_path / "nothing.json"))
    assert (ended.code, ended.out) == (2, "")
    assert "No such file" in ended.err


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (send_json({"error": {"type": "not_found"}}, 404), "answered HTTP 404, not_found"),
        (send_json({"models": []}), "does not list"),
        (send_body(b"<html>"), "no JSON object"),
        (send_body(b"", 302, Location="http://127.0.0.1:9/"), "answered HTTP 302"),
    ],
)
def test_platform_without_the_document_ends_with_2(run, answer, reason) -> None:
    with run_server(answer) as server:
        ended = run(platform=f"{server.url}/v1")
    assert (ended.code, ended.out) == (2, "")
    assert reason in ended.err


def test_unreachable_platform_ends_with_2(run) -> None:
    ended = run(platform=f"http://127.0.0.1:{find_closed_port()}/v1")
    assert (ended.code, ended.out) == (2, "")
    assert "cannot be read: ConnectError" in ended.err


def test_words_of_a_document_are_no_markup_and_no_control_sequence(run, published, save) -> None:
    find_fields(published)["[red]\x1b[2J"] = {"type": "string"}
    ended = run("--file", save(published))
    assert ended.code == 1
    assert "\x1b" not in ended.out
    assert "input.[red]" in ended.out


def test_help_says_that_defaults_are_ours_by_decision(run) -> None:
    ended = run("--help")
    assert ended.code == 0
    assert "Our defaults are the model page's by decision" in " ".join(ended.out.split())
    assert "0 same, 1 drift, 2 nothing to compare" in " ".join(ended.out.split())
