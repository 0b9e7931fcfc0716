"""`extend-video demo` as a user runs it: in an empty directory, with an empty environment."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from tests.emulator.clips import probe
from tests.harness.processes import EXTEND_VIDEO

DEMO = [EXTEND_VIDEO, "demo"]
STATES = ["queued", "submitting", "submitted", "completed", "archiving", "archived"]
MOST_SECONDS = 60

pytestmark = pytest.mark.slow  # the whole demo, or as much of it as finds out what is wrong


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


def test_demo_extends_a_sample_and_leaves_only_its_files(yard, demo_settings, nothing_left):
    ended = yard.run(DEMO, demo_settings, MOST_SECONDS)

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


@pytest.mark.parametrize(
    ("name", "reason"), [("notes.txt", "not a readable video"), ("missing.mp4", "missing.mp4")]
)
def test_demo_of_no_video_tells_the_reason(
    yard, demo_settings, nothing_left, tmp_path, name, reason
):
    (tmp_path / "notes.txt").write_text("no video at all")

    ended = yard.run([*DEMO, "--video", name], demo_settings)

    assert ended.returncode in {1, 2}
    assert reason in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    nothing_left()


def test_demo_of_a_wrong_field_tells_what_is_allowed(yard, demo_settings, nothing_left):
    ended = yard.run([*DEMO, "--set", "num_frames=5000"], demo_settings)

    assert ended.returncode == 2
    assert "num_frames=5000" in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    nothing_left()
