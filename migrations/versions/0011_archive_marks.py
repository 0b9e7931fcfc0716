"""Add the marks by which archives are told apart, and what a worker finds wrong with its own.

Every release so far runs on it: it does not know the table, and the new column is nullable.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "archive_marks",
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("mark", sa.Text(), nullable=False),
        sa.Column("noted_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("location", name=op.f("pk_archive_marks")),
    )
    op.add_column("workers", sa.Column("archive_fault", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "archive_fault")
    op.drop_table("archive_marks")
