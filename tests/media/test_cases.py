"""Files that were refused although they can be read: each is archived; damaged, it is not."""

from pathlib import Path
from random import Random

import pytest

from worker.ground.errors import MediaMismatchError
from worker.media.child import verify_video
from worker.media.facts import Stated
from worker.media.probe import examine_video

CASES = Path(__file__).parent / "cases"
BASE = (CASES / "base.mp4").read_bytes()
THIRD = len(BASE) // 3
# Frames, seconds, and the codes of what is odd.
RIGHT: dict[str, tuple[int, float, list[str]]] = {
    "base.mp4": (96, 4.0, []),
    "el-trim-end.mp4": (48, 2.0, []),
    "el-two.mp4": (48, 2.0, []),
    "gap.mp4": (96, 4.0, []),
    "gap.webm": (96, 4.0, []),
    "h264-cut.mp4": (72, 3.0, []),
    "late-audio.webm": (96, 4.0, []),
    "late-video.webm": (96, 4.0, []),
    "nodur.webm": (96, 4.0, []),
    "trail.mp4": (96, 4.0, ["container"]),
}


@pytest.mark.parametrize("is_large", [False, True], ids=["whole", "its head"])
@pytest.mark.parametrize("path", sorted(CASES.glob("*.[mw]*")), ids=lambda path: path.name)
def test_video_that_can_be_read_is_right(path, is_large) -> None:
    frames, seconds, odd = RIGHT[path.name]

    examined = examine_video(path, whole_bytes=0 if is_large else 10**9)

    facts = examined.facts
    assert facts.duration is not None
    assert (facts.frames, facts.duration.total_seconds()) == (frames, seconds)
    assert (examined.damages, [one.code for one in examined.oddities]) == ((), odd)
    assert facts.is_whole is not is_large


@pytest.mark.parametrize(
    "content",
    [
        BASE[: len(BASE) // 2],
        BASE[: len(BASE) - 40_000],
        BASE[:THIRD] + bytes(THIRD) + BASE[2 * THIRD :],
        BASE[:THIRD] + Random(1).randbytes(THIRD) + BASE[2 * THIRD :],
        bytes(len(BASE)),
    ],
    ids=["half of it", "without its end", "zeros within", "noise within", "zeros"],
)
def test_same_video_damaged_is_not(tmp_path, content) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(content)

    with pytest.raises(MediaMismatchError):
        verify_video(path, Stated())


@pytest.mark.parametrize("name", ["late-audio.webm", "gap.webm", "nodur.webm", "el-two.mp4"])
@pytest.mark.parametrize("part", [0.3, 0.6])
def test_odd_video_cut_or_overwritten_is_not(tmp_path, name, part) -> None:
    content = (CASES / name).read_bytes()
    at, path = int(part * len(content)), tmp_path / name
    for damaged in (content[:at], content[:at] + bytes(len(content) // 3) + content[at:][::-1]):
        path.write_bytes(damaged)
        with pytest.raises(MediaMismatchError):
            verify_video(path, Stated())
