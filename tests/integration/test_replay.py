"""`extend-video replay`: from the sidecar of an archived video to the same request at fal."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from tests.emulator.clips import make_clip
from tests.emulator.processes import Emulator, start_emulator
from tests.harness.brokers import take_messages
from tests.harness.commands import Ended, Run, build_run
from tests.harness.jobs import list_all_jobs, make_job, read_attempts, read_job
from tests.harness.stages import Bench, open_clients
from worker.broker.app import QUEUES
from worker.fal.model import complete_input, parse_output
from worker.jobs.states import JobState
from worker.jobs.values import Job
from worker.media.child import verify_video
from worker.media.facts import VideoFacts
from worker.media.probe import probe_video
from worker.media.sidecar import Sidecar, VideoRecord, describe_file
from worker.stages.archive import build_sidecar
from worker.stages.fetch import read_stated

WISH = {"prompt": "Ein Schwenk über \N{WATER WAVE}", "video_url": "https://example.com/a.mp4?s=1"}


FOREIGN = b"root:x:0:0:root:/root:/sh"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory) -> Iterator[Emulator]:
    with start_emulator(tmp_path_factory.mktemp("fal"), "--render", "fake") as emulator:
        yield emulator


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> VideoFacts:
    return probe_video(make_clip(tmp_path_factory.mktemp("clip") / "a.mp4"))


@pytest.fixture
def run(monkeypatch, capsys, database_url, redis_url) -> Run:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("BROKER_URL", redis_url)
    for queue in QUEUES.values():
        take_messages(redis_url, queue)
    run_command = build_run(monkeypatch, capsys)
    return lambda *arguments: run_command("replay", *arguments)


@pytest.fixture
def archived(db) -> Job:
    """A job whose input is complete, and whose result tells another seed than the input."""
    fields = complete_input({**WISH, "seed": 3}).to_json()
    return make_job(db, JobState.ARCHIVED, input=fields, tenant="acme", labels={"order": "17"})


@pytest.fixture
def recipe(db, archived, facts) -> Sidecar:
    video = VideoRecord(**describe_file("a.mp4", b"video").model_dump(), media=facts)
    return build_sidecar(archived, read_attempts(db, archived.id), video)


@pytest.fixture
def sidecar(tmp_path, recipe) -> Path:
    return write(tmp_path, recipe)


def write(directory: Path, recipe: Sidecar, **changes: object) -> Path:
    path = directory / "video.json"
    path.write_bytes(recipe.model_copy(update=changes).to_bytes())
    return path


def list_jobs(db) -> list[Job]:
    with db.reading() as connection:
        return list_all_jobs(connection)


def find_replayed(db, ended: Ended) -> Job:
    assert ended.code == 0, ended.err
    return read_job(db, UUID(ended.json["id"]))


# ------------------------------------------------------------------ to fal


def make_archived(bench: Bench, emulator: Emulator, directory: Path) -> tuple[Job, Path]:
    """A job that the emulator has made a video for, and the sidecar beside the video."""
    fields = complete_input({**WISH, "fps": 30, "seed": None}).to_json()
    job = bench.submit(bench.insert(input=fields, options={"priority": "low", "tags": {"a": "b"}}))
    assert job is not None
    emulator.get_result(str(job.fal_request_id))
    bench.reconcile(job)
    job = bench.read(job)
    video = parse_output(job.result).video
    reply = emulator.client.get(video.url)
    path = directory / "video.mp4"
    path.write_bytes(reply.content)
    stated = read_stated(video, int(reply.headers["Content-Length"]))
    video_file = VideoRecord(
        **describe_file(path.name, reply.content).model_dump(),
        media=verify_video(path, stated).facts,
    )
    recipe = build_sidecar(job, bench.attempts(job), video_file)
    sidecar = directory / "video.json"
    sidecar.write_bytes(recipe.to_bytes())
    return job, sidecar


def test_replayed_job_sends_fal_the_same_input_and_options(db, run, emulator, tmp_path) -> None:
    with open_clients(emulator.url) as clients:
        bench = Bench(db, *clients)
        job, sidecar = make_archived(bench, emulator, tmp_path)

        again = bench.submit(find_replayed(db, run(str(sidecar), "--json")))

    assert again is not None
    assert again.id != job.id
    sent = [emulator.find(str(one.fal_request_id)) for one in (job, again)]
    assert json.dumps(sent[0]["input"]) == json.dumps(sent[1]["input"])
    assert sent[0]["input"]["seed"] == job.input["seed"]
    ledger = emulator.client.get("/_emulator/ledger").json()
    (entry,) = [one for one in ledger["by_input"] if again.fal_request_id in one["request_ids"]]
    assert set(entry["request_ids"]) == {job.fal_request_id, again.fal_request_id}
    assert entry["submissions"] == 2
    first, second = (bench.attempts(one)[0] for one in (job, again))
    assert first.options == second.options


# ------------------------------------------------------------------ the new job


def test_new_job_has_input_seed_and_tenant_of_the_old_one(db, run, archived, sidecar) -> None:
    job = find_replayed(db, run(str(sidecar), "--json"))

    assert job.input == {**archived.input, "seed": 7}
    assert (job.tenant, job.labels) == ("acme", {"replay_of": str(archived.id)})
    assert (job.state, job.endpoint) == (JobState.QUEUED, archived.endpoint)


def test_new_job_is_published_and_said_to_cost_money(db, run, archived, sidecar, redis_url) -> None:
    ended = run(str(sidecar), "--set", "num_frames=241")

    (new,) = [job for job in list_jobs(db) if job.id != archived.id]
    assert ended.out == f"{new.id}\n"
    (message,) = take_messages(redis_url, "extend_video.submit")
    assert str(new.id) in str(message)
    assert f"replaying job {archived.id} by a new paid run of {archived.endpoint}" in ended.err
    assert "seed 7, for tenant acme, with other num_frames" in ended.err


def test_fields_may_be_changed_prompt_and_video_too(db, run, archived, sidecar) -> None:
    changes = ["prompt=It lands", "video_url=https://example.com/b.mp4", "seed=5", "fps=30"]
    options = [part for change in changes for part in ("--set", change)]

    job = find_replayed(db, run(str(sidecar), *options, "--tenant", "other", "--json"))

    changed = {"prompt": "It lands", "video_url": "https://example.com/b.mp4", "seed": 5}
    assert job.input == {**archived.input, **changed, "fps": 30.0}
    assert job.tenant == "other"


def test_seed_of_null_is_drawn_anew(db, run, sidecar) -> None:
    ended = run(str(sidecar), "--set", "seed=null", "--json")

    assert find_replayed(db, ended).input["seed"] not in {None, 7, 3}
    assert "a new seed" in ended.err
    assert run(str(sidecar), "--set", "seed=null", "--dry-run").json["input"]["seed"] is None


def test_sidecar_may_come_by_standard_input(db, run, sidecar, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(sidecar.read_bytes())))

    assert find_replayed(db, run("-", "--json")).input["seed"] == 7


# ------------------------------------------------------------------ dry run


def test_dry_run_prints_the_wish_and_writes_nothing(db, run, archived, sidecar, redis_url) -> None:
    ended = run(str(sidecar), "--dry-run", "--idempotency-key", "k", "--set", "num_frames=241")

    assert ended.code == 0
    assert ended.json == {
        "endpoint": archived.endpoint,
        "tenant": "acme",
        "idempotency_key": "k",
        "labels": {"replay_of": str(archived.id)},
        "fal_options": {},
        "input": {**archived.input, "seed": 7, "num_frames": 241},
    }
    assert [job.id for job in list_jobs(db)] == [archived.id]
    assert take_messages(redis_url, "extend_video.submit") == []


# ------------------------------------------------------------------ files inside the input


@pytest.fixture
def inline(db, tmp_path, facts) -> tuple[Job, Path]:
    clip = make_clip(tmp_path / "clip.mp4", frames=3, has_audio=False).read_bytes()
    url = f"data:video/mp4;base64,{base64.b64encode(clip).decode()}"
    fields = complete_input({**WISH, "video_url": url}).to_json()
    job = make_job(db, JobState.ARCHIVED, input=fields)
    video = VideoRecord(**describe_file("a.mp4", b"video").model_dump(), media=facts)
    recipe = build_sidecar(job, read_attempts(db, job.id), video)
    return job, write(tmp_path, recipe)


def test_file_inside_the_input_is_taken_from_the_old_jobs_row(db, run, inline) -> None:
    job, sidecar = inline
    assert job.input["video_url"].encode() not in sidecar.read_bytes()

    assert find_replayed(db, run(str(sidecar), "--json")).input == {**job.input, "seed": 7}


def test_file_inside_the_input_is_asked_for_where_the_row_is_gone(
    db, run, inline, sqlite_template, monkeypatch, tmp_path
) -> None:
    _, sidecar = inline
    empty = tmp_path / "empty.db"
    empty.write_bytes(sqlite_template.read_bytes())
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{empty}")

    ended = run(str(sidecar), "--dry-run")

    assert ended.code == 2
    assert "invalid_recipe" in ended.err
    assert "input.video_url" in ended.err
    assert "give it by --set" in ended.err
    changed = run(str(sidecar), "--dry-run", "--set", "video_url=https://example.com/b.mp4")
    assert changed.json["input"]["video_url"] == "https://example.com/b.mp4"


# ------------------------------------------------------------------ what is refused


def test_faulty_sidecar_is_refused_as_wrong_usage(db, run, tmp_path) -> None:
    path = tmp_path / "faulty.json"
    for content, words in (
        (b"<html>", ["sidecar", "JSON object in UTF-8"]),
        (b'{"recipe": 2}', ["recipe=2"]),
        (b'{"recipe": "' + FOREIGN + b'"}', ["recipe=no number"]),
        (FOREIGN, ["sidecar=25 bytes that are not"]),
        (b'"' + FOREIGN + b'"', ["sidecar=27 bytes that are not"]),
        (b'{"recipe": 1, "job_id": "x"}', ["job_id", "a UUID", "input", "required"]),
    ):
        path.write_bytes(content)
        ended = run(str(path))
        assert (ended.code, ended.out) == (2, "")
        assert "invalid_recipe" in ended.err
        assert [word for word in words if word not in ended.err] == []
        assert FOREIGN.decode() not in ended.err, "any file may have been named"
    path.unlink()
    ended = run(str(path))
    assert ended.code == 2
    assert "cannot be read: No such file or directory" in ended.err
    assert list_jobs(db) == []


def test_sidecar_of_another_model_is_refused(db, run, tmp_path, recipe, archived) -> None:
    ended = run(str(write(tmp_path, recipe, endpoint="fal-ai/another/model")))

    assert ended.code == 2
    assert "endpoint=fal-ai/another/model" in ended.err
    assert [job.id for job in list_jobs(db)] == [archived.id]


def test_wrong_change_is_refused_before_anything_is_written(db, run, sidecar, archived) -> None:
    for options in ([], ["--dry-run"]):
        ended = run(str(sidecar), "--set", "num_frames=1000", *options)
        assert (ended.code, ended.out) == (2, "")
        assert "invalid_input" in ended.err
        assert "less than or equal to 481" in ended.err
    assert [job.id for job in list_jobs(db)] == [archived.id]


def test_input_that_the_model_no_longer_takes_is_refused(run, tmp_path, recipe) -> None:
    path = write(tmp_path, recipe, input={**recipe.input, "weather": "fine"})

    ended = run(str(path), "--dry-run")

    assert ended.code == 2
    assert "weather" in ended.err
    assert "no such field" in ended.err
