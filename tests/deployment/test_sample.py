"""The first job of Compose's emulator profile: the documented command fits file and image."""

import json
import subprocess
import sys

from tests.deployment.compose import (
    ROOT,
    list_profiles,
    read_compose,
    read_env_file,
    read_first_job,
)
from tests.deployment.test_dockerfile import BUILD, FINAL, find
from worker.cli import build_command
from worker.media.child import inspect_video

IMAGE_CLIP = "/usr/share/extend-video/sample.mp4"
EMULATOR = read_env_file(ROOT / "deploy" / "emulator.env")


def test_command_runs_where_the_key_and_the_emulator_are_known() -> None:
    service, _ = read_first_job()
    submitter = read_compose(EMULATOR)["services"][service]
    assert "fal_key" in submitter["secrets"]
    assert submitter["environment"]["FAL_REST_URL"] == "http://emulator:8001"
    assert list_profiles(read_compose(EMULATOR)) == {"emulator"}


def test_command_is_one_of_the_shell_and_names_the_clip_of_the_image() -> None:
    _, (program, name, *words) = read_first_job()
    assert program == "extend-video"
    given = build_command(name).make_context(name, list(words)).params
    assert (given["video"], given["wait"]) == (IMAGE_CLIP, True)
    assert given["prompt"]


def test_image_has_a_clip_that_its_own_build_can_make(tmp_path) -> None:
    copied = dict(line.split()[1:] for line in find("COPY", FINAL))
    (source,) = [one for one, target in copied.items() if target == IMAGE_CLIP]
    (line,) = [one for one in find("RUN", BUILD) if source in one]
    _, option, script = json.loads(line)
    clip = tmp_path / "sample.mp4"
    subprocess.run([sys.executable, option, script.replace(source, str(clip))], check=True)
    assert inspect_video(clip).content_type == "video/mp4"
