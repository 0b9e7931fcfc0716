"""Add tallies, workers, and the indices from which jobs, attempts and deliveries are counted.

Earlier releases run on it: they know neither the tables nor the indices.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.steps import create_index

TIME = sa.DateTime(timezone=True)
JSON = sa.JSON(none_as_null=True).with_variant(
    postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), "postgresql"
)
AGES = ("enqueued_at", "submitted_at", "completed_at", "redriven_at")

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_index("ix_jobs_live", "jobs", ["state", "due_at", *AGES], where="due_at IS NOT NULL")
    create_index(
        "ix_attempts_extra_charge_at",
        "attempts",
        ["extra_charge_at"],
        where="extra_charge_at IS NOT NULL",
    )
    create_index("ix_attempts_outcome", "attempts", ["outcome"])
    create_index("ix_deliveries_verdict", "deliveries", ["verdict"])
    op.create_table(
        "tallies",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("counted_at", TIME, nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("value", JSON, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_tallies")),
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("queues", JSON, nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("last_seen_at", TIME, nullable=False),
        sa.Column("last_step", sa.Text(), nullable=True),
        sa.Column("last_step_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
    )


def downgrade() -> None:
    op.drop_index("ix_deliveries_verdict", "deliveries")
    op.drop_index("ix_attempts_outcome", "attempts")
    op.drop_index("ix_attempts_extra_charge_at", "attempts")
    op.drop_index("ix_jobs_live", "jobs")
    op.drop_table("workers")
    op.drop_table("tallies")
