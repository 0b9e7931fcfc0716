"""`extend-video demo`: one real video through the whole path, on parts private to the run."""

import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from worker.cli import display
from worker.cli.daemons import (
    Crew,
    Daemon,
    bind_listener,
    find_redis,
    receiver_daemon,
    redis_daemon,
    require_emulator,
    worker_daemons,
)
from worker.cli.progress import show_progress
from worker.ground.db import name_sqlite
from worker.ground.errors import DaemonError, InvalidInputError, MediaRefusedError, Violation
from worker.ground.schema import upgrade_schema
from worker.ground.settings import Settings, load_settings
from worker.jobs.states import JobState
from worker.jobs.values import Job
from worker.media.examiner import get_examiner
from worker.media.facts import Stated
from worker.media.local_file import take_file
from worker.media.local_store import local_path
from worker.media.sample import make_sample
from worker.ops.timeline import follow_events, read_story
from worker.runtime import Runtime
from worker.stages.enqueue import JobRequest, enqueue_job, parse_job_request

PROMPT = "The camera glides on, in the same light and the same slow motion."
SAMPLE_URL = "https://v3b.fal.media/files/b/0a8824b1/sdm0KfmenrlywesfzY1Y1_if6euPp1.mp4"
RECEIVER_PORT = 8000
EMULATOR_USER = "emulator-user"
ENDPOINT = Settings.model_fields["fal_endpoint"].default
START_PATIENCE = timedelta(seconds=60)
EMULATOR_PATIENCE = timedelta(minutes=5)
FAL_PATIENCE = timedelta(hours=2)
LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What to extend, how, and where the run keeps its files."""

    video: str | Path | None
    fields: Mapping[str, object]
    directory: Path


def run_demo(plan: DemoPlan) -> Job:
    """Start everything, extend one video, end everything; the job as it ended.

    With FAL_KEY and WEBHOOK_BASE_URL set, fal itself does the work. Raises DaemonError,
    MissingProgramError, InvalidInputError, and TimeoutError if the job does not end.
    """
    settings = load_settings()
    fal: dict[str, str] = {}
    real = settings.fal_credentials is not None and settings.webhook_base_url is not None
    check_plan(plan, settings, real=real)
    for name in ("logs", "archive"):
        (plan.directory / name).mkdir(parents=True)
    with (
        tempfile.TemporaryDirectory(prefix="extend-video-") as scratch,
        bind_listener("127.0.0.1", RECEIVER_PORT if real else 0) as listener,
        Crew(_clean_env(), plan.directory / "logs") as crew,
    ):
        display.err.print(describe_run(plan, settings, real=real), markup=False)
        crew.start(redis_daemon(Path(scratch)))
        private = {
            "DATABASE_URL": name_sqlite(plan.directory / "extend-video.db"),
            "BROKER_URL": f"redis+socket://{scratch}/redis.sock",
            "ARCHIVE_URL": (plan.directory / "archive").as_uri(),
        }
        source = _choose_source(plan, real=real)
        if not real:
            fal = _start_emulator(crew, plan, listener)
        chosen = {**private, **fal}
        crew.env = {**_clean_env(), **chosen}
        settings = load_settings(**{name.lower(): value for name, value in chosen.items()})
        return _extend_video(crew, plan, source, settings, listener)


def check_plan(plan: DemoPlan, settings: Settings, *, real: bool) -> None:
    """Refuse what cannot work before anything is started. Raises InvalidInputError."""
    if isinstance(plan.video, Path):
        try:
            take_file(plan.video, get_examiner().inspect_video, settings.max_upload_bytes)
        except MediaRefusedError as error:
            wrong = Violation("--video", str(plan.video), str(error))
            raise InvalidInputError((wrong,)) from None
    if not real:
        require_emulator()
    url = plan.video if isinstance(plan.video, str) else SAMPLE_URL
    parse_job_request({"prompt": PROMPT, **plan.fields, "video_url": url})


def describe_run(plan: DemoPlan, settings: Settings, *, real: bool) -> str:
    """Who does the work, and where to look."""
    worker = "the emulator stands in for fal (FAL_KEY and WEBHOOK_BASE_URL are not both set)"
    if real:
        worker = (
            f"fal does the work; {settings.webhook_base_url} has to lead to our {RECEIVER_PORT}"
        )
    return (
        f"{worker}\n"
        f"starting all on this machine, with the broker {find_redis()}; "
        f"logs in {plan.directory / 'logs'}"
    )


def _choose_source(plan: DemoPlan, *, real: bool) -> str | Path:
    """What is extended: fal has a sample of its own, the emulator gets one of ours."""
    if plan.video is not None or real:
        return plan.video or SAMPLE_URL
    sample = _name_sample(plan)
    make_sample(sample)
    return sample


def _name_sample(plan: DemoPlan) -> Path:
    return plan.directory / "sample.mp4"


def _extend_video(
    crew: Crew, plan: DemoPlan, source: str | Path, settings: Settings, listener: socket.socket
) -> Job:
    upgrade_schema(settings.database_url)
    runtime = Runtime(settings)
    with show_progress(display.err) as on_progress:
        fields = {"prompt": PROMPT, **plan.fields, "video_url": source}
        job_request = runtime.make_job_request(fields, on_progress=on_progress)
    crew.start(receiver_daemon(listener))
    for daemon in worker_daemons():
        crew.start(daemon)
    job = _follow_job(crew, runtime, job_request)
    _print_result(job, plan)
    return job


def _start_emulator(crew: Crew, plan: DemoPlan, listener: socket.socket) -> dict[str, str]:
    """The settings that put the emulator in fal's place."""
    directory = plan.directory / "emulator"
    command = [sys.executable, "-m", "emulator", "--directory", str(directory)]
    command += ["--queue-seconds", "0.5", "--run-seconds", "1", "--user-id", EMULATOR_USER]
    crew.start(Daemon("emulator", command))
    host, port = listener.getsockname()
    emulated = list_emulator_settings(_await_emulator(crew))
    return {**emulated, "WEBHOOK_BASE_URL": f"http://{host}:{port}"}


