"""Each form of result, from the renderer's real bytes to a file in the archive that decodes."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import pytest

from tests.system.scene import NEW_FRAMES, SOURCE_FRAMES, Scene
from worker.media.probe import VideoFacts, probe_video

MP4 = "X264 (.mp4)"
WIDTH, HEIGHT = 64, 48


class Form(NamedTuple):
    """A `video_output_type`, and what its file must turn out to be."""

    wish: str
    extension: str
    container: str
    codec: str


FORMS = [
    Form(MP4, "mp4", "mov,mp4,m4a,3gp,3g2,mj2", "h264"),
    Form("VP9 (.webm)", "webm", "matroska,webm", "vp9"),
    Form("PRORES4444 (.mov)", "mov", "mov,mp4,m4a,3gp,3g2,mj2", "prores"),
    Form("GIF (.gif)", "gif", "gif", "gif"),
]


def find_archived(scene: Scene, job_id: UUID) -> Path:
    (path,) = scene.list_archived(job_id)
    return path


def check_archived(scene: Scene, job_id: UUID, form: Form) -> VideoFacts:
    """The file is the one that the row tells of, and decodes to as many frames as were paid for."""
    job = scene.table.wait_for_end(job_id, seconds=60)
    path = find_archived(scene, job_id)
    content = path.read_bytes()
    assert path.name == f"{job_id}.{form.extension}"
    assert job["archive_uri"] == path.as_uri()
    assert (job["archive_bytes"], job["archive_sha256"]) == (
        len(content),
        hashlib.sha256(content).hexdigest(),
    )
    assert job["result"]["video"]["file_size"] == len(content)
    facts = probe_video(path)
    assert (facts.container, facts.codec) == (form.container, form.codec)
    assert facts.frames == SOURCE_FRAMES + NEW_FRAMES
    return facts


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.extension)
def test_result_of_each_form_is_archived_as_what_it_is(sqlite_scene, form) -> None:
    job_id = sqlite_scene.enqueue(video_output_type=form.wish)
    check_archived(sqlite_scene, job_id, form)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.extension)
def test_result_inside_the_message_is_archived_as_the_same_form(scene, form) -> None:
    size = {"width": WIDTH, "height": HEIGHT}
    job_id = scene.enqueue(video_output_type=form.wish, video_size=size, sync_mode=True)

    facts = check_archived(scene, job_id, form)

    assert (facts.width, facts.height) == (WIDTH, HEIGHT)
    [submission] = scene.list_submissions(scene.table.read_job(job_id))
    assert submission["input"]["sync_mode"] is True


@pytest.mark.parametrize(
    ("video_size", "expected"),
    [
        ({"width": 96, "height": 32}, (96, 32)),
        ({"width": 34, "height": 130}, (34, 130)),
        ({"height": 64}, (512, 64)),
    ],
)
def test_result_of_own_size_is_archived_in_that_size(sqlite_scene, video_size, expected) -> None:
    job_id = sqlite_scene.enqueue(video_size=video_size)
    facts = check_archived(sqlite_scene, job_id, FORMS[0])
    assert (facts.width, facts.height) == expected


def test_archived_job_keeps_a_marker_in_place_of_the_video_inside(scene) -> None:
    job_id = scene.enqueue(sync_mode=True)
    job = scene.table.wait_for_end(job_id)

    content = find_archived(scene, job_id).read_bytes()
    marker = f"data:video/mp4;archived;sha256={job['archive_sha256']};bytes={len(content)},"
    assert job["result"]["video"]["url"] == marker
    assert job["result"]["video"]["num_frames"] == SOURCE_FRAMES + NEW_FRAMES
    assert job["result"]["prompt"] == job["input"]["prompt"]
    [delivery] = scene.table.list_deliveries(job_id)
    assert bytes(delivery["body"]) == marker.encode()
    assert len(delivery["body_sha256"]) == 64


def test_story_of_a_video_inside_the_message_is_short(sqlite_scene) -> None:
    job_id = sqlite_scene.enqueue(sync_mode=True)
    sqlite_scene.table.wait_for_end(job_id)

    shown = sqlite_scene.deployment.run("show", str(job_id), "--json")

    assert json.loads(shown.stdout)["result"]["video"]["url"].startswith("data:video/mp4;archived;")
    assert len(shown.stdout) < 20_000
