"""Add the indices by which the page and the shell list, count and measure a million jobs.

Every release so far runs on it: nothing but indices.
"""

from alembic import op

from migrations.steps import create_index

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

LISTED = {
    "ix_jobs_state": ["state", "enqueued_at", "id"],
    "ix_jobs_tenant": ["tenant", "enqueued_at", "id"],
}
KNOWN = {
    "ix_jobs_archived_at": ["archived_at", "enqueued_at"],
    "ix_jobs_failed_at": ["failed_at"],
    "ix_jobs_idempotency_key": ["idempotency_key"],
}


def upgrade() -> None:
    for name, columns in LISTED.items():
        create_index(name, "jobs", columns)
    for name, columns in KNOWN.items():
        create_index(name, "jobs", columns, where=f"{columns[0]} IS NOT NULL")


def downgrade() -> None:
    for name in (*KNOWN, *LISTED):
        op.drop_index(name, "jobs")
