"""Planted secrets are nowhere but where they belong, whatever goes wrong on the way."""

import base64
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest
import redis
from celery import Celery

from tests.harness.brokers import find_closed_port
from tests.harness.processes import (
    CELERY,
    EXTEND_VIDEO,
    TWO_WORKERS,
    Deployment,
    Yard,
    find_marked,
    run_deployment,
    run_emulator,
)
from tests.harness.waiting import wait_until
from tests.system.rows import JobTable, open_table
from webhook.app import create_app
from worker.cli.daemons import find_redis
from worker.ground.errors import InvalidSettingsError
from worker.ground.settings import load_settings

KEY, DATABASE_PASSWORD, BROKER_PASSWORD, MONITOR_TOKEN = CANARIES = (
    "canary-key-4f0e1b52:9d7c3a60",
    "canary-database-77b1c0",
    "canary-broker-20d95e",
    "canary-monitor-8c41fa",
)
FAULTS: Mapping[str, Mapping[str, object]] = {
    "account refused": {"point": "submit", "kind": "status", "code": 401, "times": 1},
    "fal broken": {"point": "submit", "kind": "status", "code": 500, "times": 1},
    "fal silent": {"point": "submit", "kind": "hang", "seconds": 2, "times": 1},
    "reply lost": {"point": "submit", "kind": "execute_then_drop", "times": 1},
    "no JSON": {"point": "submit", "kind": "malformed", "form": "not_json", "times": 1},
    "refused by fal": {"point": "submit", "kind": "status", "code": 422, "times": 1},
    "webhook lost": {"point": "webhook", "kind": "lost", "times": 1},
    "download refused": {"point": "cdn", "kind": "status", "code": 500, "times": 1},
}
SETTINGS = {
    "FAL_KEY": KEY,
    "MONITOR_TOKEN": MONITOR_TOKEN,
    "LOG_LEVEL": "debug",
    "POLL_SECONDS": "1",
    "PROBE_SECONDS": "1",
    "START_TIMEOUT_SECONDS": "3",
    "UNKNOWN_SECONDS": "4",
    "MAX_ATTEMPTS": "20",
    # What it answers must not quote them either.
    "REMOTE_CONTROL": "true",
}
ORDERS = ("cancel", "redrive")
SOON = 90.0


def find_canaries(found: Mapping[str, str | bytes]) -> list[tuple[str, str]]:
    """Where a planted secret is: as it is, as in a URL, or in Base64."""
    hits = []
    for place, content in found.items():
        seen = content.encode(errors="replace") if isinstance(content, str) else content
        for canary in CANARIES:
            forms = (canary.encode(), quote(canary).encode(), base64.b64encode(canary.encode()))
            if any(form in seen for form in forms):
                hits.append((place, canary))
    return hits


@dataclass
class Wire:
    """Whatever clients tell Redis, but for their passwords, which it does not repeat."""

    port: int
    commands: list[str] = field(default_factory=list)

    @contextmanager
    def listening(self) -> Iterator[None]:
        with self.connect() as client, client.monitor() as monitor:
            thread = threading.Thread(target=self._listen, args=(monitor,), daemon=True)
            thread.start()
            try:
                yield
            finally:
                with self.connect() as other:
                    other.echo("the end")
                thread.join(SOON)

    def connect(self) -> redis.Redis:
        # Without a timeout: there may be nothing to hear for a while.
        return redis.Redis(port=self.port, password=BROKER_PASSWORD, socket_timeout=None)

    def _listen(self, monitor: Any) -> None:
        for heard in monitor.listen():
            self.commands.append(str(heard["command"]))
            if "the end" in self.commands[-1]:
                return

    def read_keys(self) -> dict[str, bytes]:
        with self.connect() as client:
            dumps = {name: client.dump(name) for name in client.scan_iter()}
        return {f"redis key {name!r}": bytes(dump or b"") for name, dump in dumps.items()}


