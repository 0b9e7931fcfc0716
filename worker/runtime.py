"""What a process works with, built from its settings: database, clients, archive, dispatcher.

The only place that knows how the parts are put together. Each property imports what it makes: a
process loads only what it uses, so a command that reads rows starts without Celery, httpx or
obstore.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, TypeVar

import structlog
from pydantic import SecretStr

from worker.ground.clock import read_clock
from worker.ground.db import (
    PROGRAM,
    TRANSIENT_DB_ERRORS,
    Database,
    describe_database_error,
)
from worker.ground.errors import DaemonError, InvalidInputError, InvalidSettingsError, Violation
from worker.ground.log import configure_logging, mask_url
from worker.ground.once import Once, shared_property
from worker.ground.settings import Settings, list_secrets, load_settings, require_settings
from worker.jobs.states import Doorbell, Step

if TYPE_CHECKING:
    from worker.broker.dispatch import Dispatcher
    from worker.fal.billing import BillingClient
    from worker.fal.options import RequestOptions
    from worker.fal.platform import PlatformClient
    from worker.fal.requests import RequestClient
    from worker.fal.storage import OnProgress, StorageClient
    from worker.fal.submit import QueueClient
    from worker.jobs.values import Job
    from worker.jobs.workers import SeenWorker
    from worker.media.examiner import Examiner
    from worker.media.pinned import MediaClient
    from worker.media.store import Store
    from worker.ops.doctor import Diagnosis
    from worker.ops.rearchive import Rearchiver
    from worker.stages.admit import AdmissionPolicy
    from worker.stages.archive import ArchivePolicy, Keeper
    from worker.stages.enqueue import JobRequest
    from worker.stages.lease import Holder
    from worker.stages.poll import Reconciler
    from worker.stages.resolve import ResolvePolicy
    from worker.stages.restore import Restored
    from worker.stages.submit import SubmitPolicy
    from worker.stages.sweep import Observer
    from worker.stages.upload import FilePolicy

# Where fal's storage may send a file of ours, besides hosts that a setting names.
FAL_HOSTS = "*.fal.media,*.fal.ai,*.fal.run"
RESOLVE_TIME = timedelta(seconds=5)
# Far below the hour for which fal keeps a result at least.
DOWNLOAD_TIME = timedelta(minutes=20)
SHELL_PROGRAM = f"{PROGRAM} shell"
WORKER_PROGRAM = f"{PROGRAM} worker"
WORKER_NEEDS = ("webhook_base_url", "fal_credentials")
OPTION_SETTINGS = {
    "priority": "fal_priority",
    "start_timeout": "start_timeout_seconds",
    "object_expiration": "fal_object_expiration_seconds",
    "initial_acl": "fal_initial_acl",
    "tags": "fal_tags",
    "no_retry": "fal_no_retry",
    "disable_fallback": "fal_disable_fallback",
    "store_io": "fal_store_io",
    "runner_hint": "fal_runner_hint",
}
# What a pass of the sweep publishes at the most for queued jobs.
MOST_SUBMISSIONS = 50
V = TypeVar("V")

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True)
class Runtime:
    """Everything is made when first used: a producer needs neither a key nor an archive."""

    settings: Settings
    ending: Event = field(default_factory=Event, repr=False, compare=False)
    """Set when the process shuts down: from then on it begins no step."""
    program: str = PROGRAM
    """What PostgreSQL calls its connections."""

    @shared_property
    def worker(self) -> str:
        """A name that no other process has, not even after a restart with the same host and pid."""
        return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"

    @shared_property
    def db(self) -> Database:
        return Database(self.settings.database_url, program=self.program)

    @shared_property
    def dispatcher(self) -> Dispatcher:
        from worker.broker.dispatch import Dispatcher

        return Dispatcher(self.settings)

    @property
    def credentials(self) -> SecretStr:
        """Fal's key. Raises InvalidSettingsError if there is none."""
        require_settings(self.settings, ["fal_credentials"])
        credentials = self.settings.fal_credentials
        assert credentials is not None  # noqa: S101 - just required
        return credentials

    @shared_property
    def queue(self) -> QueueClient:
        from worker.fal.submit import QueueClient

        return QueueClient(self.settings.fal_queue_url, self.credentials)

    @shared_property
    def requests(self) -> RequestClient:
        from worker.fal.requests import RequestClient

        return RequestClient(self.settings.fal_queue_url, self.credentials)

    def open_billing(self) -> AbstractContextManager[BillingClient]:
        """A client for one call: prices and bills are read now and then."""
        from worker.fal.billing import BillingClient

        credentials = self.settings.fal_admin_key or self.credentials
        return closing(BillingClient(self.settings.fal_platform_url, credentials))

    def open_storage(self) -> AbstractContextManager[StorageClient]:
        """A client for one job request: uploads are rare, and their connections many."""
        from worker.fal.storage import StorageClient
        from worker.media.hosts import leads_to, parse_media_hosts, resolve_by_system

        settings = self.settings
        hosts = parse_media_hosts(f"{FAL_HOSTS},{settings.fal_media_hosts}")
        client = StorageClient(
            settings.fal_rest_url,
            settings.fal_cdn_url,
            self.credentials,
            may_use=lambda url: leads_to(url, hosts, resolve_by_system, RESOLVE_TIME),
        )
        return closing(client)

    def make_job_request(
        self,
        fields: Mapping[str, object],
        wrong: Sequence[Violation] = (),
        *,
        on_checked: Callable[[], object] | None = None,
        on_progress: OnProgress | None = None,
    ) -> JobRequest:
        """Check the fields, and upload their files; only that needs a key."""
        from worker.stages.upload import make_job_request

        return make_job_request(
            fields,
            wrong,
            db=self.db,
            open_storage=self.open_storage,
            policy=self.file_policy,
            on_checked=on_checked,
            on_progress=on_progress,
        )

    @property
    def file_policy(self) -> FilePolicy:
        from worker.stages.upload import FilePolicy

        settings = self.settings
        return FilePolicy(settings.data_uri_max_bytes, settings.max_upload_bytes, self.examiner)

    @property
    def examiner(self) -> Examiner:
        """One for all of this process, whose processes decode."""
        from worker.media.examiner import get_examiner
        from worker.media.facts import Bounds

        settings = self.settings
        return get_examiner(Bounds(settings.media_memory_bytes), settings.media_processes)

    @shared_property
    def platform(self) -> PlatformClient:
        from worker.fal.platform import PlatformClient

        return PlatformClient(self.settings.fal_platform_url, self.credentials)

    @property
    def resolve_policy(self) -> ResolvePolicy:
        from worker.stages.resolve import ResolvePolicy

        settings = self.settings
        return ResolvePolicy(
            unknown_after=settings.unknown_seconds,
            policy=settings.unknown_policy,
            max_attempts=settings.max_attempts,
            dispatch_timeout=settings.lease_seconds,
            start_timeout=settings.start_timeout_seconds,
            account=name_account(settings.fal_credentials),
        )

    @shared_property
    def reconciler(self) -> Reconciler:
        from worker.stages.poll import Reconciler
        from worker.stages.resolve import Resolver

        policy = self.resolve_policy
        resolver = Resolver(self.db, self.requests, self.platform, policy, read_clock)
        settings = self.settings
        return Reconciler(resolver, settings.poll_seconds, settings.retry_seconds)

    @shared_property
    def media(self) -> MediaClient:
        from worker.media.pinned import MediaClient, Pace

        rate = self.settings.archive_bytes_per_second
        return MediaClient(pace=None if rate is None else Pace(rate))

    @shared_property
    def store(self) -> Store:
        from worker.media.store import open_store

        def read(url: str) -> Store:
            return open_store(url, Path(self.settings.spool_dir))

        return _read_setting("archive_url", self.settings.archive_url, read)

    @shared_property
    def submit_policy(self) -> SubmitPolicy:
        from worker.stages.submit import SubmitPolicy

        settings = self.settings
        require_settings(settings, ["webhook_base_url"])
        return SubmitPolicy(
            worker=self.worker,
            webhook_base_url=str(settings.webhook_base_url),
            options=read_request_options(settings),
            lease=settings.lease_seconds,
            poll_after=settings.poll_seconds,
            retry_for=settings.retry_seconds,
            probe_after=settings.probe_seconds,
            admission=self.admission_policy,
            longest_run=choose_longest_run(settings),
            account=name_account(settings.fal_credentials),
            token_secrets=settings.token_secrets,
        )

    @shared_property
    def observer(self) -> Observer:
        from worker.stages.sweep import Observer

        return Observer(2 * self.settings.sweep_seconds)

    @property
    def archive_policy(self) -> ArchivePolicy:
        from worker.stages.archive import ArchivePolicy

        settings = self.settings
        return ArchivePolicy(self.worker, settings.lease_seconds, settings.archive_max_downloads)

    @shared_property
    def keeper(self) -> Keeper:
        from worker.media.download import DownloadLimits
        from worker.media.hosts import parse_media_hosts
        from worker.media.layout import parse_layout
        from worker.stages.archive import Keeper
        from worker.stages.fetch import Fetcher

        settings = self.settings
        fetcher = Fetcher(
            lambda: self.requests,
            lambda: self.platform,
            self.media,
            hosts=_read_setting("fal_media_hosts", settings.fal_media_hosts, parse_media_hosts),
            limits=DownloadLimits(DOWNLOAD_TIME, settings.max_video_bytes),
            examiner=self.examiner,
        )
        layout = _read_setting("archive_layout", settings.archive_layout, parse_layout)
        return Keeper(self.db, self.store, fetcher, layout)

    @property
    def rearchiver(self) -> Rearchiver:
        from worker.ops.rearchive import Rearchiver

        def fetch_copy(job: Job, holder: Holder) -> Mapping[str, object]:
            """Fetch and publish the video of the job's result; our copy as columns of its row."""
            return self.keeper.keep_video(job, holder).columns

        return Rearchiver(self.db, self.store, fetch_copy)

    @property
    def admission_policy(self) -> AdmissionPolicy:
        from worker.jobs.admission import Caps
        from worker.stages.admit import AdmissionPolicy

        settings = self.settings
        caps = Caps(settings.max_in_flight, settings.submits_per_minute, settings.daily_budget_usd)
        return AdmissionPolicy(caps, settings.fal_endpoint, settings.fal_unit_price_usd)

    def publish_submissions(self, jobs: Sequence[Job]) -> bool:
        """Publish for as many of these queued jobs as may be submitted now; False if some are lost.

        The others need no message: each slot that becomes free publishes one. While more jobs wait
        than there is room for, the queue gets no more messages than its workers can take.
        """
        from worker.stages.admit import count_for_new

        policy = self.admission_policy
        try:
            wanted, is_backlog = count_for_new(db=self.db, policy=policy, new=len(jobs))
        except TRANSIENT_DB_ERRORS as error:  # the jobs are committed: the sweep publishes for them
            log.warning("database_unavailable", reason=describe_database_error(error))
            return False
        if wanted and is_backlog:
            room = self.dispatcher.measure_room(Step.SUBMIT)
            if room is None:
                return False
            wanted = min(wanted, room.left(Step.SUBMIT))
        doorbells = [Doorbell(Step.SUBMIT, job.id) for job in jobs[:wanted]]
        return self.dispatcher.publish_all(doorbells)

    def publish_room(self) -> None:
        """Publish one submission, as a limit has changed: each with room publishes the next."""
        self.dispatcher.publish(Doorbell(Step.SUBMIT))

    def publish_overdue(self, pause: timedelta = timedelta()) -> tuple[int, int] | None:
        """One pass of the sweep: it ends within its period, however large the table is.

        Returns how many jobs were overdue, and for how many messages were published; None if
        another process sweeps, or has swept within the pause. A queue that holds as many messages
        as its workers can take gets no more.
        """
        from worker.broker.dispatch import QueueRoom
        from worker.ops.metrics import note_sweep
        from worker.stages import sweep
        from worker.stages.admit import count_submissions

        began, overdue, published, db = time.monotonic(), 0, 0, self.db
        period, policy = self.settings.sweep_seconds, self.admission_policy
        if not self.observer.note(db, pause) or not sweep.begin_sweep(db=db, lease=2 * period):
            return None
        try:
            sweep.pause_without_archive(db=db)
            sweep.settle_charges(policy, db=db)
            sweep.release_queued(db=db)
            # Without the broker nothing is known to wait.
            room = self.dispatcher.measure_room(*Step) or QueueRoom({})
            is_done = False
            while not is_done:
                swept = sweep.sweep_jobs(
                    db=db,
                    lease=self.settings.lease_seconds,
                    archive_deadline=self.settings.archive_deadline_seconds,
                )
                overdue += len(swept.doorbells)
                chosen = room.choose(swept.doorbells)
                is_taken = self.dispatcher.publish_all(chosen)
                published += len(chosen) if is_taken else 0
                is_late = time.monotonic() - began > period.total_seconds()
                is_done = not is_taken or is_late or swept.rows < sweep.BATCH
            wanted = count_submissions(db=db, policy=policy, most=MOST_SUBMISSIONS)
            wanted = room.left(Step.SUBMIT, wanted)
            is_taken = self.dispatcher.publish_all([Doorbell(Step.SUBMIT)] * wanted)
            published += wanted if is_taken else 0
        finally:
            sweep.end_sweep(db=db)
        note_sweep(overdue + wanted, time.monotonic() - began, db=db)
        return overdue + wanted, published

    def examine(self, *, every_file: bool, hours: int) -> Diagnosis:
        """Look for violations; in fal's list only with a key."""
        from worker.ops.doctor import DoctorPolicy, examine

        settings = self.settings
        platform = None if settings.fal_credentials is None else self.platform
        policy = DoctorPolicy(settings.fal_endpoint, every_file, timedelta(hours=hours))
        return examine(db=self.db, store=self.store, platform=platform, policy=policy)

    def list_workers(self) -> list[SeenWorker]:
        """Those that were seen within the last minute."""
        from worker.jobs.workers import list_workers
        from worker.ops.metrics import list_seen

        with self.db.reading() as connection:
            return list_seen(list_workers(connection), read_clock())

    def restore(self, lost_since: datetime, *, dry_run: bool) -> Restored:
        """Mark as unknown what fal may have accepted since. Raises DaemonError if workers run."""
        from worker.stages.restore import foresee_restore, restore_jobs

        if dry_run:
            return foresee_restore(lost_since, db=self.db)
        if seen := self.list_workers():
            names = ", ".join(f"{worker.name} (pid {worker.pid})" for worker in seen)
            raise DaemonError(f"seen within the last minute: {names}; stop every worker first")
        settings = self.settings
        return restore_jobs(
            lost_since,
            db=self.db,
            options=read_request_options(settings),
            account=name_account(settings.fal_credentials),
        )

    def check_worker(self) -> None:
        """Raise InvalidSettingsError unless a worker can do every step with these settings."""
        from worker.broker.app import check_broker

        require_settings(self.settings, WORKER_NEEDS)
        check_broker(self.settings)
        _ = (self.keeper, self.submit_policy)


