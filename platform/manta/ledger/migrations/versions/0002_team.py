"""Attempts, priorities, deadlines; leases, the audit log, API keys, grants, idempotent requests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from manta.ledger.tables import Instant

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("runs", sa.Column("submitted_by", sa.String(128), nullable=False, server_default=""))
    op.add_column("runs", sa.Column("origin", sa.String(16), nullable=False, server_default="manta"))
    op.add_column("runs", sa.Column("priority", sa.Integer, nullable=False, server_default=sa.text("0")))
    op.add_column("runs", sa.Column("not_before", Instant))
    op.add_column("runs", sa.Column("deadline_at", Instant))
    op.add_column("runs", sa.Column("replay_of", sa.Integer))
    op.create_index("ix_runs_project_id", "runs", ["project", "id"])
    op.create_index("ix_runs_project_job_id", "runs", ["project", "job", "id"])
    op.create_index("ix_versions_kind_name_version", "versions", ["kind", "name", "version"])
    op.create_table(
        "attempts",
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("submission", sa.String(128), nullable=False, unique=True),
        sa.Column("started_at", Instant, nullable=False),
        sa.Column("accepted_at", Instant),
        sa.Column("running_at", Instant),
        sa.Column("ended_at", Instant),
        sa.Column("end_reason", sa.String(32)),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("environment", sa.JSON),
        sa.Column("told", sa.Integer, nullable=False, server_default=sa.text("0"), index=True),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("holder", sa.String(128), nullable=False),
        sa.Column("expires_at", Instant, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("actor", sa.String(128), nullable=False, index=True),
        sa.Column("door", sa.String(16), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("target", sa.String(256), nullable=False),
        sa.Column("project", sa.String(64), nullable=False, index=True),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("prefix", sa.String(32), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("principal", sa.String(128), nullable=False, index=True),
        sa.Column("label", sa.String(128), nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("created_by", sa.String(128), nullable=False),
        sa.Column("expires_at", Instant),
        sa.Column("revoked_at", Instant),
        sa.Column("last_used_at", Instant),
    )
    op.create_table(
        "grants",
        sa.Column("principal", sa.String(128), primary_key=True),
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
    )
    op.create_table(
        "requests",
        sa.Column("principal", sa.String(128), primary_key=True),
        sa.Column("key", sa.String(128), primary_key=True),
        sa.Column("request", sa.String(64), nullable=False),
        sa.Column("at", Instant, nullable=False, index=True),
        sa.Column("status", sa.Integer),
        sa.Column("answer", sa.Text),
    )
