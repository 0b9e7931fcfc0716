"""A source clip for the emulator."""

from pathlib import Path

import pytest

from tests.emulator.clips import make_clip


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=24)
