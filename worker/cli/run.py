"""`extend-video up`, `demo` and `emulator`: a whole deployment on this machine."""

import contextlib
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from worker.cli import daemons, options, output
from worker.cli.enqueue import watch_job
from worker.ground.db import name_sqlite
from worker.ground.errors import DaemonError, InvalidInputError
from worker.ground.settings import Settings, load_settings
from worker.jobs.states import JobState
from worker.jobs.values import Job
from worker.ops.timeline import read_story
from worker.producer import place_request
from worker.runtime import Runtime, build_runtime
from worker.stages.enqueue import parse_job_request

PROMPT = "The camera glides on, in the same light and the same slow motion."
SAMPLE_URL = "https://v3b.fal.media/files/b/0a8824b1/sdm0KfmenrlywesfzY1Y1_if6euPp1.mp4"
RECEIVER_PORT = 8000
EMULATOR_USER = "emulator-user"
ENDPOINT = Settings.model_fields["fal_endpoint"].default
EMULATOR_START = timedelta(seconds=60)
EMULATOR_TIMEOUT = timedelta(minutes=5)
FAL_TIMEOUT = timedelta(hours=2)


def up(
    host: Annotated[str, typer.Option(help="Where the receiver listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
) -> None:
    """Run receiver, workers and scheduler on this machine.

    Until Ctrl-C or SIGTERM, which ends all of them.

    Examples:
        extend-video up
        extend-video up --host 0.0.0.0 --port 8080

    """
    from worker.ground.schema import upgrade_schema

    runtime = build_runtime()
    runtime.check_worker()
    if not runtime.dispatcher.ping():
        raise DaemonError("no broker answers at BROKER_URL: start Redis, or set the variable")
    upgrade_schema(runtime.settings.database_url)
    timeout = runtime.settings.drain_seconds + daemons.MARGIN
    with (
        daemons.bind_listener(host, port) as listener,
        daemons.Supervisor(os.environ, timeout=timeout) as supervisor,
        contextlib.suppress(KeyboardInterrupt),  # the way out
    ):
        output.err.print(f"receiver on http://{host}:{listener.getsockname()[1]}")
        for daemon in (daemons.receiver_daemon(listener), *daemons.worker_daemons()):
            supervisor.start(daemon)
        supervisor.watch()


def emulator(context: typer.Context) -> NoReturn:
    """Run the emulator of fal on loopback; --help shows its options.

    Examples:
        extend-video emulator --port 9000
        extend-video emulator --help

    """
    daemons.require_emulator()
    command = [sys.executable, "-m", "emulator", *context.args]
    os.execv(sys.executable, command)  # noqa: S606 - it takes this process's place


# ------------------------------------------------------------------ demo


def demo(
    video: options.Video = None,
    prompt: options.Prompt = None,
    set_fields: options.SetFields = [],
) -> None:
    """Extend a real video end to end on this machine.

    On the emulator; with FAL_KEY and WEBHOOK_BASE_URL on fal itself, which costs money.

    Examples:
        extend-video demo
        extend-video demo --video my.mp4 --prompt "The camera rises"

    """
    fields, wrong = options.read_fields(set_fields)
    if wrong:
        raise InvalidInputError(tuple(wrong))
    fields = {"prompt": PROMPT if prompt is None else prompt, **fields}
    source = None if video is None else options.read_file(video)
    parse_job_request({**fields, "video_url": SAMPLE_URL})
    try:
        job = run_demo(source, fields, load_settings())
    except KeyboardInterrupt:
        output.err.print("interrupted: every process has ended")
        raise typer.Exit(options.INTERRUPTED) from None
    raise typer.Exit(options.OK if job.state is JobState.ARCHIVED else options.FAILED)


def run_demo(source: str | Path | None, fields: Mapping[str, object], settings: Settings) -> Job:
    """Start everything, extend one video, end everything; the job as it ended.

    Its files are in a new directory below ./demo. With FAL_KEY and WEBHOOK_BASE_URL set, fal itself
    does the work. Raises DaemonError, MissingProgramError, and TimeoutError if the job goes on.
    """
    from worker.media.sample import make_sample

    is_real = settings.fal_credentials is not None and settings.webhook_base_url is not None
    if not is_real:
        daemons.require_emulator()
    directory = (
        Path("demo").absolute() / f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{os.getpid()}"
    )
    for part in ("logs", "archive"):
        (directory / part).mkdir(parents=True)
    # No proxy for what runs on loopback.
    env = {**os.environ, "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    with (
        tempfile.TemporaryDirectory(prefix="extend-video-") as scratch,
        daemons.bind_listener("127.0.0.1", RECEIVER_PORT if is_real else 0) as listener,
        daemons.Supervisor(env, directory / "logs") as supervisor,
    ):
        redis = daemons.redis_daemon(Path(scratch))
        who = "the emulator stands in for fal (FAL_KEY and WEBHOOK_BASE_URL are not both set)"
        if is_real:
            url = settings.webhook_base_url
            who = f"fal does the work; {url} has to lead to port {RECEIVER_PORT} here"
        where = f"with the broker {redis.command[0]}; logs in {directory / 'logs'}"
        output.err.print(f"{who}\nstarting all on this machine, {where}", markup=False)
        supervisor.start(redis)
        chosen = {
            "DATABASE_URL": name_sqlite(directory / "extend-video.db"),
            "BROKER_URL": f"redis+socket://{scratch}/redis.sock",
            "ARCHIVE_URL": (directory / "archive").as_uri(),
        }
        if not is_real:
            host, port = listener.getsockname()
            chosen |= list_emulator_settings(start_emulator(supervisor, directory))
            chosen["WEBHOOK_BASE_URL"] = f"http://{host}:{port}"
        if source is None and is_real:
            source = SAMPLE_URL
        elif source is None:
            source = directory / "sample.mp4"
            make_sample(source)
        supervisor.env = {**env, **chosen}
        runtime = Runtime(load_settings(**{key.lower(): value for key, value in chosen.items()}))
        timeout = FAL_TIMEOUT if is_real else EMULATOR_TIMEOUT
        job = extend_one(runtime, supervisor, listener, {**fields, "video_url": source}, timeout)
        print_result(job, source)
        return job


def extend_one(
    runtime: Runtime,
    supervisor: daemons.Supervisor,
    listener: socket.socket,
    fields: Mapping[str, object],
    timeout: timedelta,
) -> Job:
    """Start what is of ours, enqueue a job, and print its events; the job as it ended."""
    from worker.ground.schema import upgrade_schema

    upgrade_schema(runtime.settings.database_url)
    with output.show_progress(output.err) as on_progress:
        job_request = runtime.make_job_request(fields, on_progress=on_progress)
    for daemon in (daemons.receiver_daemon(listener), *daemons.worker_daemons()):
        supervisor.start(daemon)
    job = place_request(runtime, job_request).job
    output.out.print(f"job {job.id}")
    watch_job(runtime, job.id, timeout=timeout, on_read=supervisor.check)
    return read_story(job.id, db=runtime.db).job


def start_emulator(supervisor: daemons.Supervisor, directory: Path) -> str:
    """Its URL. Raises DaemonError."""
    command = [sys.executable, "-m", "emulator", "--directory", str(directory / "emulator")]
    command += ["--queue-seconds", "0.5", "--run-seconds", "1", "--user-id", EMULATOR_USER]
    supervisor.start(daemons.Daemon("emulator", command))
    deadline = time.monotonic() + EMULATOR_START.total_seconds()
    while time.monotonic() < deadline:
        ready = re.search(r"emulator listening on (\S+)", supervisor.read_log("emulator"))
        if ready is not None:
            return ready[1]
        supervisor.check()
        time.sleep(daemons.CHECK_SECONDS)
    raise DaemonError("the emulator did not start in time")


def list_emulator_settings(base_url: str) -> dict[str, str]:
    """Every URL of fal: a demo on the emulator never reaches fal itself."""
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


def print_result(job: Job, source: str | Path) -> None:
    """The job's row, and the archived file beside what it was made of."""
    from worker.media.local_store import local_path

    output.print_section("job row")
    output.print_fields(output.list_facts(job))
    if job.state is not JobState.ARCHIVED:
        return
    path = local_path(str(job.archive_uri))
    assert path is not None  # noqa: S101 - the demo archives to disk
    before = {"length before": describe_length(source)} if isinstance(source, Path) else {}
    output.print_section("result")
    facts = {"archived file": path, "sha256": job.archive_sha256, **before}
    output.print_fields({**facts, "length after": describe_length(path)})


def describe_length(path: Path) -> str:
    from worker.media.examiner import get_examiner
    from worker.media.facts import Stated

    facts = get_examiner().verify(path, Stated()).facts
    seconds = f"{facts.duration.total_seconds():.2f} s" if facts.duration else "unknown length"
    return f"{seconds}, {facts.frames} frames, {facts.width}x{facts.height}"
