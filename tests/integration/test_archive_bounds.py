"""A paid video that takes too much to decode is kept as it is, and says so."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.archiving import Archiver, archive_locally, make_completed, make_video
from tests.harness.bombs import build_gif
from tests.harness.jobs import build_result, lead_job, make_job, move_job, read_job
from tests.harness.web import ScriptedServer, run_server, send_body
from worker.ground.errors import MediaMismatchError
from worker.jobs.states import JobEvent, JobState
from worker.media.facts import Stated
from worker.media.sidecar import parse_sidecar
from worker.stages.archive import MOST_SILENT_CLAIMS
from worker.stages.fetch import describe_undecoded


@pytest.fixture
def cdn() -> Iterator[ScriptedServer]:
    with run_server(send_body(make_video())) as server:
        yield server


@pytest.fixture
def root(tmp_path) -> Path:
    return Path(tmp_path) / "archive"


@pytest.fixture
def archive(db, root, cdn) -> Archiver:
    return archive_locally(db, root, cdn.place)


def test_video_beyond_a_bound_is_archived_undecoded(db, root, cdn, archive) -> None:
    bomb = build_gif()
    cdn.answer = send_body(bomb)

    moved = archive(make_job(db, JobState.COMPLETED, result=build_result(f"{cdn.url}/v.gif")))

    assert moved.state is JobState.ARCHIVED
    assert (root / f"{moved.id}.gif").read_bytes() == bomb
    assert (moved.archive_media, moved.archive_poster_uri) == (None, None)
    warning = moved.archive_warnings[-1]
    assert warning["code"] == "undecoded"
    assert "16000 x 16000 pixels" in warning["message"]
    sidecar = parse_sidecar((root / f"{moved.id}.json").read_bytes())
    assert (sidecar.video.media, sidecar.archive_warnings[-1]) == (None, warning)
    assert len(cdn.asked) == 1


def test_bytes_that_are_missing_are_proof_without_decoding() -> None:
    with pytest.raises(MediaMismatchError, match="43 bytes came, its host announced 100"):
        list(describe_undecoded("why", Stated(content_length=100), 43))


@pytest.mark.parametrize("silent", [MOST_SILENT_CLAIMS - 1, MOST_SILENT_CLAIMS])
def test_video_that_workers_end_with_is_archived_undecoded_in_the_end(
    db, cdn, archive, silent
) -> None:
    job = make_completed(db, f"{cdn.url}/v.mp4")
    for _ in range(silent):
        claimed = move_job(db, job, JobEvent.ARCHIVE_CLAIMED)
        lead_job(db, claimed, JobEvent.ARCHIVE_CLAIM_EXPIRED)

    moved = archive(read_job(db, job.id))

    assert moved.state is JobState.ARCHIVED
    told = [one["message"] for one in moved.archive_warnings or []]
    is_given_up = silent == MOST_SILENT_CLAIMS
    assert ("3 workers ended while they archived it" in "".join(told)) is is_given_up
    assert (moved.archive_media is None) is is_given_up
