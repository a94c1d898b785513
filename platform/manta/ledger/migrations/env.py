"""Alembic runs inside the transaction that `manta.ledger.migrate` has opened."""

from __future__ import annotations

from alembic import context

from manta.ledger import tables

context.configure(connection=context.config.attributes["connection"], target_metadata=tables.metadata)
context.run_migrations()
