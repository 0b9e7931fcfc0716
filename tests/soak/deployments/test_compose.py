"""The services of docker-compose.yml as processes: every command line in it does its work."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pytest
import redis

from tests.deployment.compose import (
    ROOT,
    Translation,
    build_health_command,
    list_commands,
    read_compose,
    read_env_file,
    read_first_job,
)
from tests.harness.brokers import find_closed_port
from tests.harness.processes import BIN, Part, Yard, run_yard
from tests.harness.servers import Postgres
from tests.harness.waiting import wait_until
from tests.system.rows import open_table

EMULATOR = read_env_file(ROOT / "deploy" / "emulator.env")
WITH_PAGE = {"MONITOR_TOKEN_FILE": "/run/secrets/monitor_token"}
OURS = ("receiver", "submitter", "archiver", "sweeper", "beat")
HEALTH_SECONDS = 60


@dataclass
class Site:
    """The services of the file as processes of this machine, with the emulator's profile."""

    yard: Yard
    postgres: Postgres
    compose: Mapping[str, Any]
    translation: Translation = field(default_factory=Translation)

    def build_env(self, name: str) -> dict[str, str]:
        given = self.compose["services"][name].get("environment", {})
        kept = {one: self.translation.apply(value) for one, value in given.items()}
        path = f"{BIN}:{self.postgres.bin_path}:{os.environ['PATH']}"
        image = {"ARCHIVE_URL": self.translation.apply("file:/archive"), "LOG_FORMAT": "json"}
        return {**image, **kept, "PATH": path, "PYTHONUNBUFFERED": "1"}

    def translate_command(self, name: str) -> list[str]:
        return self.translation.apply_all(list_commands(self.compose["services"][name]))

    def start(self, name: str, *more: str) -> Part:
        return self.yard.start(name, [*self.translate_command(name), *more], self.build_env(name))

    def run_health_check(self, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = build_health_command(self.compose["services"][name])
        program, *words = self.translation.apply_all(command)
        return self.yard.run([program, *more, *words], self.build_env(name), HEALTH_SECONDS)

    def wait_for_health(self, name: str, *more: str) -> None:
        wait_until(lambda: self.run_health_check(name, *more).returncode == 0, HEALTH_SECONDS)


@pytest.fixture
def site(tmp_path, postgres, clip) -> Iterator[Site]:
    files = tmp_path / "emulator" / "files"
    files.mkdir(parents=True)
    (files / "sample.mp4").write_bytes(clip.read_bytes())
    with run_yard(tmp_path) as yard:
        site = Site(yard, postgres, read_compose({**EMULATOR, **WITH_PAGE}))
        ports = {name: find_closed_port() for name in ("receiver", "emulator", "redis")}
        site.translation.words = {
            "redis:6379": f"127.0.0.1:{ports['redis']}",
            "http://receiver:8000": f"http://127.0.0.1:{ports['receiver']}",
            "0.0.0.0:8000": f"127.0.0.1:{ports['receiver']}",
            "127.0.0.1:8000": f"127.0.0.1:{ports['receiver']}",
            "emulator:8001": f"127.0.0.1:{ports['emulator']}",
            "127.0.0.1:8001": f"127.0.0.1:{ports['emulator']}",
            "0.0.0.0": "127.0.0.1",
            "8001": str(ports["emulator"]),
            "/usr/share/extend-video/sample.mp4": str(clip),
            "/tmp/emulator": str(tmp_path / "emulator"),
            "/run/secrets": str(write_secrets(tmp_path, postgres)),
            "file:/archive": f"file:{tmp_path / 'archive'}",
        }
        yield site


def write_secrets(directory: Path, postgres: Postgres) -> Path:
    """As the script does, with another server's address."""
    script = ["sh", str(ROOT / "deploy" / "make-secrets.sh")]
    subprocess.run(script, cwd=directory, check=True, env={"PATH": os.environ["PATH"]})
    path = directory / "secrets" / "database_url"
    path.chmod(0o600)
    path.write_text(postgres.url_of(postgres.create_database()))
    return directory / "secrets"


def start_redis(site: Site) -> None:
    directory = site.yard.directory / "redis"
    directory.mkdir()
    port = site.translation.words["redis:6379"].rpartition(":")[2]
    where = ["--port", port, "--bind", "127.0.0.1", "--dir", str(directory)]
    site.start("redis", *where)
    wait_until(lambda: "PONG" in site.run_health_check("redis", "-p", port).stdout, HEALTH_SECONDS)
    with closing(redis.Redis(port=int(port))) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


@pytest.mark.timeout(400)
def test_services_started_in_order_archive_a_video_and_are_healthy(site) -> None:
    start_redis(site)
    migrated = site.yard.run(site.translate_command("migrate"), site.build_env("migrate"), 60)
    assert migrated.returncode == 0, migrated.stderr
    for name in ("emulator", *OURS):
        site.start(name)
    for name in ("emulator", "receiver", "submitter", "archiver", "sweeper"):
        site.wait_for_health(name)
    emulator = site.translation.apply("http://emulator:8001")
    job_request = [
        "--prompt",
        "on",
        "--video",
        f"{emulator}/files/sample.mp4",
        "--set",
        "num_frames=9",
    ]
    job_request += ["--set", "num_context_frames=5", "--json"]

    enqueued = site.yard.run(["extend-video", "enqueue", *job_request], site.build_env("submitter"))
    service, first = read_first_job()
    first_ended = site.yard.run(site.translation.apply_all(first), site.build_env(service), 120)

    assert enqueued.returncode == 0, enqueued.stderr
    assert first_ended.returncode == 0, first_ended.stderr
    assert "archived" in first_ended.stdout
    url = (site.yard.directory / "secrets" / "database_url").read_text()
    with open_table(url) as table:
        job = table.wait_for_end(UUID(json.loads(enqueued.stdout)["id"]), seconds=90)
    assert Path(urlsplit(job["archive_uri"]).path).stat().st_size == job["archive_bytes"]
    assert_page_opens_by_its_secret(site)


def assert_page_opens_by_its_secret(site: Site) -> None:
    """By way of what speaks TLS in front of it, whose word it takes for that."""
    token = (site.yard.directory / "secrets" / "monitor_token").read_text()
    told = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1"}
    url = site.translation.apply("http://receiver:8000")
    with httpx.Client(base_url=url, headers=told, trust_env=False) as client:
        assert client.post("/jobs/login", data={"secret": token + "x"}).status_code == 401
        opened = client.post("/jobs/login", data={"secret": token})
    assert opened.status_code == 303
    assert "Secure" in opened.headers["Set-Cookie"]


def test_health_check_of_a_worker_that_is_not_there_fails(site) -> None:
    start_redis(site)
    assert site.run_health_check("submitter").returncode != 0


def test_health_check_of_a_receiver_that_is_not_there_fails(site) -> None:
    assert site.run_health_check("receiver").returncode != 0


def test_health_check_of_postgres_asks_the_server(site, postgres) -> None:
    where = ["-h", str(postgres.directory)]
    assert site.run_health_check("postgres", *where).returncode == 0
    assert site.run_health_check("postgres", "-h", str(site.yard.directory)).returncode != 0
