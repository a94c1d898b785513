"""The roles that principals hold in projects."""

from __future__ import annotations

from enum import StrEnum

EVERY_PROJECT = "*"


class Role(StrEnum):
    """What one may do in a project; each role holds those before it."""

    VIEWER = "viewer"  # read
    DEVELOPER = "developer"  # submit and stop runs
    OPERATOR = "operator"  # apply: change what the platform holds
    ADMIN = "admin"  # read the audit log; in every project: make keys and grants

    def covers(self, other: Role) -> bool:
        order = list(Role)
        return order.index(self) >= order.index(other)
