"""Who moved an alias, why, and whether it was moved back."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("promotions", sa.Column("kind", sa.String(16), nullable=False, server_default="promote"))
    op.add_column("promotions", sa.Column("promoted_by", sa.String(128), nullable=False, server_default=""))
    op.add_column("promotions", sa.Column("why", sa.Text, nullable=False, server_default=""))
