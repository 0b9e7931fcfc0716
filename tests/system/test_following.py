"""A shell that follows a job without a key, and one that asks fal once more for its logs."""

import json
from uuid import UUID

import pytest

from tests.system.test_end_to_end import list_arguments

RENDERED = "Rendered 28 frames in all"


@pytest.mark.slow  # four shells start, one after the other
def test_logs_are_asked_for_by_a_shell_with_a_key_and_shown_by_every_other(sqlite_scene) -> None:
    run = sqlite_scene.deployment.run
    waited = run(*list_arguments(sqlite_scene), "--wait", FAL_KEY="")
    job_id = UUID(waited.stdout.splitlines()[0])
    [before] = sqlite_scene.table.list_attempts(job_id)
    asked = run("show", str(job_id), "--logs")
    stored = run("show", str(job_id), "--logs", "--json", FAL_KEY="")
    followed = run("show", str(job_id), "--follow")

    assert [one.returncode for one in (waited, asked, stored, followed)] == [0, 0, 0, 0]
    assert " archived" in waited.stdout
    assert RENDERED not in waited.stdout, "it follows the table alone"
    assert (before["logs"], before["fal_status"]) == (None, "COMPLETED"), "as its webhook says"
    assert RENDERED in asked.stdout
    [attempt] = json.loads(stored.stdout)["attempts"]
    assert RENDERED in [entry["message"] for entry in attempt["logs"]]
    assert "archived at file:" in followed.stdout
