"""Add what is known of an archived video besides its place: facts, companions, checks, alarms.

Release 0.2.0 runs on it: every new column is nullable.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

TIME = sa.DateTime(timezone=True)
JSON = sa.JSON(none_as_null=True).with_variant(
    postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), "postgresql"
)
COLUMNS = (
    ("archive_media", JSON),
    ("archive_poster_uri", sa.Text()),
    ("archive_sidecar_uri", sa.Text()),
    ("archive_verified_at", TIME),
    ("archive_error", sa.Text()),
    ("archive_alarmed_at", TIME),
    ("archive_pruned_at", TIME),
    ("quarantine_uri", sa.Text()),
)

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name, kind in COLUMNS:
        op.add_column("jobs", sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        for name, _ in reversed(COLUMNS):
            jobs.drop_column(name)
