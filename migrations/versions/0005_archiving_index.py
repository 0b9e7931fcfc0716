"""Index the few rows that are being downloaded: they are counted at each claim."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_jobs_archiving",
        "jobs",
        ["due_at"],
        postgresql_where=sa.text("state = 'archiving'"),
        sqlite_where=sa.text("state = 'archiving'"),
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_archiving", "jobs")
