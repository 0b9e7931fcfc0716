"""Settings from the environment or `.env`: one frozen value, read once, checked at start.

The names are fixed by the contract with operators; the README's table is tested against this class.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    field_serializer,
)
from pydantic_settings import SettingsConfigDict

from worker.ground.errors import InvalidSettingsError, Violation
from worker.ground.network import read_network
from worker.ground.setting_faults import describe_missing, describe_violation, mask_url
from worker.ground.setting_files import FiledSettings
from worker.ground.setting_types import (
    DEFAULT_LAYOUT,
    MAX_WEBHOOK_BYTES,
    MOST_INLINE_BYTES,
    MOST_UPLOAD_BYTES,
    HttpUrl,
    Key,
    Seconds,
    UnknownPolicy,
    check_broker_url,
    check_database_url,
    check_endpoint,
    check_file,
    check_long,
    check_password_hash,
    check_secrets,
)


class Settings(FiledSettings):
    """Every setting, with its unit, bound and meaning."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8-sig",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    database_url: Annotated[str, AfterValidator(check_database_url)] = Field(
        "sqlite:///extend-video.db",
        description="SQLAlchemy URL of the job table; PostgreSQL in production",
        repr=False,
    )
    broker_url: Annotated[str, AfterValidator(check_broker_url)] = Field(
        "redis://127.0.0.1:6379/0",
        description="Celery broker: Redis, Valkey or RabbitMQ",
        repr=False,
    )
    fal_key: Key | None = Field(
        None, description="fal key; or FAL_KEY_ID and FAL_KEY_SECRET, which are joined with a colon"
    )
    fal_key_id: Key | None = Field(None, description="first half of the fal key")
    fal_key_secret: Key | None = Field(None, description="second half of the fal key")
    fal_endpoint: Annotated[str, AfterValidator(check_endpoint)] = Field(
        "fal-ai/ltx-2.3-22b/extend-video",
        description="model endpoint: owner/app/extend-video, or a variant below it",
    )
    fal_queue_url: HttpUrl = Field("https://queue.fal.run", description="queue API base")
    fal_rest_url: HttpUrl = Field("https://rest.fal.ai", description="storage API base")
    fal_cdn_url: HttpUrl = Field("https://v3.fal.media", description="CDN upload base")
    fal_platform_url: HttpUrl = Field("https://api.fal.ai/v1", description="platform API base")
    fal_jwks_url: HttpUrl = Field(
        "https://rest.fal.ai/.well-known/jwks.json", description="webhook signing keys"
    )
    fal_user_id: str | None = Field(
        None, description="if set, webhooks of another fal user id are refused"
    )
    fal_media_hosts: str = Field(
        "*.fal.media",
        description="hosts results may be downloaded from: comma list of host, host:port, *.host",
    )
    fal_store_io: bool = Field(
        default=True, description="ask fal to keep input and output JSON for 30 days"
    )
    fal_priority: Literal["normal", "low"] = Field(
        "normal", description="queue priority; low lets all normal requests go first"
    )
    fal_no_retry: bool = Field(
        default=False, description="have fal not start a request again on another runner"
    )
    fal_disable_fallback: bool = Field(
        default=False, description="have fal not turn to an equivalent model"
    )
    fal_object_expiration_seconds: int | None = Field(
        None, ge=3600, le=315_360_000, description="when fal deletes the files of a result"
    )
    fal_initial_acl: str | None = Field(
        None, description="who may read the files of a result: allow, forbid, hide, or JSON"
    )
    fal_tags: str | None = Field(
        None, description="tags of each request, shown in fal's dashboard: name=value,name=value"
    )
    fal_runner_hint: str | None = Field(
        None, description="requests with the same hint go to the same runner, if fal can"
    )
    webhook_base_url: HttpUrl | None = Field(
        None, description="public URL of the receiver; required by the worker"
    )
    token_secret: Annotated[Key, AfterValidator(check_secrets)] | None = Field(
        None,
        description="signs webhook tokens, so that they survive the loss of their row: comma list, "
        "newest first, the same for receivers and workers; none: random tokens",
    )
    webhook_max_bytes: int = Field(
        1024 * 1024,
        ge=1024,
        le=MAX_WEBHOOK_BYTES,
        description="largest webhook body that the receiver reads, in bytes",
    )
    webhook_read_seconds: Seconds = Field(
        timedelta(seconds=10),
        description="how long a request may take to arrive whole at the receiver, head and body",
    )
    archive_url: str = Field(
        "file:./archive",
        description="where videos go: file:, s3://bucket/prefix, gs://, az://",
    )
    max_video_bytes: int = Field(
        8 * 1024**3, ge=1, description="largest video that is downloaded, in bytes"
    )
    max_upload_bytes: int = Field(
        8 * 1024**3,
        ge=1,
        le=MOST_UPLOAD_BYTES,
        description="largest file that is uploaded as input, in bytes",
    )
    data_uri_max_bytes: int = Field(
        256 * 1024,
        ge=0,
        le=MOST_INLINE_BYTES,
        description="a data URI that holds more is uploaded instead of sent inline, in bytes",
    )
    lease_seconds: Seconds = Field(
        timedelta(seconds=60),
        description="how long a claimed step may be silent before the sweep takes it over",
    )
    sweep_seconds: Seconds = Field(timedelta(seconds=5), description="how often the sweep runs")
    poll_seconds: Seconds = Field(
        timedelta(seconds=120),
        description="how long a submitted job waits for its webhook before fal is asked",
    )
    start_timeout_seconds: Seconds = Field(
        timedelta(hours=1), description="fal's start timeout sent with each submission"
    )
    unknown_seconds: Seconds = Field(
        timedelta(seconds=5400),
        description="least time before a submission that stayed unknown may be sent again",
    )
    unknown_policy: UnknownPolicy = Field(
        UnknownPolicy.RESUBMIT, description="what follows then: resubmit, or hold for a human"
    )
    max_attempts: int = Field(
        3,
        ge=1,
        le=100,
        description="how many submissions may be lost before the job fails; waiting is none",
    )
    retry_seconds: Seconds = Field(
        timedelta(days=1),
        description="how long a job may be turned away by fal before it fails",
    )
    probe_seconds: Seconds = Field(
        timedelta(seconds=60),
        description="how long submissions pause after fal refused the account, then one is tried",
    )
    archive_deadline_seconds: Seconds = Field(
        timedelta(hours=1),
        description="how long after its completion a job may be unarchived before it is alarmed",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe level that is logged"
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="json for programs, text for people; auto picks by terminal"
    )
    broker_ca_file: Annotated[str, AfterValidator(check_file)] | None = Field(
        None,
        description="certificates that the broker's is checked against, instead of the system's",
    )
    broker_sentinel_master: str = Field(
        "mymaster", min_length=1, description="name of the master that the sentinels watch"
    )
    remote_control: bool = Field(
        False,
        description="let Celery's remote control in (`celery inspect`, `shutdown`, `rate_limit`), "
        "for anybody who can write to the broker",
    )
    drain_seconds: Seconds = Field(
        timedelta(seconds=20),
        description="how long a step may go on after SIGTERM before its row is given back",
    )

    spool_dir: str = Field(
        "./spool",
        description="where files wait on their way into an archive that is not on this machine",
    )
    archive_layout: str = Field(
        DEFAULT_LAYOUT,
        description="names in the archive: a template of yyyy, mm, dd, hh, tenant, job_id and ext",
    )

    archive_max_downloads: int = Field(
        32, ge=1, le=10_000, description="how many videos are downloaded at once, over all workers"
    )
    archive_bytes_per_second: int | None = Field(
        None,
        ge=1024,
        le=1024**4,
        description="most bytes that a worker process downloads in a second, all videos together",
    )
    media_memory_bytes: int = Field(
        256 * 1024 * 1024,
        ge=64 * 1024 * 1024,
        le=1024**4,
        description="most memory for decoding one file, in bytes beside a process's own 60 MB",
    )
    media_processes: int = Field(
        4, ge=1, le=64, description="how many processes may decode files for a worker process"
    )
    watchdog_seconds: Seconds = Field(
        timedelta(seconds=120),
        description="how long a worker may leave messages that it has hands for; then it ends",
    )
    monitor_token: Annotated[Key, AfterValidator(check_long)] | None = Field(
        None, description="opens the page GET /jobs; without it and a password hash there is none"
    )
    monitor_password_hash: Annotated[SecretStr, AfterValidator(check_password_hash)] | None = Field(
        None, description="the same, for a password of which only this hash is kept"
    )
    monitor_session_seconds: Seconds = Field(
        timedelta(hours=12), description="how long a login to the page is good"
    )
    trusted_proxies: int = Field(
        0,
        ge=0,
        le=10,
        description="how many proxies before the receiver tell its callers' address and scheme",
    )

    @field_serializer("database_url", "broker_url", "archive_url")
    def _mask(self, value: str) -> str:
        return mask_url(value)

    @property
    def fal_credentials(self) -> SecretStr | None:
        """The whole fal key, whichever way it was given."""
        if self.fal_key is not None:
            return self.fal_key
        if self.fal_key_id is None or self.fal_key_secret is None:
            return None
        return SecretStr(
            f"{self.fal_key_id.get_secret_value()}:{self.fal_key_secret.get_secret_value()}"
        )

    @property
    def token_secrets(self) -> tuple[SecretStr, ...]:
        """The first one signs webhook tokens, all of them verify."""
        if self.token_secret is None:
            return ()
        return tuple(map(SecretStr, self.token_secret.get_secret_value().split(",")))


