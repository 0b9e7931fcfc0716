"""Add restores, and deliveries of jobs that have no row.

Every release so far runs on it: it knows neither table.
"""

import sqlalchemy as sa
from alembic import op

TIME = sa.DateTime(timezone=True)
ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "restores",
        sa.Column("id", ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("epoch", sa.Text(), nullable=False),
        sa.Column("lost_since", TIME, nullable=False),
        sa.Column("restored_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_restores")),
        sa.UniqueConstraint("lost_since", name=op.f("uq_restores_lost_since")),
    )
    op.create_table(
        "stray_deliveries",
        sa.Column("id", ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("received_at", TIME, nullable=False),
        sa.Column("last_received_at", TIME, nullable=False),
        sa.Column("times_received", sa.Integer(), nullable=False),
        sa.Column("fal_request_id", sa.Text(), nullable=False),
        sa.Column("gateway_request_id", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("body_sha256", sa.String(64), nullable=False),
        sa.CheckConstraint("verdict IN ('kept', 'hint')", name=op.f("ck_stray_deliveries_verdict")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stray_deliveries")),
        sa.UniqueConstraint(
            "token_hash", "body_sha256", name=op.f("uq_stray_deliveries_token_hash_body_sha256")
        ),
    )


def downgrade() -> None:
    op.drop_table("stray_deliveries")
    op.drop_table("restores")
