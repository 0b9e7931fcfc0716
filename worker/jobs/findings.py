"""What the doctor looks for, and what it finds."""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID


class Check(StrEnum):
    """What is looked for, by the name that is printed and documented."""

    DUE_TIME = "due_time"
    UNTRACKED_PAYMENT = "untracked_payment"
    TWO_CHARGES = "two_charges"
    ENDED_ROW_CHANGED = "ended_row_changed"
    BROKEN_HISTORY = "broken_history"
    INCOMPLETE_ARCHIVED_ROW = "incomplete_archived_row"
    DAMAGED_ARCHIVE = "damaged_archive"
    UNRECORDED_RESULT = "unrecorded_result"
    UNANSWERED_POLLS = "unanswered_polls"
    LATE_ARCHIVE = "late_archive"
    UNMATCHED_DELIVERY = "unmatched_delivery"
    STRAY_DELIVERY = "stray_delivery"
    ARCHIVED_FILE = "archived_file"
    ORPHAN_AT_FAL = "orphan_at_fal"
    MISSING_AT_FAL = "missing_at_fal"


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation, with the ids to look it up by; a request that nobody owns has no job."""

    check: Check
    job_id: UUID | None
    detail: str
    attempt_id: UUID | None = None
    delivery_id: int | None = None
    fal_request_id: str | None = None
