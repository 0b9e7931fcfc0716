"""Add what a decision on a lost submission rests on: observed time, the account, replies in a row.

Earlier releases run on it: the new columns are empty or have a default, and they do not know the
table. An attempt that an earlier release wrote has no account, so silence about it proves nothing.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    observed_time = op.create_table(
        "observed_time",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("noted_at", sa.Float(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_observed_time_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_observed_time")),
    )
    op.bulk_insert(observed_time, [{"id": 1, "seconds": 0.0, "noted_at": 0.0}])
    op.add_column("attempts", sa.Column("account", sa.Text(), nullable=True))
    op.add_column("attempts", sa.Column("observed_start", sa.Float(), nullable=True))
    op.add_column(
        "gates", sa.Column("strikes", sa.Integer(), server_default=sa.text("0"), nullable=False)
    )


def downgrade() -> None:
    op.drop_column("gates", "strikes")
    op.drop_column("attempts", "observed_start")
    op.drop_column("attempts", "account")
    op.drop_table("observed_time")