@Once
def get_runtime() -> Runtime:
    """What this worker process works with."""
    return Runtime(load_settings(), program=WORKER_PROGRAM)


def choose_longest_run(settings: Settings) -> timedelta:
    """How long a request may take from its start on, with a margin (as `ResolvePolicy` has it)."""
    rest = settings.unknown_seconds - settings.start_timeout_seconds
    return max(rest, settings.unknown_seconds / 3) + settings.lease_seconds


def name_account(credentials: SecretStr | None) -> str | None:
    """A fingerprint of the key, itself no secret: each key has its own listing at fal."""
    if credentials is None:
        return None
    return hashlib.sha256(credentials.get_secret_value().encode()).hexdigest()[:16]


def build_runtime() -> Runtime:
    """What a command works with; it logs warnings, or more if `LOG_LEVEL` is set."""
    settings = load_settings()
    level = settings.log_level if "log_level" in settings.model_fields_set else "warning"
    configure_logging(level, settings.log_format, list_secrets(settings))
    return Runtime(settings, program=SHELL_PROGRAM)


def read_request_options(settings: Settings) -> RequestOptions:
    """The options of each request, unless its job has its own.

    Raises InvalidSettingsError.
    """
    from worker.fal.options import parse_option, parse_options, split_tags

    fields = {option: getattr(settings, name) for option, name in OPTION_SETTINGS.items()}
    given = {option: value for option, value in fields.items() if value is not None}
    if settings.fal_tags is not None:
        given["tags"] = _read_setting("fal_tags", settings.fal_tags, split_tags)
    try:
        if settings.fal_initial_acl is not None:
            given["initial_acl"] = parse_option("initial_acl", settings.fal_initial_acl)
        return parse_options(given)
    except InvalidInputError as error:
        wrong = (
            Violation(OPTION_SETTINGS[one.field.split(".")[0]].upper(), one.value, one.allowed)
            for one in error.violations
        )
        raise InvalidSettingsError(tuple(wrong)) from None


def _read_setting(name: str, text: str, read: Callable[[str], V]) -> V:
    try:
        return read(text)
    except ValueError as error:
        raise InvalidSettingsError((Violation(name.upper(), mask_url(text), str(error)),)) from None
