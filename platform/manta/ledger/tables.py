"""The ledger's tables. One code path for SQLite and PostgreSQL."""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, DateTime, ForeignKey, Integer, MetaData, String, Table, Text
from sqlalchemy import UniqueConstraint as Unique

metadata = MetaData()

identity = Table("identity", metadata, Column("value", String(16), primary_key=True))

projects = Table(
    "projects",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("package", String(64), nullable=False),
    Column("definitions", JSON, nullable=False),
    Column("applied_at", DateTime(timezone=True), nullable=False),
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
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("started_at", DateTime(timezone=True)),
    Column("ended_at", DateTime(timezone=True)),
    Column("heartbeat_at", DateTime(timezone=True)),
    sqlite_autoincrement=True,  # an id is never given twice, so that a submission's name is unique for good
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
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("run_id", ForeignKey("runs.id"), index=True),
    Column("at", DateTime(timezone=True), nullable=False),
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
    Column("at", DateTime(timezone=True), nullable=False),
    Column("gates", JSON, nullable=False),
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
    Column("changed_at", DateTime(timezone=True), nullable=False),
)
