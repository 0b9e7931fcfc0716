"""Add request options, fal's words on a running request, details of refusals, and uploads.

Release 0.1.0 runs on it: new columns are nullable or have a default.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

TIME = sa.DateTime(timezone=True)
JSON = sa.JSON(none_as_null=True).with_variant(
    postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), "postgresql"
)

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    empty = sa.text("'{}'")
    op.add_column("jobs", sa.Column("options", JSON, server_default=empty, nullable=False))
    op.add_column("jobs", sa.Column("error_details", JSON, nullable=True))
    op.add_column("attempts", sa.Column("options", JSON, server_default=empty, nullable=False))
    op.add_column("attempts", sa.Column("fal_status", sa.Text(), nullable=True))
    op.add_column("attempts", sa.Column("queue_position", sa.Integer(), nullable=True))
    op.add_column("attempts", sa.Column("inference_seconds", sa.Float(), nullable=True))
    op.add_column("attempts", sa.Column("logs", JSON, nullable=True))
    op.create_table(
        "uploads",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("uploaded_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_uploads")),
    )


def downgrade() -> None:
    op.drop_table("uploads")
    with op.batch_alter_table("attempts") as attempts:
        for name in ("logs", "inference_seconds", "queue_position", "fal_status", "options"):
            attempts.drop_column(name)
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("error_details")
        jobs.drop_column("options")
