"""Add what admission needs: limits, pauses, charges, and the row's own reason why a job waits.

Every release so far runs on it: it does not know the tables, and the new columns are nullable. What
it has at fal now counts as in flight until its start timeout and a run must be over. The index on
all due rows gives way to one without the queued ones, of which there may be many.
"""

import sqlalchemy as sa
from alembic import op

from migrations.steps import (
    commit,
    create_check,
    create_index,
    is_postgres,
    update_in_batches,
)

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
REASONS = "'retry', 'hold', 'not_before', 'budget', 'unrecordable', 'unanswered'"
BLOCKED_BY = f"blocked_by IN ({REASONS})"
COLUMNS = (
    ("jobs", "blocked_by", "TEXT"),
    ("jobs", "not_before", "TIMESTAMP WITH TIME ZONE"),
    ("jobs", "expires_at", "TIMESTAMP WITH TIME ZONE"),
    ("attempts", "slot_until", "TIMESTAMP WITH TIME ZONE"),
    ("attempts", "admitted_cap", "INTEGER"),
)
MARKS = (
    ("hold", "submission_unknown", "held%"),
    ("unrecordable", "submitted", "unrecordable%"),
    ("unanswered", "submitted", "unanswered%"),
    ("retry", "completed", "%"),
)
# What fal has, or may have.
AT_FAL = """slot_until IS NULL AND completed_at IS NULL
AND (outcome IS NULL OR outcome IN ('accepted', 'unknown'))
AND job_id IN (
    SELECT id FROM jobs
    WHERE due_at IS NOT NULL AND state IN ('submitting', 'submitted', 'submission_unknown')
)"""
INDICES = (
    (
        "ix_jobs_admission",
        ["state", "tenant", sa.text("priority DESC"), "enqueued_at", "id"],
        "state = 'queued' AND blocked_by IS NULL",
    ),
    (
        "ix_jobs_blocked",
        ["state", "blocked_by", "due_at"],
        "state = 'queued' AND blocked_by IS NOT NULL",
    ),
    ("ix_jobs_expires_at", ["state", "expires_at"], "state = 'queued' AND expires_at IS NOT NULL"),
    (
        "ix_jobs_due",
        [sa.text("priority DESC"), "due_at", "id"],
        "due_at IS NOT NULL AND state <> 'queued'",
    ),
    (
        "ix_jobs_late",
        ["due_at"],
        "archive_alarmed_at IS NOT NULL AND state IN ('completed', 'archiving')",
    ),
)
# A job's own reason, or what holds up its tenant or all: as `stages/admit.py` decides it. SQL knows
# no estimate of a job: it takes the job for as dear as the one that was admitted last.
VIEW = """
CREATE VIEW jobs_waiting AS
WITH clock AS (SELECT {now} AS at),
account AS (
    SELECT coalesce(l.max_in_flight, l.default_max_in_flight) AS most,
           coalesce(l.per_minute, l.default_per_minute) AS per_minute,
           coalesce(l.daily_budget_nano_usd, l.default_daily_budget_nano_usd) AS budget,
           (SELECT count(*) FROM attempts a WHERE a.slot_until > clock.at) AS in_flight,
           (SELECT count(*) FROM charges c WHERE c.admitted_at > {minute_ago}) AS started,
           (SELECT count(*) FROM attempts a WHERE a.slot_until > clock.at
            AND a.ended_at IS NULL AND a.outcome IS NULL) AS posting,
           coalesce((SELECT max(s.nano_usd) FROM spend s
            WHERE s.scope = 'account' AND s.day = {today}), 0) AS spent,
           coalesce((SELECT c.estimated_nano_usd FROM charges c
            ORDER BY c.admitted_at DESC LIMIT 1), 0) AS last_estimate,
           (l.default_unit_price_nano_usd IS NOT NULL OR EXISTS (SELECT 1 FROM prices)) AS has_price,
           clock.at AS at
    FROM clock LEFT JOIN limits l ON l.scope = 'account'
),
flying AS (
    SELECT j.tenant AS tenant, count(*) AS in_flight
    FROM attempts a JOIN jobs j ON j.id = a.job_id CROSS JOIN clock
    WHERE a.slot_until > clock.at GROUP BY j.tenant
),
recent AS (
    SELECT c.tenant AS tenant, count(*) AS started
    FROM charges c CROSS JOIN clock WHERE c.admitted_at > {minute_ago} GROUP BY c.tenant
)
SELECT j.id AS id, j.tenant AS tenant,
    CASE
        WHEN j.blocked_by IS NOT NULL THEN j.blocked_by
        WHEN EXISTS (
            SELECT 1 FROM pauses p WHERE p.scope = 'account' AND p.cause <> 'archive'
            AND (p.room IS NULL OR (p.until > account.at AND p.until <= {longest_pause}))
        ) THEN 'account'
        WHEN EXISTS (SELECT 1 FROM pauses p WHERE p.scope = 'account' AND p.cause = 'archive') THEN 'archive'
        WHEN account.in_flight >= account.most THEN 'in_flight'
        WHEN EXISTS (
            SELECT 1 FROM pauses p WHERE p.scope = 'account' AND p.room <= account.posting
        ) THEN 'account'
        WHEN account.started >= account.per_minute THEN 'rate'
        WHEN account.budget IS NOT NULL AND NOT account.has_price THEN 'budget'
        WHEN account.spent >= account.budget THEN 'budget'
        WHEN EXISTS (SELECT 1 FROM pauses p WHERE p.scope = 'tenant:' || j.tenant) THEN 'tenant'
        WHEN flying.in_flight >= own.max_in_flight THEN 'tenant'
        WHEN recent.started >= own.per_minute THEN 'rate'
        WHEN account.spent + account.last_estimate > account.budget THEN 'budget'
        WHEN own.daily_budget_nano_usd IS NOT NULL AND NOT account.has_price THEN 'budget'
        WHEN coalesce(spent.nano_usd, 0) + account.last_estimate > own.daily_budget_nano_usd
            THEN 'budget'
    END AS blocked_by,
    row_number() OVER (
        PARTITION BY j.tenant
        ORDER BY CASE WHEN j.blocked_by IS NULL THEN 0 ELSE 1 END, j.priority DESC, j.enqueued_at, j.id
    ) AS place
FROM jobs j
CROSS JOIN account
LEFT JOIN limits own ON own.scope = 'tenant:' || j.tenant
LEFT JOIN flying ON flying.tenant = j.tenant
LEFT JOIN recent ON recent.tenant = j.tenant
LEFT JOIN spend spent ON spent.scope = own.scope AND spent.day = {today}
WHERE j.state = 'queued'
"""  # noqa: E501
POSTGRES = {
    "now": "CURRENT_TIMESTAMP",
    "minute_ago": "clock.at - interval '1 minute'",
    "longest_pause": "account.at + interval '2 hours'",
    "today": "to_char(CURRENT_TIMESTAMP AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}
SQLITE = {
    "now": "strftime('%Y-%m-%d %H:%M:%f', 'now')",
    "minute_ago": "strftime('%Y-%m-%d %H:%M:%f', 'now', '-1 minute')",
    "longest_pause": "strftime('%Y-%m-%d %H:%M:%f', 'now', '+2 hours')",
    "today": "date('now')",
}


def upgrade() -> None:
    for table, column, kind in COLUMNS:
        if is_postgres():
            op.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column} {kind}")
        else:
            check = f" CONSTRAINT ck_jobs_blocked_by CHECK ({BLOCKED_BY})"
            rule = check if column == "blocked_by" else ""
            named = kind.replace("TIMESTAMP WITH TIME ZONE", "DATETIME")
            op.execute(f"ALTER TABLE {table} ADD COLUMN {column} {named}{rule}")
    commit()  # nobody waits for the tables while rows are looked for
    for cause, state, sentence in MARKS:
        update_in_batches(
            "jobs",
            f"blocked_by = '{cause}'",
            f"due_at IS NOT NULL AND state = '{state}' AND blocked_by IS NULL "
            f"AND blocked_reason LIKE '{sentence}'",
        )
    later = (
        "started_at + interval '90 minutes'"
        if is_postgres()
        else "strftime('%Y-%m-%d %H:%M:%S.000000', started_at, '+90 minutes')"
    )
    update_in_batches("attempts", f"slot_until = {later}", AT_FAL)
    if is_postgres():
        create_check("jobs", "ck_jobs_blocked_by", BLOCKED_BY)
    for name, columns, where in INDICES:
        create_index(name, "jobs", columns, where=where)
    create_index(
        "ix_attempts_slot_until", "attempts", ["slot_until"], where="slot_until IS NOT NULL"
    )
    create_index(
        "ix_attempts_completed_at", "attempts", ["completed_at"], where="completed_at IS NOT NULL"
    )
    _create_tables()
    op.execute(VIEW.format(**(POSTGRES if is_postgres() else SQLITE)))
    op.execute("DROP INDEX IF EXISTS ix_jobs_due_at")


