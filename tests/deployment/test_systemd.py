"""The systemd units: read as systemd reads them, hardened, and running what Compose runs."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deployment.compose import ROOT, list_commands, read_compose, read_env_file
from tests.harness.processes import BIN
from worker.ground.settings import Settings

ANALYZE = shutil.which("systemd-analyze")
NEEDS_SYSTEMD = pytest.mark.skipif(
    ANALYZE is None, reason="NOT RUN: no systemd-analyze; the other tests have read the units"
)
UNITS = ROOT / "deploy" / "systemd"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
PROGRAMS = "/opt/extend-video/venv/bin"
DAEMONS = {
    "extend-video-receiver.service": "receiver",
    "extend-video-submit.service": "submitter",
    "extend-video-archive.service": "archiver",
    "extend-video-sweep.service": "sweeper",
    "extend-video-beat.service": "beat",
    "extend-video-migrate.service": "migrate",
}
HARDENING = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectControlGroups": "yes",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces": "yes",
    "LockPersonality": "yes",
    "CapabilityBoundingSet": "",
    "StateDirectory": "extend-video",
    "User": "extend-video",
}
PAGE = {"extend-video-receiver.service": ["monitor_token"]}
MOST_EXPOSURE = 2.0
MOST_DRAIN = Settings.model_fields["drain_seconds"].default.total_seconds() + 10


def read_unit(name: str) -> dict[str, dict[str, list[str]]]:
    """Values by section and key; a key may come more than once."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), {})
            continue
        key, mark, value = line.partition("=")
        assert mark, line
        current.setdefault(key, []).append(value)
    return sections


def read_service(name: str) -> dict[str, list[str]]:
    return read_unit(name)["Service"]


def test_there_is_a_unit_for_each_daemon() -> None:
    assert sorted(DAEMONS) == SERVICES
    wanted = " ".join(read_unit("extend-video.target")["Unit"]["Wants"]).split()
    assert sorted([*wanted, "extend-video-migrate.service"]) == SERVICES


@pytest.mark.parametrize("name", SERVICES)
def test_unit_runs_what_compose_runs(name) -> None:
    services = read_compose({"WEBHOOK_BASE_URL": "https://x"})["services"]
    (line,) = read_service(name)["ExecStart"]
    program, *options = shlex.split(line.replace("%%", "%"))
    expected = [
        word.replace("0.0.0.0", "127.0.0.1") for word in list_commands(services[DAEMONS[name]])
    ]
    assert [program.removeprefix(f"{PROGRAMS}/"), *options] == expected


@pytest.mark.parametrize("name", SERVICES)
def test_unit_is_hardened(name) -> None:
    service = read_service(name)
    assert {key: service[key][-1] for key in HARDENING} == HARDENING


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"extend-video-migrate.service"}))
def test_daemon_is_started_again_for_ever_and_given_time_to_end(name) -> None:
    unit = read_unit(name)
    assert unit["Service"]["Restart"] == ["always"]
    assert unit["Unit"]["StartLimitIntervalSec"] == ["0"]
    given = float(unit["Service"]["TimeoutStopSec"][0])
    if (
        "celery" in unit["Service"]["ExecStart"][0]
        and "worker -n" in unit["Service"]["ExecStart"][0]
    ):
        assert given > MOST_DRAIN
        # Celery's own process tells the others, and SIGTERM to all would strike them as well.
        assert unit["Service"]["KillMode"] == ["mixed"]


@pytest.mark.parametrize("name", SERVICES)
def test_secrets_come_as_credentials(name) -> None:
    service = read_service(name)
    named = check_credentials(service)
    secrets = read_compose({"WEBHOOK_BASE_URL": "https://x"})["services"][DAEMONS[name]]["secrets"]
    assert sorted([*named, *PAGE.get(name, ())]) == sorted(secrets)


def test_page_is_there_by_a_drop_in_alone() -> None:
    drop_in = read_unit("extend-video-receiver.service.d/page.conf")["Service"]
    assert check_credentials(drop_in) == PAGE["extend-video-receiver.service"]
    receiver = (UNITS / "extend-video-receiver.service").read_text()
    assert "MONITOR" not in receiver + (UNITS / "extend-video.env").read_text()


def check_credentials(service: dict[str, list[str]]) -> list[str]:
    """The secrets that are handed over and named as files of settings, which are the same."""
    handed = [value.partition(":")[0] for value in service.get("LoadCredential", ())]
    named = dict(re.findall(r"(\w+)_FILE=%d/(\w+)", " ".join(service["Environment"])))
    assert sorted(handed) == sorted(named.values())
    assert {variable.lower() for variable in named} <= set(Settings.model_fields)
    return handed


def test_environment_file_has_settings_and_no_secrets() -> None:
    variables = read_env_file(UNITS / "extend-video.env")
    assert {name.lower() for name in variables} <= set(Settings.model_fields)
    assert not [value for value in variables.values() if "@" in value]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units with programs that are there."""
    for path in filter(Path.is_file, UNITS.rglob("*")):
        copy = tmp_path / path.relative_to(UNITS)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(path.read_text().replace(PROGRAMS, str(BIN)))
    return tmp_path


def analyze(installed: Path, *arguments: str) -> str:
    ran = subprocess.run(
        [str(ANALYZE), *arguments], cwd=installed, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@NEEDS_SYSTEMD
def test_systemd_finds_nothing_wrong(installed) -> None:
    units = [
        f"./{path.name}" for path in installed.iterdir() if path.suffix in {".service", ".target"}
    ]
    complaints = analyze(installed, "verify", "--man=no", *units)
    assert [line for line in complaints.splitlines() if "extend-video" in line] == []


@NEEDS_SYSTEMD
@pytest.mark.parametrize("name", SERVICES)
def test_exposure_is_low(installed, name) -> None:
    printed = analyze(installed, "security", "--offline=true", f"./{name}")
    levels = re.findall(r"exposure level for \S+: ([0-9.]+)", printed)
    assert levels
    for level in levels:
        assert float(level) <= MOST_EXPOSURE
