"""docker-compose.yml: true to the schema of Compose, and every service as it has to be."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.deployment.compose import (
    FILE,
    ROOT,
    list_commands,
    read_compose,
)
from tests.harness.processes import BIN
from worker.broker.app import QUEUES
from worker.ground.errors import InvalidSettingsError
from worker.ground.settings import Settings, load_settings, require_settings

REAL = {"WEBHOOK_BASE_URL": "https://hooks.example.com"}
WITH_PAGE = {"MONITOR_TOKEN_FILE": "/run/secrets/monitor_token"}
WORKERS = ("submitter", "archiver", "sweeper")
OURS = ("receiver", *WORKERS, "beat")
SECRETS = ("postgres_password", "database_url", "fal_key", "monitor_token")
MOST_DRAIN = Settings.model_fields["drain_seconds"].default.total_seconds() + 10


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return read_compose(REAL)


def test_file_follows_the_schema_of_compose() -> None:
    command = [str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(FILE)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_no_command_but_a_worker_needs_the_webhook_url() -> None:
    """Compose reads the whole file for each: `logs` and `down` need it as little as `migrate`."""
    services = read_compose({})["services"]
    empty = {name for name in OURS if "WEBHOOK_BASE_URL" in services[name]["environment"]}
    assert empty == set(WORKERS)
    with pytest.raises(InvalidSettingsError, match="WEBHOOK_BASE_URL"):
        require_settings(load_settings(webhook_base_url=""), ["webhook_base_url"])


def test_each_variable_of_a_service_is_a_setting(compose) -> None:
    for name in (*OURS, "migrate"):
        variables = {
            one.removesuffix("_FILE").lower() for one in compose["services"][name]["environment"]
        }
        assert variables - set(Settings.model_fields) == set()


def test_key_is_the_workers_alone_and_scheduler_has_no_secret(compose) -> None:
    given = {name: compose["services"][name]["secrets"] for name in (*OURS, "migrate")}
    assert given == {
        "receiver": ["database_url", "monitor_token"],
        "submitter": ["database_url", "fal_key"],
        "archiver": ["database_url", "fal_key"],
        "sweeper": ["database_url", "fal_key"],
        "beat": [],
        "migrate": ["database_url"],
    }


def test_each_secret_of_a_service_is_a_file_that_a_setting_names() -> None:
    services = read_compose({**REAL, **WITH_PAGE})["services"]
    for name in (*OURS, "migrate"):
        files = [
            value.removeprefix("/run/secrets/")
            for variable, value in services[name]["environment"].items()
            if variable.endswith("_FILE")
        ]
        assert sorted(files) == sorted(services[name]["secrets"])


def test_page_is_off_unless_its_secret_is_named(compose) -> None:
    assert compose["services"]["receiver"]["environment"]["MONITOR_TOKEN_FILE"] == ""
    for name in (*OURS, "migrate"):
        assert "MONITOR_TOKEN" not in compose["services"][name]["environment"]


def test_other_settings_come_from_a_file_that_need_not_be_there(compose) -> None:
    for name in (*OURS, "migrate"):
        file = [{"path": "settings.env", "required": False}]
        assert compose["services"][name]["env_file"] == file


def test_no_secret_is_in_the_environment(compose) -> None:
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            assert not any(word in name for word in ("KEY", "PASSWORD", "TOKEN")) or name.endswith(
                "_FILE"
            )
            assert "@" not in value


def test_each_secret_is_declared_and_written_by_the_script(compose) -> None:
    declared = {name: one["file"] for name, one in compose["secrets"].items()}
    assert declared == {name: f"./secrets/{name}" for name in SECRETS}
    used = [set(one.get("secrets", ())) for one in compose["services"].values()]
    assert set().union(*used) == set(SECRETS)


def make_secrets(directory: Path, key: str) -> tuple[int, str]:
    script = ["sh", str(ROOT / "deploy" / "make-secrets.sh")]
    env = {**os.environ, "FAL_KEY": key}
    made = subprocess.run(
        script, cwd=directory, check=False, env=env, capture_output=True, text=True
    )
    return made.returncode, made.stderr


def test_script_replaces_the_emulators_key_by_a_real_one_and_no_real_one(tmp_path) -> None:
    code, told = make_secrets(tmp_path, "")
    assert (code, "is the emulator's key" in told) == (0, True)
    code, told = make_secrets(tmp_path, "first")
    assert (code, "replaced by FAL_KEY" in told) == (0, True)
    code, told = make_secrets(tmp_path, "second")
    assert (code, "remove the file to replace it" in told) == (1, True)
    assert make_secrets(tmp_path, "") == (0, "")
    assert (tmp_path / "secrets" / "fal_key").read_text() == "first"


def test_script_writes_secrets_once_and_readable_by_the_containers_alone(tmp_path) -> None:
    written = []
    for _ in range(2):
        assert make_secrets(tmp_path, "first") == (0, "")
        written.append({path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()})
    assert written[0] == written[1]
    assert written[0]["fal_key"] == "first"
    assert written[0]["postgres_password"] in written[0]["database_url"]
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "secrets" / "fal_key").stat().st_mode & 0o777 == 0o444


def test_workers_take_each_queue_once(compose) -> None:
    taken = [
        queue
        for name in WORKERS
        for queue in list_commands(compose["services"][name])[-1].split(",")
    ]
    assert sorted(taken) == sorted(QUEUES.values())


def test_each_service_waits_for_health_restarts_and_has_bounds(compose) -> None:
    services = compose["services"]
    for name, service in services.items():
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
        assert "healthcheck" in service
        assert service["restart"] == ("no" if name == "migrate" else "unless-stopped")
    for name in OURS:
        waits = {one: how["condition"] for one, how in services[name]["depends_on"].items()}
        assert waits == {"migrate": "service_completed_successfully", "redis": "service_healthy"}
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}


def test_workers_are_given_the_time_they_need_to_drain(compose) -> None:
    for name in WORKERS:
        given = float(compose["services"][name]["stop_grace_period"].removesuffix("s"))
        assert given > MOST_DRAIN


def test_containers_of_ours_can_write_nothing_but_their_volumes(compose) -> None:
    for name in (*OURS, "migrate", "redis", "emulator"):
        service = compose["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_images_of_others_are_pinned_by_full_version(compose) -> None:
    for name in ("postgres", "redis"):
        _, _, tag = compose["services"][name]["image"].partition(":")
        assert tag.partition("-")[0].count(".") >= 1
        assert tag.partition("-")[2] == "bookworm"


def test_redis_evicts_nothing_and_keeps_what_it_has(compose) -> None:
    command = list_commands(compose["services"]["redis"])
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--appendonly"] == "yes"
