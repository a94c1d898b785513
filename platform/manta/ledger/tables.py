"""The ledger's tables. One code path for SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)
from sqlalchemy import UniqueConstraint as Unique

HEAD = "0004"  # the newest migration: a ledger that is there already need not load Alembic

metadata = MetaData()


class Instant(TypeDecorator[datetime]):
    """A time with its zone, UTC; SQLite would give it back without."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, _dialect: Any) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


identity = Table("identity", metadata, Column("value", String(16), primary_key=True))

projects = Table(
    "projects",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("package", String(64), nullable=False),
    Column("definitions", JSON, nullable=False),
    Column("applied_at", Instant, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("key", String(128), nullable=False, unique=True),
    Column("project", String(64), nullable=False, index=True),
    Column("job", String(64), nullable=False, index=True),
    Column("kind", String(32), nullable=False),
    Column("definition", JSON, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("package", String(64), nullable=False),
    Column("params", JSON, nullable=False),
    Column("needs", JSON, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("submission", String(128), nullable=False),
    Column("end_reason", String(32)),
    Column("message", Text, nullable=False),
    Column("stop_requested", Boolean, nullable=False),
    Column("progress", JSON),
    Column("metrics", JSON, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("started_at", Instant),
    Column("ended_at", Instant),
    Column("heartbeat_at", Instant),
    # Who submitted it; through manta ("manta") or straight to Ray ("ray"); which queued run goes first; not
    # before when it is tried again; when it must have ended; the run that it repeats; its project's commit.
    Column("submitted_by", String(128), nullable=False, server_default=""),
    Column("origin", String(16), nullable=False, server_default="manta"),
    Column("priority", Integer, nullable=False, server_default=text("0")),
    Column("not_before", Instant),
    Column("deadline_at", Instant),
    Column("replay_of", Integer),
    Column("commit", String(64), nullable=False, server_default=""),
    Index("ix_runs_project_id", "project", "id"),
    Index("ix_runs_project_job_id", "project", "job", "id"),
    sqlite_autoincrement=True,  # an id is never given twice, so that a submission's name is unique for good
)

# One try of a run. ``number`` counts from 1; ``accepted_at`` is when Ray was first known to have it.
attempts = Table(
    "attempts",
    metadata,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("submission", String(128), nullable=False, unique=True),
    Column("started_at", Instant, nullable=False),
    Column("accepted_at", Instant),
    Column("running_at", Instant),
    Column("ended_at", Instant),
    Column("end_reason", String(32)),
    Column("message", Text, nullable=False),
    # What it ran in; how much of it was sent as OpenLineage events (0 nothing, 1 its start, 2 its end).
    Column("environment", JSON),
    Column("told", Integer, nullable=False, server_default=text("0"), index=True),
)

# What a run read (direction "in") and produced ("out").
versions = Table(
    "versions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("run_id", ForeignKey("runs.id"), nullable=False, index=True),
    Column("direction", String(3), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("name", String(128), nullable=False, index=True),
    Column("version", String(128), nullable=False),
    Column("detail", JSON, nullable=False),
    Unique("run_id", "direction", "kind", "name"),
    Index("ix_versions_kind_name_version", "kind", "name", "version"),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("run_id", ForeignKey("runs.id"), index=True),
    Column("at", Instant, nullable=False),
    Column("what", String(32), nullable=False),
    Column("detail", JSON, nullable=False),
)

# Where each alias points, and every move it made.
aliases = Table(
    "aliases",
    metadata,
    Column("project", String(64), primary_key=True),
    Column("model", String(64), primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("version", String(64), nullable=False),
)

promotions = Table(
    "promotions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("project", String(64), nullable=False),
    Column("model", String(64), nullable=False, index=True),
    Column("alias", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("previous", String(64)),
    Column("run_id", ForeignKey("runs.id")),
    Column("at", Instant, nullable=False),
    Column("gates", JSON, nullable=False),
    # "promote", or "rollback" where the move before was taken back.
    Column("kind", String(16), nullable=False, server_default="promote"),
    Column("promoted_by", String(128), nullable=False, server_default=""),
    Column("why", Text, nullable=False, server_default=""),
)

endpoints = Table(
    "endpoints",
    metadata,
    Column("project", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("definition", JSON, nullable=False),
    Column("package", String(64), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("served", JSON, nullable=False),
    Column("message", Text, nullable=False),
    Column("changed_at", Instant, nullable=False),
)

# --- who may do what, and who did -----------------------------------------------------------------------

leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", String(128), nullable=False),
    Column("expires_at", Instant, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", Instant, nullable=False),
    Column("actor", String(128), nullable=False, index=True),
    Column("door", String(16), nullable=False),
    Column("action", String(64), nullable=False),
    Column("target", String(256), nullable=False),
    Column("project", String(64), nullable=False, index=True),
    Column("outcome", String(16), nullable=False),
    Column("detail", JSON, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

# The end of the audit's chain: one row.
audit_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seq", Integer, nullable=False),
    Column("hash", String(64), nullable=False),
)

# An API key is never kept: ``prefix`` finds its row, ``digest`` is its HMAC.
api_keys = Table(
    "api_keys",
    metadata,
    Column("prefix", String(32), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("principal", String(128), nullable=False, index=True),
    Column("label", String(128), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("created_by", String(128), nullable=False),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
    Column("last_used_at", Instant),
)

# ``project`` "*" is every project.
grants = Table(
    "grants",
    metadata,
    Column("principal", String(128), primary_key=True),
    Column("project", String(64), primary_key=True),
    Column("role", String(16), nullable=False),
)

# Answers to requests that carried an idempotency key; ``status`` null while the first is at work.
requests = Table(
    "requests",
    metadata,
    Column("principal", String(128), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("request", String(64), nullable=False),
    Column("at", Instant, nullable=False, index=True),
    Column("status", Integer),
    Column("answer", Text),
)
