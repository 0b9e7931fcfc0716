"""Add the requests that became no job, and what fal says of trying a failed run again.

Every release so far runs on it: it does not know the table, and the new column is nullable.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "job_requests",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("door", sa.Text(), nullable=False),
        sa.Column("message_id", sa.String(200), nullable=True),
        sa.Column("tenant", sa.String(128), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("fields", JSON, nullable=False),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("errors", JSON, nullable=True),
        sa.Column("claims", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_requests")),
        sa.CheckConstraint(
            "state IN ('pending', 'refused', 'accepted')", name=op.f("ck_job_requests_state")
        ),
        sa.CheckConstraint(
            "(state = 'refused') = (error_code IS NOT NULL)",
            name=op.f("ck_job_requests_error_code"),
        ),
        sa.CheckConstraint("claims >= 0", name=op.f("ck_job_requests_claims")),
    )
    op.create_index(
        "uq_job_requests_door_message_id",
        "job_requests",
        ["door", "message_id"],
        unique=True,
        postgresql_where=sa.text("message_id IS NOT NULL"),
        sqlite_where=sa.text("message_id IS NOT NULL"),
    )
    op.create_index("ix_job_requests_received_at", "job_requests", ["received_at", "id"])
    op.add_column("attempts", sa.Column("retryable", sa.Boolean(), nullable=True))


def downgrade() -> None:
    op.drop_column("attempts", "retryable")
    op.drop_table("job_requests")