@contextmanager
def run_locked_redis(directory: Path) -> Iterator[Wire]:
    wire = Wire(find_closed_port())
    command = [find_redis(), "--port", str(wire.port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(
        [*command, "--requirepass", BROKER_PASSWORD, "--dir", str(directory)],
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: is_up(wire.port))
        yield wire
    finally:
        process.kill()
        process.wait()


def is_up(port: int) -> bool:
    try:
        with redis.Redis(port=port, password=BROKER_PASSWORD) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


@dataclass
class Haunt:
    """A deployment whose every secret is a canary."""

    deployment: Deployment
    table: JobTable
    wire: Wire
    emulator: Any
    printed: dict[str, str] = field(default_factory=dict)

    def say(self, *arguments: str, **settings: str) -> str:
        """Run a command line, and keep what it has printed."""
        env = {**self.deployment.settings, **settings}
        command = (
            [EXTEND_VIDEO, *arguments] if arguments[0] != "celery" else [*CELERY, *arguments[1:]]
        )
        ran = self.deployment.yard.run(command, env, SOON)
        self.printed[f"$ {' '.join(arguments)} {sorted(settings)}"] = ran.stdout + ran.stderr
        return ran.stdout

    def enqueue(self, prompt: str, **settings: str) -> None:
        video = f"{self.emulator.url}/files/sample.mp4"
        self.say("enqueue", "--prompt", prompt, "--video", video, **settings)

    def send_wishes(self, *prompts: str) -> None:
        """By Celery alone, as other services do."""
        video = f"{self.emulator.url}/files/sample.mp4"
        broker = self.deployment.settings["BROKER_URL"]
        with Celery("producer", broker=broker, set_as_current=False) as producer:
            for prompt in prompts:
                fields = {"prompt": prompt, "video_url": video}
                producer.send_task("extend_video.enqueue", kwargs=fields, queue="extend_video")

    def list_ids(self) -> list[str]:
        return [str(row["id"]) for row in self.table.select("SELECT id FROM jobs")]

    def wait_for_ends(self, count: int) -> None:
        ended = "SELECT count(*) AS n FROM jobs WHERE due_at IS NULL"
        wait_until(lambda: self.table.select(ended)[0]["n"] >= count, SOON)


@pytest.fixture
def haunt(yard: Yard, postgres, clip) -> Iterator[Haunt]:
    name = postgres.create_database()
    url = f"postgresql+psycopg://postgres:{DATABASE_PASSWORD}@/{name}?host={postgres.directory}"
    files = yard.directory / "emulator" / "files"
    files.mkdir(parents=True)
    (files / "sample.mp4").write_bytes(clip.read_bytes())
    with ExitStack() as stack:
        wire = stack.enter_context(run_locked_redis(yard.directory))
        options = ("--key", KEY, "--webhook-retry-seconds", "0.2", "--render", "fake")
        emulator = stack.enter_context(run_emulator(yard, *options))
        deployment = stack.enter_context(
            run_deployment(
                yard,
                emulator=emulator,
                fal_url=emulator.url,
                database_url=url,
                broker_url=f"redis://:{BROKER_PASSWORD}@127.0.0.1:{wire.port}/0",
                workers=TWO_WORKERS,
                changes=SETTINGS,
            )
        )
        table = stack.enter_context(open_table(url))
        yield Haunt(deployment, table, wire, emulator)


def live_through_failures(haunt: Haunt) -> None:
    """Jobs that meet each fault, one that fal refuses, two that are refused here."""
    haunt.emulator.order(
        *({**fault, "match": {"prompt": name}} for name, fault in FAULTS.items()),
        {"point": "jwks", "kind": "status", "code": 500, "times": 2},
    )
    haunt.send_wishes(*FAULTS)
    haunt.wait_for_ends(len(FAULTS))
    haunt.enqueue("refused here", FAL_TAGS="no tag at all")
    haunt.say("enqueue", "--prompt", "wrong", "--video", "nowhere.mp4", "--set", "fps=900")


def ask_every_command(haunt: Haunt) -> None:
    for command in (
        *("list", "list --json", "doctor --json", "sweep", "migrate", "status", "status --json"),
        *("verify --json", "prune --older-than 1d --dry-run", "cancel --state failed --dry-run"),
    ):
        haunt.say(*command.split())
    for row in haunt.table.select("SELECT id FROM jobs WHERE state = 'failed' LIMIT 1"):
        haunt.say("show", str(row["id"]))
        haunt.say("show", str(row["id"]), "--json", "--logs")
    for question in ("inspect conf", "inspect stats", "report"):
        haunt.say("celery", *question.split())


def make_everything_wrong(haunt: Haunt) -> None:
    """Settings that are refused, and servers that are away: who tells of them must not quote."""
    port = find_closed_port()
    away = f"postgresql+psycopg://videos:{DATABASE_PASSWORD}@127.0.0.1:{port}/videos"
    no_broker = f"redis://:{BROKER_PASSWORD}@127.0.0.1:{port}/0"
    wrong_password = f"redis://:{BROKER_PASSWORD}x@127.0.0.1:{haunt.wire.port}/0"
    haunt.enqueue(
        "never", FAL_KEY=f"{KEY} with a space", BROKER_URL=f"memory://:{BROKER_PASSWORD}@h"
    )
    haunt.enqueue("never", DATABASE_URL=f"mysql://u:{DATABASE_PASSWORD}@h/x", LEASE_SECONDS="often")
    haunt.say("migrate", DATABASE_URL=away)
    haunt.say("celery", "worker", "-P", "solo", DATABASE_URL=away)
    haunt.say("up", "--port", str(port), BROKER_URL=no_broker)
    haunt.say("sweep", BROKER_URL=wrong_password)
    # Told and waited for: Celery tries again and again.
    worker = [*CELERY, "worker", "-P", "solo", "-n", "shut-out@%h"]
    settings = {**haunt.deployment.settings, "BROKER_URL": wrong_password}
    shut_out = haunt.deployment.yard.start("shut-out", worker, settings)
    shut_out.wait_for_log("broker_unavailable", SOON)
    shut_out.kill()


def ask_every_route(haunt: Haunt) -> Iterator[tuple[str, str]]:
    """Each one that the receiver has, as anybody and with wrong credentials, and by POST too."""
    named = {name.lower(): value for name, value in haunt.deployment.settings.items()}
    rules = list(create_app(load_settings(**named)).url_map.iter_rules())
    base = haunt.deployment.settings["WEBHOOK_BASE_URL"]
    job_id = haunt.list_ids()[0]
    with httpx.Client(base_url=base, trust_env=False, timeout=30) as client:
        for rule in rules:
            filled = {
                **dict.fromkeys(rule.arguments, job_id),
                "part": "video",
                "filename": "page.css",
            }
            given = {name: filled[name] for name in rule.arguments}
            _, path = rule.build(given) or ("", rule.rule)
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                for answer in (
                    client.get(path, headers=headers),
                    client.post(path, headers=headers, content=b"{}"),
                ):
                    yield f"{answer.request.method} {path}", f"{answer.headers}{answer.text}"


def ask_as_operator(haunt: Haunt) -> Iterator[tuple[str, str]]:
    """All that the page shows to whoever knows the token: lists, stories, plots, refusals."""
    base = haunt.deployment.settings["WEBHOOK_BASE_URL"]
    with httpx.Client(base_url=base, trust_env=False, timeout=30) as client:
        opened = client.post("/jobs/login", data={"secret": MONITOR_TOKEN})
        yield "POST /jobs/login", f"{opened.headers}{opened.text}"
        stories = [f"/jobs/{job_id}" for job_id in haunt.list_ids()]
        for path in ("/jobs", "/jobs?state=failed", f"/jobs?text={KEY[:9]}", *stories):
            answer = client.get(path)
            assert answer.status_code == HTTPStatus.OK, path
            yield f"GET {path}", f"{answer.headers}{answer.text}"
        for path in (
            "/jobs/none",
            *(f"{story}/{order}" for story in stories[:1] for order in ORDERS),
        ):
            answer = client.post(path, data={"csrf_token": "wrong"})
            yield f"POST {path}", f"{answer.headers}{answer.text}"


def read_tables(haunt: Haunt) -> Iterator[tuple[str, str]]:
    url = haunt.deployment.settings["DATABASE_URL"].replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        names = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
        ).fetchall()
        for (name,) in names:
            rows = connection.execute(f"SELECT * FROM {name}".encode()).fetchall()
            yield f"table {name}", repr(rows)


def read_files(haunt: Haunt) -> Iterator[tuple[str, bytes]]:
    """Logs and archive; the emulator, which has to know the key, is no part of the product."""
    for path in haunt.deployment.yard.directory.rglob("*"):
        if path.is_file() and "emulator" not in str(
            path.relative_to(haunt.deployment.yard.directory)
        ):
            yield path.name, str(path).encode() + path.read_bytes()


def read_command_lines(haunt: Haunt) -> Iterator[tuple[str, bytes]]:
    for pid in find_marked(haunt.deployment.yard.mark):
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"emulator" not in line:
            yield f"command line of {pid}", line


@pytest.mark.timeout(600)
def test_planted_secrets_are_nowhere_to_be_found(haunt) -> None:
    with haunt.wire.listening():
        live_through_failures(haunt)
    ask_every_command(haunt)
    make_everything_wrong(haunt)
    # In this order: wrong credentials make the right ones wait.
    answers = [*ask_as_operator(haunt), *ask_every_route(haunt)]

    found: dict[str, str | bytes] = {
        **haunt.printed,
        **haunt.wire.read_keys(),
        "messages": "\n".join(haunt.wire.commands),
    }
    places: list[tuple[str, str | bytes]] = [*answers, *read_tables(haunt), *read_files(haunt)]
    for place, content in (*places, *read_command_lines(haunt)):
        found[f"{place} ({len(found)})"] = content

    assert find_canaries(found) == []
    states = [row["state"] for row in haunt.table.select("SELECT state FROM jobs")]
    assert sorted(set(states)) == ["archived", "failed"], "the key was good, and faults were met"
    assert states.count("archived") >= len(FAULTS) - 1
    assert "extend_video" in "\n".join(haunt.wire.commands)
    assert len(answers) >= 12


def test_planted_secret_would_be_found() -> None:
    encoded = base64.b64encode(KEY.encode()).decode()
    for form in (KEY, quote(KEY), encoded):
        assert find_canaries({"somewhere": f"x{form}y"}) == [("somewhere", KEY)]


def test_settings_and_their_refusals_do_not_show_a_secret() -> None:
    settings = load_settings(
        fal_key=KEY,
        database_url=f"postgresql+psycopg://u:{DATABASE_PASSWORD}@h/x",
        broker_url=f"redis://:{BROKER_PASSWORD}@h/0",
    )
    shown = {"repr": repr(settings), "str": str(settings), "dump": str(settings.model_dump())}
    shown["json"] = settings.model_dump_json()
    with pytest.raises(InvalidSettingsError) as caught:
        load_settings(fal_key=f"{KEY} x", database_url=f"mysql://u:{DATABASE_PASSWORD}@h/x")
    shown["refusal"] = str(caught.value) + repr(caught.value)
    assert find_canaries(shown) == []