def _create_tables() -> None:
    zero = sa.text("0")
    op.create_table(
        "limits",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("max_in_flight", sa.Integer(), nullable=True),
        sa.Column("per_minute", sa.Integer(), nullable=True),
        sa.Column("daily_budget_nano_usd", sa.BigInteger(), nullable=True),
        sa.Column("weight", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("served", sa.BigInteger(), server_default=zero, nullable=False),
        sa.Column("admissions", sa.BigInteger(), server_default=zero, nullable=False),
        sa.Column("default_max_in_flight", sa.Integer(), nullable=True),
        sa.Column("default_per_minute", sa.Integer(), nullable=True),
        sa.Column("default_daily_budget_nano_usd", sa.BigInteger(), nullable=True),
        sa.Column("default_unit_price_nano_usd", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("scope", name=op.f("pk_limits")),
        sa.CheckConstraint("weight BETWEEN 1 AND 1000", name=op.f("ck_limits_weight")),
    )
    op.create_table(
        "pauses",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=True),
        sa.Column("since", TIME, nullable=False),
        sa.Column("until", TIME, nullable=True),
        sa.Column("strikes", sa.Integer(), server_default=zero, nullable=False),
        sa.Column("room", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("scope", "cause", name=op.f("pk_pauses")),
        sa.CheckConstraint(
            "cause IN ('operator', 'account', 'busy', 'ambiguous', 'archive')",
            name=op.f("ck_pauses_cause"),
        ),
    )
    op.create_table(
        "charges",
        sa.Column("attempt_id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("day", sa.Text(), nullable=False),
        sa.Column("admitted_at", TIME, nullable=False),
        sa.Column("units", sa.Integer(), nullable=False),
        sa.Column("assumed", sa.Text(), nullable=True),
        sa.Column("unit_price_nano_usd", sa.BigInteger(), nullable=True),
        sa.Column("estimated_nano_usd", sa.BigInteger(), nullable=True),
        sa.Column("counted_nano_usd", sa.BigInteger(), server_default=zero, nullable=False),
        sa.Column("account_budget_nano_usd", sa.BigInteger(), nullable=True),
        sa.Column("tenant_budget_nano_usd", sa.BigInteger(), nullable=True),
        sa.Column("billed_units", sa.Text(), nullable=True),
        sa.Column("billed_nano_usd", sa.BigInteger(), nullable=True),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("void_reason", sa.Text(), nullable=True),
        sa.Column("due_at", TIME, nullable=True),
        sa.Column("settled_at", TIME, nullable=True),
        sa.Column("voided_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("attempt_id", name=op.f("pk_charges")),
        sa.CheckConstraint(
            "source IN ('billing_events', 'units', 'estimate')", name=op.f("ck_charges_source")
        ),
    )
    op.create_index("ix_charges_job_id", "charges", ["job_id"])
    op.create_index("ix_charges_admitted_at", "charges", ["admitted_at"])
    op.create_index(
        "ix_charges_due_at",
        "charges",
        ["due_at"],
        postgresql_where=sa.text("due_at IS NOT NULL"),
        sqlite_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_table(
        "spend",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("day", sa.Text(), nullable=False),
        sa.Column("nano_usd", sa.BigInteger(), nullable=False),
        sa.Column("alarmed_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("scope", "day", name=op.f("pk_spend")),
    )
    op.create_table(
        "prices",
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("unit_price_nano_usd", sa.BigInteger(), nullable=False),
        sa.Column("read_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("endpoint", name=op.f("pk_prices")),
    )


def downgrade() -> None:
    create_index("ix_jobs_due_at", "jobs", ["due_at"], where="due_at IS NOT NULL")
    op.execute("DROP VIEW jobs_waiting")
    for table in ("prices", "spend", "charges", "pauses", "limits"):
        op.drop_table(table)
    op.drop_index("ix_attempts_completed_at", "attempts")
    op.drop_index("ix_attempts_slot_until", "attempts")
    for name, _, _ in INDICES:
        op.drop_index(name, "jobs")
    if is_postgres():
        op.execute("ALTER TABLE jobs DROP CONSTRAINT IF EXISTS ck_jobs_blocked_by")
    for table, column, _ in reversed(COLUMNS):
        op.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
