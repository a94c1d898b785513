"""The git commit that a run's project was in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("runs", sa.Column("commit", sa.String(64), nullable=False, server_default=""))
