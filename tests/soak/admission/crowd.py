"""Many jobs of few tenants at a small account, and what fal's own record says of them.

Whatever is looked at here is of the contract: settings, commands, columns, and the emulator's
ledger.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.emulator.processes import Emulator
from tests.harness.processes import (
    EXTEND_VIDEO,
    THREADS,
    Deployment,
    WorkerPlan,
    run_deployment,
    run_emulator,
    run_yard,
)
from tests.harness.servers import Broker, run_broker
from tests.harness.waiting import wait_until
from tests.system.conftest import YARDS
from tests.system.rows import JobTable, open_table

POOLS: Mapping[str, Sequence[str]] = {
    "prefork": ("-P", "prefork", "-c", "2"),
    "threads": ("-P", "threads", "-c", "4"),
}
OTHER_QUEUES = (
    *("extend_video", "extend_video.reconcile", "extend_video.cancel"),
    *("extend_video.sweep", "extend_video.archive"),
)
OTHERS: WorkerPlan = {"other": (*THREADS, "-Q", ",".join(OTHER_QUEUES))}
"""One worker for all but submissions."""
READY_SECONDS = 180.0
"""For seventeen workers that start on two cores."""
USUAL = {
    "SWEEP_SECONDS": "1",
    "LEASE_SECONDS": "3",
    "DRAIN_SECONDS": "3",
    "POLL_SECONDS": "5",
    "START_TIMEOUT_SECONDS": "5",
    "UNKNOWN_SECONDS": "15",
    "PROBE_SECONDS": "2",
    "RETRY_SECONDS": "3600",
}
UNIT_PRICE = "0.001605"
CHEAPEST = {
    "video_url": "http://127.0.0.1/never-fetched.mp4",
    "num_frames": 9,
    "num_context_frames": 5,
    "video_size": {"width": 128, "height": 96},
}
"""One megapixel, by our estimate as by the emulator's bill."""


@dataclass(frozen=True)
class Ledger:
    """The emulator's own record."""

    most_at_once: int
    most_running: int
    posts: list[dict[str, Any]]
    by_input: list[dict[str, Any]]
    by_request: dict[str, dict[str, Any]]

    @property
    def accepted(self) -> list[dict[str, Any]]:
        return [one for one in self.posts if one["accepted"]]

    def list_paid_twice(self) -> list[str]:
        """Prompts: each job has its own."""
        charges: Counter[str] = Counter()
        for one in self.by_input:
            charges[one["prompt"]] += one["charges"]
        return [prompt for prompt, times in charges.items() if times > 1]


@dataclass(frozen=True)
class Crowd:
    deployment: Deployment
    emulator: Emulator
    table: JobTable
    broker: Broker

    def enqueue(self, *requests: Mapping[str, object]) -> list[UUID]:
        """Commit them together, in this order; their ids."""
        path = self.deployment.yard.directory / f"{uuid4()}.jsonl"
        ids = [uuid4() for _ in requests]
        given = zip(ids, requests, strict=True)
        lines = [json.dumps({"job_id": str(job_id), **request}) for job_id, request in given]
        path.write_text("\n".join(lines))
        settings = self.deployment.settings
        command = [EXTEND_VIDEO, "enqueue", "--from", str(path)]
        ended = self.deployment.yard.run(command, settings, READY_SECONDS)
        assert ended.returncode == 0, ended.stderr
        return ids

    def run(self, *words: str) -> str:
        """What `extend-video` prints; it must succeed."""
        ended = self.deployment.run(*words)
        assert ended.returncode == 0, f"{' '.join(words)}: {ended.stdout}{ended.stderr}"
        return ended.stdout

    def count_states(self) -> Counter[str]:
        """With the code of what failed: `failed request_timeout`."""
        rows = self.table.select(
            "SELECT state, error_code, count(*) AS n FROM jobs GROUP BY state, error_code"
        )
        return Counter(
            {" ".join(filter(None, (r["state"], r["error_code"]))): r["n"] for r in rows}
        )

    def count_ended(self) -> int:
        ended = "SELECT count(*) AS n FROM jobs WHERE state IN ('archived', 'failed', 'cancelled')"
        return int(self.table.select(ended)[0]["n"])

    def wait_for_ends(self, count: int, seconds: float) -> None:
        """Until so many jobs have ended in all; a failure tells which have not."""
        try:
            wait_until(lambda: self.count_ended() >= count, seconds)
        except AssertionError as late:
            raise AssertionError(f"{late}: {self.list_unended()}") from late

    def list_unended(self) -> list[dict[str, Any]]:
        return self.table.select(
            "SELECT tenant, state, blocked_reason, count(*) AS n FROM jobs "
            "WHERE state NOT IN ('archived', 'failed', 'cancelled') "
            "GROUP BY tenant, state, blocked_reason"
        )

    def read_ledger(self) -> Ledger:
        read = self.emulator.client.get("/_emulator/ledger", timeout=60).json()
        return Ledger(
            read["most_at_once"],
            read["most_running"],
            read["posts"],
            read["by_input"],
            read["by_request"],
        )

    def count_posts(self) -> int:
        return len(self.read_ledger().posts)

    def list_slots(self) -> list[dict[str, Any]]:
        """Attempts that are, or may be, at fal by our own reckoning."""
        rows = self.table.select("SELECT * FROM attempts WHERE slot_until IS NOT NULL")
        now = datetime.now(UTC)
        return [row for row in rows if read_time(row["slot_until"]) > now]


def read_time(value: object) -> datetime:
    read = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def build_request(tenant: str = "default", **fields: object) -> dict[str, object]:
    """The cheapest, with a prompt of its own that names the tenant."""
    prompt = f"tenant={tenant} {uuid4()}"
    return {"prompt": prompt, "tenant": tenant, **CHEAPEST, **fields}


def build_requests(
    count: int, tenant: str = "default", **fields: object
) -> list[dict[str, object]]:
    return [build_request(tenant, **fields) for _ in range(count)]


@contextmanager
def run_crowd(
    request: pytest.FixtureRequest,
    directory: Path,
    database_url: str,
    workers: WorkerPlan,
    *emulator_options: str,
    **changes: str,
) -> Iterator[Crowd]:
    """Every daemon at work, on a broker and an emulator of its own; `changes` are settings."""
    with ExitStack() as stack:
        broker = stack.enter_context(run_broker())
        yard = stack.enter_context(run_yard(directory))
        request.node.stash.setdefault(YARDS, []).append(yard)
        emulator = stack.enter_context(run_emulator(yard, "--render", "fake", *emulator_options))
        deployment = stack.enter_context(
            run_deployment(
                yard,
                emulator=emulator,
                fal_url=emulator.url,
                database_url=database_url,
                broker_url=broker.url,
                workers=workers,
                changes={**USUAL, **changes},
            )
        )
        table = stack.enter_context(open_table(database_url))
        for name in workers:
            yard.parts[name].wait_for_log(" ready.", READY_SECONDS)
        yield Crowd(deployment, emulator, table, broker)
