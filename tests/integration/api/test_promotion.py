"""Promotion over HTTP: by a role that may, compared and set, told who was faster."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from manta.client import Client, Transport
from manta.errors import Conflict, Forbidden, GateFailed, InvalidInput, NotFound
from tests.unit.ledger.test_aliases import FAILED, trained

PATH = "/v1/projects/p/models/delay"


def resting(served: Any) -> Any:
    """The controller rests: it would start the runs that are written here by hand."""
    served.platform.controller.stop()
    for thread in threading.enumerate():
        if thread.name == "controller":
            thread.join(timeout=30)
    return served


def body(version: str, expect: str | None, **more: Any) -> dict[str, Any]:
    return {"version": version, "expect": expect, "why": "better", **more}


def test_promote_history_and_rollback(served_on) -> None:
    ledger = resting(served_on).platform.ledger
    for version in ("1", "2"):
        trained(ledger, version)
    trained(ledger, "3", [FAILED])
    operator = served_on.http(served_on.person("user:op", p="operator"))
    first = operator.post(f"{PATH}/promote", json=body("1", None))
    assert (first.status_code, first.json()["by"]) == (200, "user:op")
    assert operator.post(f"{PATH}/promote", json=body("2", "1")).json()["previous"] == "1"
    late = operator.post(f"{PATH}/promote", json=body("1", "1"))
    assert (late.status_code, late.json()["code"]) == (409, "conflict")
    assert late.json()["errors"] == {"version": "2", "by": "user:op"}
    failed = operator.post(f"{PATH}/promote", json=body("3", "2"))
    assert (failed.status_code, failed.json()["code"]) == (409, "gate_failed")
    assert operator.post(f"{PATH}/promote", json=body("9", "2")).status_code == 404
    back = operator.post(f"{PATH}/rollback", json={"expect": "2", "why": "worse"})
    assert (back.status_code, back.json()["version"]) == (200, "1")
    viewer = served_on.http(served_on.person("user:viewer", p="viewer"))
    page = viewer.get(f"{PATH}/history", params={"limit": 2}).json()
    assert [each["version"] for each in page["items"]] == ["1", "2"]
    rest = viewer.get(f"{PATH}/history", params={"before": page["next"]}).json()
    assert [each["version"] for each in rest["items"]] == ["1"]
    models = viewer.get("/v1/projects/p/models").json()
    assert {each["version"]: each["aliases"] for each in models} == {"1": ["champion"], "2": [], "3": []}


def test_a_developer_may_look_and_not_promote(served) -> None:
    trained(resting(served).platform.ledger, "1")
    developer = served.http(served.person("user:dev", p="developer"))
    assert developer.get(f"{PATH}/history").status_code == 200
    for verb in ("promote", "rollback"):
        assert developer.post(f"{PATH}/{verb}", json=body("1", None)).status_code == 403
    assert served.platform.ledger.aliases.get("p", "delay", "champion") is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"why": ""},
        {"why": " \n"},
        {"why": "x" * 1001},
        {"version": ""},
        {"version": "1; drop"},
        {"alias": "latest"},
        {"alias": "v3"},
        {"alias": "Champion!"},
        {"expect": 1},
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(served, wrong: dict[str, Any]) -> None:
    trained(resting(served).platform.ledger, "1")
    answer = served.http(served.owner_key).post(f"{PATH}/promote", json=body("1", None) | wrong)
    assert answer.status_code == 400
    assert served.platform.ledger.aliases.everywhere() == {}


def test_a_request_that_is_sent_twice_is_done_once(served) -> None:
    for version in ("1", "2"):
        trained(resting(served).platform.ledger, version)
    http = served.http(served.owner_key)
    http.post(f"{PATH}/promote", json=body("1", None))
    http.post(f"{PATH}/promote", json=body("2", "1"))

    def again() -> httpx.Response:
        # The alias is elsewhere by then: only the key makes it the same request.
        return http.post(
            f"{PATH}/rollback", json={"expect": "2", "why": "worse"}, headers={"Idempotency-Key": "back"}
        )

    assert again().json() == again().json()
    assert len(served.platform.ledger.aliases.history("p", "delay")) == 3


def test_the_client_promotes_from_what_it_is_shown(served) -> None:
    ledger = resting(served).platform.ledger
    for version in ("1", "2"):
        trained(ledger, version)
    settings = served.settings.model_copy(update={"project": "p"})
    with Client(settings, Transport(served.url, served.owner_key)) as client:
        assert client.holder("delay") is None
        assert client.promote("delay", 1, why="the first").previous is None
        assert client.promote("delay", "2", why="better").previous == "1"
        assert client.promote("delay", "1", why="to try", alias="challenger").alias == "challenger"
        with pytest.raises(Conflict, match="not at 1"):
            client.promote("delay", "1", why="late", expect="1")
        with pytest.raises(Conflict, match="not at none"):
            client.promote("delay", "1", why="late", expect=None)
        assert client.rollback("delay", why="worse").version == client.holder("delay") == "1"
        assert [each.version for each in client.history("delay", alias="champion")] == ["1", "2", "1"]
        assert len(client.history("delay", limit=None)) == 4
        with pytest.raises(NotFound):
            client.rollback("delay", why="again")
        with pytest.raises(InvalidInput):
            client.promote("delay", "1", why="")
        with pytest.raises(InvalidInput, match="MLflow"):
            client.promote("delay", "1", why="x", alias="latest")
        trained(ledger, "3", [FAILED])
        with pytest.raises(GateFailed):
            client.promote("delay", "3", why="anyway")
    with (
        Client(settings, Transport(served.url, served.person("user:dev", p="developer"))) as client,
        pytest.raises(Forbidden, match="operator"),
    ):
        client.promote("delay", "2", why="mine")