def list_emulator_settings(base_url: str) -> dict[str, str]:
    """Every place where fal would be asked: a demo on the emulator never asks fal itself."""
    return {
        "FAL_KEY": "emulator-key",
        "FAL_USER_ID": EMULATOR_USER,
        "FAL_ENDPOINT": ENDPOINT,
        "FAL_QUEUE_URL": base_url,
        "FAL_REST_URL": base_url,
        "FAL_CDN_URL": base_url,
        "FAL_PLATFORM_URL": f"{base_url}/v1",
        "FAL_JWKS_URL": f"{base_url}/.well-known/jwks.json",
        "FAL_MEDIA_HOSTS": base_url.removeprefix("http://"),
    }


def _await_emulator(crew: Crew) -> str:
    deadline = time.monotonic() + START_PATIENCE.total_seconds()
    while time.monotonic() < deadline:
        ready = re.search(r"emulator listening on (\S+)", crew.read_log("emulator"))
        if ready is not None:
            return ready[1]
        crew.check()
        time.sleep(LOOK_SECONDS)
    raise DaemonError("the emulator did not start in time")


def _follow_job(crew: Crew, runtime: Runtime, job_request: JobRequest) -> Job:
    """Enqueue, print each state as it comes, and look after the daemons meanwhile."""
    settings = runtime.settings
    patience = EMULATOR_PATIENCE if settings.fal_queue_url.startswith("http:") else FAL_PATIENCE
    enqueued = enqueue_job(
        job_request,
        db=runtime.db,
        endpoint=settings.fal_endpoint,
        grace=settings.lease_seconds,
    )
    runtime.dispatcher.publish(enqueued.job.doorbell)
    display.out.print(f"job {enqueued.job.id}")
    before = None
    for event in follow_events(
        enqueued.job.id, db=runtime.db, patience=patience, on_look=crew.check
    ):
        display.out.print(display.show_event(event, before))
        before = event
    return read_story(enqueued.job.id, db=runtime.db).job


def _print_result(job: Job, plan: DemoPlan) -> None:
    display.out.print("[bold]job row[/bold]")
    display.print_fields(display.list_facts(job))
    if job.state is not JobState.ARCHIVED:
        return
    path = local_path(str(job.archive_uri))
    assert path is not None  # noqa: S101 - the demo archives to disk
    display.out.print("[bold]result[/bold]")
    facts: dict[str, object] = {"archived file": path, "sha256": job.archive_sha256}
    source = _find_source(plan)
    if source is not None:
        facts["length before"] = _describe_length(source)
    facts["length after"] = _describe_length(path)
    display.print_fields(facts)


def _find_source(plan: DemoPlan) -> Path | None:
    """The file that was extended, if it is on this machine."""
    if isinstance(plan.video, Path):
        return plan.video
    return _name_sample(plan) if _name_sample(plan).is_file() else None


def _describe_length(path: Path) -> str:
    facts = get_examiner().verify(path, Stated()).facts
    seconds = f"{facts.duration.total_seconds():.2f} s" if facts.duration else "unknown length"
    return f"{seconds}, {facts.frames} frames, {facts.width}x{facts.height}"


def name_directory() -> Path:
    """A new directory for each run, below ./demo."""
    return Path("demo").absolute() / f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{os.getpid()}"


def _clean_env() -> dict[str, str]:
    """The environment, without a proxy for what runs on loopback."""
    return {**os.environ, "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