# By their type, so that a new one is masked from its first day.
SECRET_FIELDS = {
    name for name, field in Settings.model_fields.items() if "SecretStr" in repr(field.annotation)
}


def list_secrets(settings: Settings) -> list[str]:
    """Every text in the settings that nobody may read, for whoever writes logs."""
    held = [value for _, value in settings if isinstance(value, SecretStr)]
    held += settings.token_secrets
    keys = [one.get_secret_value() for one in (*held, settings.fal_credentials) if one is not None]
    urls = (settings.database_url, settings.broker_url, settings.archive_url)
    passwords = [urlsplit(url).password for url in urls]
    return [*keys, *(unquote(word) for word in passwords if word), *filter(None, passwords)]


def load_settings(**overrides: Any) -> Settings:  # noqa: ANN401 - any field's value
    """Read the environment and `.env`; InvalidSettingsError names every wrong variable at once.

    Proxies and authorities are checked after them: later, wrong ones would stop each job.
    """
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        raise InvalidSettingsError(
            tuple(
                describe_violation(detail, SECRET_FIELDS)
                for detail in error.errors(include_url=False)
            )
        ) from None
    except UnicodeDecodeError:
        raise InvalidSettingsError((Violation(".env", "(not text)", "must be UTF-8"),)) from None
    read_network()
    return settings


def require_settings(settings: Settings, names: Sequence[str]) -> None:
    """Raise InvalidSettingsError naming each of `names` that has no value."""
    halves = {
        "FAL_KEY_ID": settings.fal_key_id is None,
        "FAL_KEY_SECRET": settings.fal_key_secret is None,
    }
    missing = tuple(
        describe_missing(name, halves) for name in names if getattr(settings, name) is None
    )
    if missing:
        raise InvalidSettingsError(missing)
