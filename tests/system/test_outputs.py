"""Results that are no MP4, from the renderer's real bytes to a file in the archive that decodes."""

import hashlib
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from tests.system.scene import NEW_FRAMES, SOURCE_FRAMES, Scene
from worker.media.facts import VideoFacts
from worker.media.probe import probe_video


class Form(NamedTuple):
    """A `video_output_type`, and what its file must turn out to be."""

    job_request: str
    extension: str
    container: str
    codec: str


WEBM = Form("VP9 (.webm)", "webm", "matroska,webm", "vp9")
GIF = Form("GIF (.gif)", "gif", "gif", "gif")


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


def test_result_of_own_form_and_size_is_archived_as_what_it_is(sqlite_scene) -> None:
    size = {"width": 34, "height": 130}
    job_id = sqlite_scene.enqueue(video_output_type=WEBM.job_request, video_size=size)
    facts = check_archived(sqlite_scene, job_id, WEBM)
    assert (facts.width, facts.height) == (34, 130)


def test_result_inside_the_message_is_archived_and_leaves_a_marker(sqlite_scene) -> None:
    scene = sqlite_scene
    job_id = scene.enqueue(video_output_type=GIF.job_request, sync_mode=True)

    check_archived(scene, job_id, GIF)

    job = scene.table.read_job(job_id)
    content = find_archived(scene, job_id).read_bytes()
    marker = f"data:image/gif;archived;sha256={job['archive_sha256']};bytes={len(content)},"
    assert job["result"]["video"]["url"] == marker
    assert job["result"]["video"]["num_frames"] == SOURCE_FRAMES + NEW_FRAMES
    assert job["result"]["prompt"] == job["input"]["prompt"]
    [delivery] = scene.table.list_deliveries(job_id)
    assert bytes(delivery["body"]) == marker.encode()
    assert len(delivery["body_sha256"]) == 64
    [submission] = scene.list_submissions(job)
    assert submission["input"]["sync_mode"] is True
