"""What the emulator remembers of a request."""

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Self

from emulator.lifecycle import Lifecycle
from emulator.problems import ModelError


class Status(StrEnum):
    """fal knows no more than these: COMPLETED covers failure and cancellation too."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended: the model's own answer, or the platform's when no model answered."""

    status_code: int
    body: Mapping[str, object]
    headers: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    error_type: str | None = None
    file: str | None = None
    """The CDN's name of the video, if there is one."""

    @classmethod
    def from_model_error(cls, refusal: ModelError) -> Self:
        return cls(422, refusal.to_json(), error=str(refusal), error_type=refusal.problems[0].type)

    @classmethod
    def from_platform(cls, status_code: int, error_type: str, message: str, **headers: str) -> Self:
        return cls(
            status_code,
            {"detail": message, "error_type": error_type},
            {"X-Fal-Error-Type": error_type, **headers},
            error=message,
            error_type=error_type,
        )


@dataclass(frozen=True, slots=True)
class LogEntry:
    at: datetime
    message: str
    level: str = "INFO"

    def to_json(self) -> dict[str, object]:
        timestamp = self.at.isoformat()
        named = {"message": self.message, "timestamp": timestamp}
        return {**named, "level": self.level, "source": "USER"}


@dataclass(frozen=True, slots=True)
class Delivery:
    """One webhook POST: answered (`status_code`) or not (`error`)."""

    at: datetime
    status_code: int | None
    error: str | None = None
    fault: str | None = None
    """What was wrong with it by order, if anything."""

    def to_json(self) -> dict[str, object]:
        answer = {"status_code": self.status_code, "error": self.error}
        return {"at": self.at.isoformat(), **answer, "fault": self.fault}


@dataclass(slots=True, kw_only=True, eq=False)
class FalRequest:
    """One submission, from its POST to its last webhook.

    Changed by the queue alone, except for `log_entries` (the model's), `deliveries` and
    `announced` (the courier's).
    """

    origin: str
    """Scheme and host the caller used, from which the URLs of the answers are built."""
    input: Mapping[str, object]
    headers: Mapping[str, str] = field(default_factory=dict)
    account: str = ""
    """User id of whose key submitted it."""
    webhook_url: str | None = None
    is_low_priority: bool = False
    start_timeout: timedelta | None = None
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    """Of the result's file."""
    least_wait: timedelta = timedelta(0)
    least_run: timedelta = timedelta(0)

    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: Status = Status.IN_QUEUE
    submitted_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started_at: datetime | None = None
    completed_at: datetime | None = None
    is_cancel_requested: bool = False
    is_erased: bool = False
    """It is reported to nobody outside any more."""
    outcome: Outcome | None = None
    log_entries: list[LogEntry] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    announced: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a webhook was answered, or once it is clear that none will be sent."""

    @property
    def prompt(self) -> str:
        return str(self.input.get("prompt", ""))

    @property
    def is_charged(self) -> bool:
        """A run was started: this is what costs money."""
        return self.started_at is not None

    @property
    def inference_time(self) -> timedelta:
        """Zero for a request that was never started."""
        if self.started_at is None or self.completed_at is None:
            return timedelta(0)
        return self.completed_at - self.started_at

    @property
    def is_stored(self) -> bool:
        """Whether fal was asked to keep input and output; what it never stores, it cannot keep."""
        return self.headers.get("x-fal-store-io") == "1" and self.input.get("sync_mode") is not True

    def log(self, message: str, level: str = "INFO") -> None:
        self.log_entries.append(LogEntry(datetime.now(UTC), message, level))

    def to_json(self) -> dict[str, object]:
        """Everything, for `/_emulator/requests`."""
        return {
            "request_id": self.request_id,
            "input": dict(self.input),
            "headers": dict(self.headers),
            "account": self.account,
            "webhook_url": self.webhook_url,
            "status": self.status,
            "submitted_at": self.submitted_at.isoformat(),
            "started_at": _format_time(self.started_at),
            "completed_at": _format_time(self.completed_at),
            "cancel_requested": self.is_cancel_requested,
            "charged": self.is_charged,
            "erased": self.is_erased,
            "result_status_code": self.outcome.status_code if self.outcome else None,
            "result": self.outcome.body if self.outcome else None,
            "error": self.outcome.error if self.outcome else None,
            "error_type": self.outcome.error_type if self.outcome else None,
            "deliveries": [delivery.to_json() for delivery in self.deliveries],
        }


def _format_time(at: datetime | None) -> str | None:
    return at.isoformat() if at else None
