"""A fal that answers each question as a test says, for replies that no emulator gives."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.harness.jobs import NOW, REQUEST_ID, build_result
from tests.harness.web import Answer, Asked, ScriptedHandler, ScriptedServer, run_server, send_json

LISTING = "/v1/models/requests/by-endpoint"
NOT_FOUND = send_json({"status": "NOT_FOUND"}, 404)
FAILED = {"detail": [{"loc": ["body", "video_url"], "msg": "no video", "type": "bad_video"}]}
INGRESS = b"<html><center>nginx</center></html>"
LOCKED = {"detail": "User is locked. Reason: Exhausted balance."}

# fal's pages, by hand: every type that a model refuses an input with (422).
UNPROCESSABLE_TYPES = (
    "content_policy_violation",
    "no_media_generated",
    "image_too_small",
    "image_too_large",
    "image_load_error",
    "file_download_error",
    "face_detection_error",
    "file_too_large",
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
    "multiple_of",
    "sequence_too_short",
    "sequence_too_long",
    "one_of",
    "feature_not_supported",
    "invalid_archive",
    "archive_file_count_below_minimum",
    "archive_file_count_exceeds_maximum",
    "audio_duration_too_long",
    "audio_duration_too_short",
    "video_duration_too_long",
    "video_duration_too_short",
    "unsupported_audio_format",
    "unsupported_image_format",
    "unsupported_video_format",
)


def accept(request_id: str = REQUEST_ID) -> Answer:
    return send_json({"status": "IN_QUEUE", "request_id": request_id})


def show_status(status: str, **more: object) -> Answer:
    return send_json({"status": status, **more}, 200 if status == "COMPLETED" else 202)


def list_items(*items: Mapping[str, object]) -> Answer:
    return send_json({"items": list(items), "next_cursor": None, "has_more": False})


def build_item(
    request_id: str = REQUEST_ID,
    json_input: object = None,
    *,
    ended_at: datetime | None = NOW,
    status_code: int | None = 200,
    json_output: object = None,
) -> dict[str, Any]:
    """A line of the listing; it has not ended without `ended_at`."""
    return {
        "request_id": request_id,
        "ended_at": ended_at.isoformat() if ended_at else None,
        "status_code": status_code if ended_at else None,
        "json_input": json_input,
        "json_output": json_output,
    }


@dataclass
class ScriptedFal:
    """One whose request runs for ever and whose listing is empty, if nothing else is said."""

    server: ScriptedServer
    submit: Answer = field(default_factory=accept)
    status: Answer = field(default_factory=lambda: show_status("IN_PROGRESS"))
    result: Answer = field(default_factory=lambda: send_json(build_result()))
    cancel: Answer = field(default_factory=lambda: send_json({"status": "OK"}))
    listing: Answer = field(default_factory=list_items)

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def asked(self) -> list[Asked]:
        return self.server.asked

    def reset(self) -> None:
        """As at the beginning."""
        fresh = ScriptedFal(self.server)
        self.submit, self.status, self.result = fresh.submit, fresh.status, fresh.result
        self.cancel, self.listing = fresh.cancel, fresh.listing
        self.asked.clear()

    def count(self, method: str, ending: str = "") -> int:
        """How many requests of this method, with a path that ends so."""
        return sum(one.method == method and one.path.endswith(ending) for one in self.asked)

    def finish(self, result: object = None) -> None:
        """The request is completed, with a video if no other result is given."""
        self.status = show_status("COMPLETED")
        self.result = send_json(result or build_result())

    def fail(self, body: object = None, code: int = 422, error: str | None = "failed") -> None:
        """The request is completed, without a video."""
        self.status = show_status("COMPLETED", error=error, error_type="bad_video")
        self.result = send_json(body or FAILED, code)

    def forget(self) -> None:
        """Neither status nor result is known (any more)."""
        self.status = self.result = NOT_FOUND

    def answer(self, handler: ScriptedHandler) -> None:
        asked = handler.asked
        if asked.method == "POST":
            self.submit(handler)
        elif asked.method == "PUT":
            self.cancel(handler)
        elif asked.path == LISTING:
            self.listing(handler)
        elif asked.path.endswith("/status"):
            self.status(handler)
        else:
            self.result(handler)


@contextmanager
def run_fal() -> Iterator[ScriptedFal]:
    with run_server(send_json({})) as server:
        fal = ScriptedFal(server)
        server.answer = fal.answer
        yield fal
