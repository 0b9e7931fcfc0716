"""A deployment with all that a test looks at: emulator, relay, job table, and a producer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from celery import Celery

from tests.emulator.processes import Emulator
from tests.harness.processes import Deployment, WorkerPlan, run_deployment, run_emulator, run_yard
from tests.harness.servers import run_redis
from tests.system.relay import Relay, run_relay
from tests.system.rows import JobTable, Row, open_table

SOURCE_FRAMES, NEW_FRAMES = 24, 4


@dataclass(frozen=True)
class Scene:
    deployment: Deployment
    emulator: Emulator
    relay: Relay
    table: JobTable
    producer: Celery

    def build_fields(self, **fields: object) -> dict[str, Any]:
        """The cheapest wish, different from every other one by its prompt."""
        return {
            "prompt": f"on it goes {uuid4()}",
            "video_url": self.emulator.sample_url,
            "num_frames": 5 + NEW_FRAMES,
            "num_context_frames": 5,
            **fields,
        }

    def send(self, task: str, *args: object, task_id: str | None = None, **fields: object) -> None:
        """Publish as any service does that has nothing but Celery."""
        queue = "extend_video" if task == "enqueue" else f"extend_video.{task}"
        name = f"extend_video.{task}"
        self.producer.send_task(name, args=args, kwargs=fields, queue=queue, task_id=task_id)

    def enqueue(self, **fields: object) -> UUID:
        """Send one wish with an id of our own; the id."""
        job_id = uuid4()
        self.send("enqueue", **{"job_id": str(job_id), **self.build_fields(**fields)})
        return job_id

    def list_submissions(self, job: Row) -> list[dict[str, Any]]:
        """The emulator's ledger for this job: every request with this prompt."""
        prompt = job["input"]["prompt"]
        requests = self.emulator.list_requests()
        return [request for request in requests if request["input"].get("prompt") == prompt]

    def list_archived(self, job_id: UUID) -> list[Path]:
        """The job's videos under final names, wherever the layout puts them."""
        found = sorted(self.deployment.archive.rglob(f"{job_id}*"))
        named = [path for path in found if path.parent.name != ".partial"]
        videos = [path for path in named if path.suffix not in {".json", ".jpg"}]
        assert all(path.with_suffix(".json") in named for path in videos), "each has its sidecar"
        return videos

    def list_partials(self) -> list[Path]:
        return list((self.deployment.archive / ".partial").glob("*"))


@contextmanager
def run_scene(
    directory: Path,
    database_url: str,
    sample: Path,
    workers: WorkerPlan,
    *,
    broker_url: str | None = None,
    changes: Mapping[str, str] | None = None,
    emulator_options: Sequence[str] = (),
    producer_options: Mapping[str, Any] | None = None,
) -> Iterator[Scene]:
    """On a Redis of its own, unless there is a broker already; `changes` as of a deployment."""
    with ExitStack() as stack, run_yard(directory) as yard:
        if broker_url is None:
            broker_url = stack.enter_context(run_redis())
        files = directory / "emulator" / "files"
        files.mkdir(parents=True)
        (files / "sample.mp4").write_bytes(sample.read_bytes())
        with (
            run_emulator(yard, "--webhook-retry-seconds", "0.2", *emulator_options) as emulator,
            run_relay(emulator.url) as relay,
            run_deployment(
                yard,
                emulator=emulator,
                fal_url=relay.url,
                database_url=database_url,
                broker_url=broker_url,
                workers=workers,
                changes=changes,
            ) as deployment,
        ):
            table = stack.enter_context(open_table(database_url))
            producer = stack.enter_context(
                Celery("producer", broker=broker_url, set_as_current=False)
            )
            producer.conf.update(producer_options or {})
            yield Scene(deployment, emulator, relay, table, producer)


def same_json(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Equal with the very types of JSON: 24 is not 24.0, and true is not 1."""
    return describe_types(one) == describe_types(other)


def describe_types(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: describe_types(inner) for name, inner in value.items()}
    return (type(value).__name__, value)
