"""No file can harm the process that wants to know what it is."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.emulator.clips import make_clip
from tests.harness.bombs import build_gif, make_many_frames
from tests.harness.together import call_together
from tests.harness.waiting import wait_until
from worker.ground.errors import (
    ClaimLostError,
    MediaBoundError,
    MediaMismatchError,
    MediaRefusedError,
)
from worker.media.child import verify_video
from worker.media.examiner import Examiner
from worker.media.facts import Bounds, Stated
from worker.media.probe import MAX_PIXELS, examine_video

MIB = 1024 * 1024
GROWTH_KIB = 16 * 1024
PARENT = """
import sys
from pathlib import Path
from worker.media.examiner import get_examiner
from worker.media.facts import Stated
get_examiner().verify(Path(sys.argv[1]), Stated(), lambda: print("waits", flush=True))
"""


@pytest.fixture
def clip(tmp_path) -> Path:
    return make_clip(Path(tmp_path) / "v.mp4")


@pytest.fixture(scope="module")
def hours(tmp_path_factory) -> Path:
    """Ten seconds' work; none of these tests waits so long."""
    return make_many_frames(tmp_path_factory.mktemp("bomb") / "v.webm", frames=4_000)


@pytest.fixture
def open_examiner() -> Iterator[Callable[..., Examiner]]:
    opened: list[Examiner] = []

    def open_one(**bounds) -> Examiner:
        opened.append(Examiner(Bounds(**bounds), processes=1))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def list_children() -> list[int]:
    return [one.pid for one in psutil.Process().children() if one.status() != "zombie"]


def test_answers_are_those_of_the_functions_and_one_process_gives_them(
    open_examiner, clip, tmp_path
) -> None:
    before, examiner = set(list_children()), open_examiner()
    stated = Stated(frames=7, fps=float("nan"))
    odd = tmp_path / os.fsdecode(b"\xff.mp4")
    odd.write_bytes(clip.read_bytes())

    examined = examiner.verify(clip, stated)
    (first,) = set(list_children()) - before
    assert examined == verify_video(clip, stated) == examiner.verify(odd, stated)
    assert examiner.draw_poster(clip, examined.facts).startswith(b"\xff\xd8")
    assert examiner.inspect_video(clip).extension == "mp4"
    with pytest.raises(MediaRefusedError, match="neither PNG"):
        examiner.inspect_image(clip)
    clip.write_bytes(b"no video")
    with pytest.raises(MediaMismatchError, match="no video"):
        examiner.verify(clip, stated)
    assert set(list_children()) - before == {first}


def test_picture_of_too_many_pixels_is_not_decoded_and_costs_this_process_nothing(
    open_examiner, tmp_path
) -> None:
    examiner, path = open_examiner(), tmp_path / "v.gif"
    path.write_bytes(build_gif())
    assert len(path.read_bytes()) < 66
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    for look in (examiner.inspect_video, examiner.inspect_image):
        with pytest.raises(MediaBoundError, match=f"16000 x 16000 pixels; at most {MAX_PIXELS}"):
            look(path)
    with pytest.raises(MediaBoundError, match="pixels"):
        examiner.verify(path, Stated())

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH_KIB


def test_memory_is_bounded_and_the_process_is_replaced(open_examiner, tmp_path, clip) -> None:
    examiner, path = open_examiner(memory=64 * MIB), tmp_path / "v.gif"
    path.write_bytes(build_gif(8_000, 8_000))
    before = set(list_children())

    with pytest.raises(MediaBoundError, match=f"more than {64 * MIB} bytes of memory"):
        examiner.verify(path, Stated())

    assert set(list_children()) == before
    assert examiner.inspect_video(clip).extension == "mp4"


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ({"cpu": timedelta(milliseconds=10)}, "more than 0:00:00.010000 of CPU time"),
        ({"wall": timedelta(milliseconds=500)}, "more than 0:00:00.500000"),
    ],
)
def test_time_is_bounded(open_examiner, hours, bounds, told) -> None:
    with pytest.raises(MediaBoundError, match=told):
        open_examiner(**bounds).verify(hours, Stated())


def test_decoder_that_crashes_is_told_of_the_file(open_examiner, hours) -> None:
    examiner, before = open_examiner(), set(list_children())

    def crash() -> None:
        for pid in set(list_children()) - before:
            os.kill(pid, signal.SIGSEGV)

    with pytest.raises(MediaBoundError, match="crashed with SIGSEGV"):
        examiner.verify(hours, Stated(), crash)


def test_process_killed_by_somebody_else_is_replaced_once(open_examiner, clip, hours) -> None:
    examiner, before = open_examiner(), set(list_children())

    def kill() -> None:
        for pid in set(list_children()) - before:
            os.kill(pid, signal.SIGKILL)

    examiner.inspect_video(clip)
    kill()
    assert examiner.inspect_video(clip).extension == "mp4"
    with pytest.raises(MediaBoundError, match="ended twice"):
        examiner.verify(hours, Stated(), kill)


def test_processes_that_ended_while_none_was_needed_are_no_fault_of_the_file(clip) -> None:
    """All of those that are kept may have ended for their age: a fresh one is started."""
    before, examiner = set(list_children()), Examiner(Bounds(), processes=2)
    try:
        call_together(*[partial(examiner.inspect_video, clip)] * 2)
        for pid in set(list_children()) - before:
            os.kill(pid, signal.SIGKILL)
        assert examiner.inspect_video(clip).extension == "mp4"
    finally:
        examiner.close()


def test_claim_that_is_lost_ends_the_decoding(open_examiner, hours) -> None:
    before = set(list_children())

    def lose() -> None:
        if set(list_children()) - before:
            raise ClaimLostError("taken over")

    with pytest.raises(ClaimLostError):
        open_examiner().verify(hours, Stated(), lose)
    assert set(list_children()) == before


@pytest.mark.slow  # two interpreters start, one after the other
def test_process_ends_with_its_parent_and_knows_no_secret(hours) -> None:
    env = {**os.environ, "FAL_KEY": "planted"}
    command = [sys.executable, "-c", PARENT, str(hours)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"waits\n"
        (child,) = psutil.Process(parent.pid).children()
        assert "FAL_KEY" not in child.environ()
        parent.kill()
    wait_until(lambda: not child.is_running())


def test_pixels_that_come_out_are_bounded_whatever_the_header_says(tmp_path) -> None:
    path = make_many_frames(tmp_path / "v.webm", frames=200, side=64)

    facts = examine_video(path, whole_pixels=50 * 64 * 64).facts

    assert (facts.is_whole, facts.frames) == (False, 200)


def test_process_that_nobody_asked_for_a_while_ends_in_good_order() -> None:
    """Seen: it aborted, and the next file was taken for one that crashes the decoder."""
    script = "from worker.media import child; child.IDLE_SECONDS = 0.01; child.main()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as process:
        assert process.wait(30) == 0


def test_worker_and_shell_load_no_decoder() -> None:
    """It takes a twentieth of a second and memory, and is the decoding process's alone."""
    script = "import sys, worker.cli, worker.tasks; print('av' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "False\n"
