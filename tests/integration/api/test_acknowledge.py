"""Over HTTP: an apply that breaks features that are served is refused, until it is acknowledged."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from manta.definitions import Endpoint, FeatureRepo
from manta.errors import Unacknowledged, from_problem
from manta.ledger.runs import EndReason, State
from tests.integration.api.conftest import ADMIN, Served

SERVED = {"v1": {"join key shop": "int64", "sales.sold": "float32", "sales.best": "string"}}
LESS = {"v1": {"join key shop": "int64", "sales.sold": "float64"}}


def project(served: Served, types: dict[str, dict[str, str]]) -> dict[str, Any]:
    repo = FeatureRepo(services={"v1": ("sales",)}, types=types, fingerprint=str(types))
    endpoint = Endpoint(model="late", features="v1")
    described = [
        {"definition": each.to_json(), "fingerprint": str(each), "where": "features/"}
        for each in (repo, endpoint)
    ]
    return {"name": "shop", "package": served.package, "described": described, "sources": {}}


@pytest.fixture
def live(served: Served) -> Served:
    """Applied with ``SERVED``, and an endpoint that answers with a model of that time.

    The controller rests: it would start the run and look at the endpoint between the lines.
    """
    served.platform.controller.stop()
    for thread in threading.enumerate():
        if thread.name == "controller":
            thread.join(timeout=30)
    ledger, body = served.platform.ledger, project(served, SERVED)
    repo, endpoint = (each["definition"] for each in body["described"])
    run = ledger.submit(
        key="k",
        project="shop",
        job="features",
        kind="feature-repo",
        definition=repo,
        fingerprint=body["described"][0]["fingerprint"],
        package=served.package,
        by=ADMIN,
    )
    started = ledger.move(ledger.start(run, "run-1"), State.RUNNING)
    ledger.move(started, State.SUCCEEDED, end_reason=EndReason.DONE, outputs=[], metrics={})
    ledger.projects.want_endpoint(
        "shop", "late", definition=endpoint, package=served.package, fingerprint="f", by=ADMIN
    )
    ledger.projects.seen_endpoint("shop", "late", state="READY", served={"version": "3"}, message="")
    return served


def test_it_is_refused_with_the_list_and_nothing_is_done(live: Served) -> None:
    body = project(live, LESS)
    with live.http(live.owner_key) as http:
        before = http.get("/v1/projects/shop/runs").json()["items"]
        planned = http.post("/v1/projects/shop/plan", json=body).raise_for_status().json()
        answer = http.post("/v1/projects/shop/apply", json=body)
        assert answer.status_code == 409
        refused = from_problem(answer.json())
        assert isinstance(refused, Unacknowledged)
        assert refused.detail["breaks"] == planned["breaks"]
        assert [each["what"] for each in planned["breaks"]] == [
            "sales.best is gone",
            "sales.sold is float64, was float32",
        ]
        assert planned["breaks"][0]["serves"] == ["endpoint late (late@3)"]
        assert "endpoint late (late@3) reads it" in refused.message
        assert "--acknowledge" in refused.hint
        assert http.get("/v1/projects/shop/runs").json()["items"] == before

        done = http.post("/v1/projects/shop/apply", params={"acknowledge": "true"}, json=body)
        assert done.raise_for_status().json()["runs"]["features"] not in [each["id"] for each in before]


def test_what_adds_to_it_needs_no_word(live: Served) -> None:
    more = {"v1": SERVED["v1"] | {"sales.open": "bool"}}
    with live.http(live.owner_key) as http:
        assert http.post("/v1/projects/shop/apply", json=project(live, more)).status_code == 200
