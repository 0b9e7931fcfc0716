"""A shell that waits sees what fal says of the request, and what it has said is kept."""

import json
from uuid import UUID

from tests.system.scene import Scene
from tests.system.test_end_to_end import list_arguments

RENDERED = "Rendered 28 frames in all"


def read_first_id(printed: str) -> UUID:
    return UUID(printed.splitlines()[0])


def wait_in_shell(scene: Scene, **settings: str) -> str:
    ended = scene.deployment.run(*list_arguments(scene), "--wait", **settings)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_shell_that_waits_shows_status_time_and_logs(scene) -> None:
    printed = wait_in_shell(scene)

    assert "fal: COMPLETED, inference " in printed
    assert RENDERED in printed
    [attempt] = scene.table.list_attempts(read_first_id(printed))
    assert attempt["fal_status"] == "COMPLETED"
    assert attempt["inference_seconds"] > 0


def test_shell_that_waits_leaves_no_turn_of_its_job(scene) -> None:
    job_id = read_first_id(wait_in_shell(scene))
    names = [row["name"] for row in scene.table.select("SELECT name FROM gates")]
    assert f"follow {job_id}" not in names


def test_shell_without_a_key_follows_the_table_alone(sqlite_scene) -> None:
    printed = wait_in_shell(sqlite_scene, FAL_KEY="")

    assert " archived" in printed
    assert RENDERED not in printed
    [attempt] = sqlite_scene.table.list_attempts(read_first_id(printed))
    assert attempt["logs"] is None
    assert attempt["fal_status"] == "COMPLETED", "its webhook says as much"


def test_show_follows_a_job_to_its_end(sqlite_scene) -> None:
    job_id = sqlite_scene.enqueue()
    sqlite_scene.table.wait_for_end(job_id)

    for option in ("--wait", "--follow"):
        ended = sqlite_scene.deployment.run("show", str(job_id), option)
        assert ended.returncode == 0, ended.stderr
        assert "archived at file:" in ended.stdout


def test_show_logs_asks_once_more_and_prints_what_is_stored(sqlite_scene) -> None:
    job_id = sqlite_scene.enqueue()
    sqlite_scene.table.wait_for_end(job_id)

    shown = sqlite_scene.deployment.run("show", str(job_id), "--logs")
    again = sqlite_scene.deployment.run("show", str(job_id), "--logs", "--json", FAL_KEY="")

    assert shown.returncode == 0, shown.stderr
    assert RENDERED in shown.stdout
    [attempt] = json.loads(again.stdout)["attempts"]
    assert RENDERED in [entry["message"] for entry in attempt["logs"]]
    assert attempt["fal_status"] == "COMPLETED"


def test_show_without_logs_does_not_print_them(sqlite_scene) -> None:
    printed = wait_in_shell(sqlite_scene)
    shown = sqlite_scene.deployment.run("show", str(read_first_id(printed)))
    assert RENDERED not in shown.stdout
    assert "COMPLETED, inference" in shown.stdout
