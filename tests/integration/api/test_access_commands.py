"""`manta keys`, `grants` and `audit` against a running server."""

from __future__ import annotations

import httpx
import pytest
from sqlalchemy import text

from manta.errors import Forbidden
from manta.ledger.database import Database


def test_a_key_is_made_given_a_role_used_and_revoked(served, manta) -> None:
    key = manta("keys", "create", "user:ada", "--label", "laptop", "--days", "30").strip().splitlines()[-1]
    prefix = key.split("_")[1]
    assert "laptop" in manta("keys", "list")
    with pytest.raises(Forbidden, match="needs the role admin in every project"):
        manta("keys", "list", key=key)
    assert "user:ada is viewer in test" in manta("grants", "set", "user:ada", "test", "viewer")
    assert "user:ada" in manta("grants", "list")
    with served.http(key) as http:
        assert http.get("/v1/projects/test/runs").status_code == 200
        manta("grants", "remove", "user:ada", "test")
        assert http.get("/v1/projects/test/runs").status_code == 404
        manta("keys", "revoke", prefix)
        assert http.get("/v1/projects/test/runs").status_code == 401
    assert "revoked" in manta("keys", "list")
    kept = served.platform.ledger.access.keys()
    assert key not in str([row.model_dump() for row in kept])


def test_the_audit_log_is_read_and_verified(served, manta) -> None:
    manta("grants", "set", "user:bob", "test", "developer")
    httpx.get(f"{served.url}/v1/me")
    listed = manta("audit", "list")
    assert "grant" in listed
    assert "denied" in listed
    assert "user:bob" in manta("audit", "list", "--project", "test")
    said = manta("audit", "verify")
    head = said.split()[-1]
    assert "whole" in said
    assert "whole" in manta("audit", "verify", "--expect", head)
    manta("audit", "verify", "--expect", "0" * 63 + "1", status=1)
    database = Database(served.settings.ledger_url)
    with database.write() as db:
        db.execute(text("update audit set actor = 'user:eve' where seq = 2"))
    database.close()
    assert "entry 2 was changed" in manta("audit", "verify", status=1)
