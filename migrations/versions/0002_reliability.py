"""Add what resolves unknown submissions, cancels, redrives, and pauses all workers at once.

Release 0.1.0 runs on it: new columns are nullable or have a default, its states stay the same.
"""

import sqlalchemy as sa
from alembic import op

TIME = sa.DateTime(timezone=True)

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("cancel_requested_at", TIME, nullable=True))
        jobs.add_column(sa.Column("redriven_at", TIME, nullable=True))
    with op.batch_alter_table("attempts") as attempts:
        attempts.add_column(sa.Column("completed_at", TIME, nullable=True))
        attempts.add_column(sa.Column("ending", sa.Text(), nullable=True))
        attempts.add_column(sa.Column("cancel_due_at", TIME, nullable=True))
        attempts.add_column(sa.Column("cancel_status", sa.Text(), nullable=True))
        attempts.add_column(sa.Column("extra_charge_at", TIME, nullable=True))
        attempts.drop_constraint(op.f("ck_attempts_outcome"), type_="check")
        attempts.create_check_constraint(
            op.f("ck_attempts_outcome"),
            "outcome IN ('accepted', 'rejected', 'postponed', 'unknown', 'dead')",
        )
        attempts.create_check_constraint(
            op.f("ck_attempts_ending"), "ending IN ('ok', 'failed', 'cancelled')"
        )
    op.create_index(
        "uq_attempts_fal_request_id",
        "attempts",
        ["fal_request_id"],
        unique=True,
        postgresql_where=sa.text("fal_request_id IS NOT NULL"),
        sqlite_where=sa.text("fal_request_id IS NOT NULL"),
    )
    op.create_index(
        "ix_attempts_cancel_due_at",
        "attempts",
        ["cancel_due_at"],
        postgresql_where=sa.text("cancel_due_at IS NOT NULL"),
        sqlite_where=sa.text("cancel_due_at IS NOT NULL"),
    )
    with op.batch_alter_table("deliveries") as deliveries:
        deliveries.add_column(
            sa.Column("verdict", sa.Text(), server_default=sa.text("'recorded'"), nullable=False)
        )
        deliveries.create_check_constraint(
            op.f("ck_deliveries_verdict"), "verdict IN ('recorded', 'kept', 'hint')"
        )
    op.create_table(
        "gates",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("opens_at", TIME, nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_gates")),
    )


def downgrade() -> None:
    op.drop_table("gates")
    with op.batch_alter_table("deliveries") as deliveries:
        deliveries.drop_constraint(op.f("ck_deliveries_verdict"), type_="check")
        deliveries.drop_column("verdict")
    op.drop_index("ix_attempts_cancel_due_at", "attempts")
    op.drop_index("uq_attempts_fal_request_id", "attempts")
    # 0001 knows no dead attempts: they were unknown before that was proven.
    op.execute("UPDATE attempts SET outcome = 'unknown' WHERE outcome = 'dead'")
    with op.batch_alter_table("attempts") as attempts:
        attempts.drop_constraint(op.f("ck_attempts_ending"), type_="check")
        attempts.drop_constraint(op.f("ck_attempts_outcome"), type_="check")
        attempts.create_check_constraint(
            op.f("ck_attempts_outcome"),
            "outcome IN ('accepted', 'rejected', 'postponed', 'unknown')",
        )
        for name in (
            "extra_charge_at",
            "cancel_status",
            "cancel_due_at",
            "ending",
            "completed_at",
        ):
            attempts.drop_column(name)
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("redriven_at")
        jobs.drop_column("cancel_requested_at")
