"""Add what resolves unknown submissions, cancels, redrives, and pauses all workers at once.

Release 0.1.0 runs on it: new columns are nullable or have a default, its states stay the same.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from migrations.steps import commit, create_check, create_index, is_postgres

TIME = sa.DateTime(timezone=True)

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _add_columns("jobs", ("cancel_requested_at", TIME), ("redriven_at", TIME))
    _add_columns(
        "attempts",
        ("completed_at", TIME),
        ("ending", sa.Text()),
        ("cancel_due_at", TIME),
        ("cancel_status", sa.Text()),
        ("extra_charge_at", TIME),
    )
    create_check(
        "attempts",
        "ck_attempts_outcome",
        "outcome IN ('accepted', 'rejected', 'postponed', 'unknown', 'dead')",
        replace=True,
    )
    create_check("attempts", "ck_attempts_ending", "ending IN ('ok', 'failed', 'cancelled')")
    create_index(
        "uq_attempts_fal_request_id",
        "attempts",
        ["fal_request_id"],
        where="fal_request_id IS NOT NULL",
        unique=True,
    )
    create_index(
        "ix_attempts_cancel_due_at",
        "attempts",
        ["cancel_due_at"],
        where="cancel_due_at IS NOT NULL",
    )
    verdict = sa.Column("verdict", sa.Text(), server_default=sa.text("'recorded'"), nullable=False)
    op.add_column("deliveries", verdict, if_not_exists=is_postgres())
    create_check("deliveries", "ck_deliveries_verdict", "verdict IN ('recorded', 'kept', 'hint')")
    op.create_table(
        "gates",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("opens_at", TIME, nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_gates")),
    )


def _add_columns(table: str, *columns: tuple[str, Any]) -> None:
    for name, kind in columns:
        column = sa.Column(name, kind, nullable=True)
        op.add_column(table, column, if_not_exists=is_postgres())
    commit()


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
