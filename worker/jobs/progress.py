"""SQL on what `attempts` tells of a running request, by the same rules as `table.py`."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, true, update

from worker.jobs.models import AttemptRow

COMPLETED = "COMPLETED"


def note_progress(
    connection: Connection,
    attempt_id: UUID,
    *,
    fal_status: str,
    queue_position: int | None,
    inference_seconds: float | None,
    logs: Sequence[Any] | None,
) -> None:
    """Write fal's latest words; what it does not tell any more is kept.

    A word that was said before the end, and comes after it, is not written.
    """
    values: dict[str, Any] = {"fal_status": fal_status, "queue_position": queue_position}
    if inference_seconds is not None:
        values["inference_seconds"] = inference_seconds
    if logs:
        values["logs"] = list(logs)
    is_last_word = fal_status == COMPLETED
    in_time = true() if is_last_word else AttemptRow.completed_at.is_(None)
    connection.execute(
        update(AttemptRow).where(AttemptRow.id == attempt_id, in_time).values(**values)
    )
