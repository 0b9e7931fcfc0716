"""SQL on videos that came inside a delivery, by the same rules as `table.py`."""

from uuid import UUID

from sqlalchemy import Connection, func, update

from worker.jobs.models import DeliveryRow


def replace_bodies(connection: Connection, job_id: UUID, marker: bytes, longest: int) -> None:
    """Keep the marker in place of the job's long bodies; their sha256 still knows a repetition."""
    too_long = func.length(DeliveryRow.body) > longest
    connection.execute(
        update(DeliveryRow).where(DeliveryRow.job_id == job_id, too_long).values(body=marker)
    )
