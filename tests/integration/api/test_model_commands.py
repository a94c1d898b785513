"""`manta models`, `promote`, `rollback` and `history` against a running server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manta.errors import Conflict, Forbidden, InvalidInput
from tests.integration.api.test_promotion import resting
from tests.unit.ledger.test_aliases import trained


def test_promoted_rolled_back_and_told(served, manta) -> None:
    ledger = resting(served).platform.ledger
    for version in ("1", "2"):
        trained(ledger, version, project="test")
    assert "no alias" in manta("history", "delay")
    assert "champion of delay: version 1, before none" in manta(
        "promote", "delay", "1", "--why", "[the] first"
    )
    said = manta("promote", "delay", "2", "--why", "better", "--expect", "1")
    assert "version 2, before 1 (by owner" in said
    assert "1 gates passed in run 2" in said
    for expect in ("1", "none"):
        with pytest.raises(Conflict, match="owner moved it"):
            manta("promote", "delay", "1", "--why", "late", "--expect", expect)
    made = json.loads(manta("promote", "delay", "1", "--why", "a try", "--alias", "challenger", "--json"))
    assert (made["alias"], made["previous"]) == ("challenger", None)
    assert "version 1, before 2" in manta("rollback", "delay", "--why", "worse")
    listed = manta("history", "delay", "--alias", "champion")
    assert [line.split()[2] for line in listed.splitlines()[1:]] == ["1", "2", "1"]
    assert "rollback: worse" in listed
    assert "[the] first" in listed
    assert "challenger" not in listed
    assert len(json.loads(manta("history", "delay", "--json", "--limit", "2"))) == 2
    assert "champion" in manta("models")
    assert json.loads(manta("models", "--json"))[0]["model"] == "delay"
    developer = served.person("user:dev", test="developer")
    with pytest.raises(Forbidden, match="operator"):
        manta("promote", "delay", "2", "--why", "mine", key=developer)


def test_why_must_be_said(served, manta) -> None:
    manta("promote", "delay", "1", status=2)
    manta("rollback", "delay", status=2)


def test_what_cannot_be_imported(served, manta, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        manta("models", "import", str(tmp_path / "nothing.onnx"), "--as", "delay")
    manta("models", "import", "m.onnx", status=2)
