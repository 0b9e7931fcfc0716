"""Index the few rows that are being downloaded: they are counted at each claim."""

from alembic import op

from migrations.steps import create_index

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_index("ix_jobs_archiving", "jobs", ["due_at"], where="state = 'archiving'")


def downgrade() -> None:
    op.drop_index("ix_jobs_archiving", "jobs")
