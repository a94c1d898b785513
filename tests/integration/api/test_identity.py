"""Who gets in: two people of two projects, revocation, guessing, limits."""

from __future__ import annotations

import os
import stat
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from manta.api.identity import Identity
from manta.ledger.actor import Actor
from manta.ledger.store import Ledger


def denied(served: Any, actor: str) -> list[Any]:
    entries = served.platform.ledger.audit.entries(actor=actor, limit=500)
    return [entry for entry in entries if entry.outcome == "denied"]


def test_two_people_with_a_project_each_do_not_see_the_others(served_on) -> None:
    served = served_on
    ada = served.http(served.person("user:ada", ads="developer"))
    bob = served.http(served.person("user:bob", beds="viewer"))
    ads, beds = served.run_of("ads"), served.run_of("beds")
    assert ada.get("/v1/projects").json() == ["ads"]
    assert bob.get("/v1/projects").json() == ["beds"]
    assert ada.get(f"/v1/runs/{ads}").status_code == 200
    assert bob.get(f"/v1/runs/{beds}").status_code == 200
    hidden = [
        f"/v1/runs/{ads}",
        f"/v1/runs/{ads}/logs",
        f"/v1/runs/{ads}/events",
        "/v1/projects/ads/runs",
        "/v1/projects/ads/models",
        "/v1/projects/ads/endpoints",
        f"/v1/projects/ads/lineage?of=run:{ads}",
        "/v1/audit?project=ads",
    ]
    for path in hidden:
        assert bob.get(path).status_code == 404, path
    # What is hidden looks as what is not there.
    there, not_there = bob.get(f"/v1/runs/{ads}").json(), bob.get("/v1/runs/99").json()
    assert {**there, "detail": ""} == {**not_there, "detail": ""}
    assert there["detail"].replace(str(ads), "N") == not_there["detail"].replace("99", "N")
    # Nor through his own project.
    assert bob.get(f"/v1/projects/beds/lineage?of=run:{ads}").status_code == 404
    assert bob.get(f"/v1/projects/beds/runs?ids={ads}").json()["items"] == []
    # What he sees and may not do.
    assert bob.post(f"/v1/runs/{beds}/stop").status_code == 403
    told = denied(served, "user:bob")
    assert len(told) == len(hidden) + 2
    assert {entry.project for entry in told} == {"ads", "beds"}
    assert told[-1].action == "GET /v1/runs/{run_id}"
    assert told[-1].target == f"/v1/runs/{ads}"
    assert denied(served, "user:ada") == []
    assert served.platform.ledger.audit.verify().broken is None


def test_a_revoked_key_is_refused_at_once(served_on) -> None:
    served = served_on
    key = served.person("user:ada", ads="viewer")
    with served.http(key) as ada, served.http(served.owner_key) as owner:
        assert ada.get("/v1/projects/ads/runs").status_code == 200
        began = time.monotonic()
        assert owner.delete(f"/v1/keys/{key.split('_')[1]}").status_code == 204
        answer = ada.get("/v1/projects/ads/runs")
        print(f"refused {time.monotonic() - began:.3f} s after its revocation was asked for")
        assert answer.status_code == 401  # by the very next request
        assert "revoked" in answer.json()["detail"]


def test_a_role_taken_away_and_a_key_that_expired_are_refused(served) -> None:
    key = served.person("user:ada", ads="viewer")
    with served.http(key) as ada, served.http(served.owner_key) as owner:
        assert ada.get("/v1/projects/ads/runs").status_code == 200
        assert owner.delete("/v1/grants/user:ada/ads").status_code == 204
        assert ada.get("/v1/projects/ads/runs").status_code == 404
        past = datetime.now(UTC) - timedelta(seconds=1)
        identity = served.app.state.identity
        _, expired = identity.make_key("user:ada", by=Actor("owner", "local"), expires_at=past)
        answer = ada.get("/v1/me", headers={"Authorization": f"Bearer {expired}"})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert "expired" in answer.json()["detail"]


def test_guessing_is_locked_out_and_those_at_work_go_on(serve) -> None:
    served = serve(failures_per_minute=5)
    ada, bob = served.person("user:ada", ads="viewer"), served.person("user:bob", ads="viewer")
    with served.http(None) as http:

        def ask(key: str) -> httpx.Response:
            return http.get("/v1/me", headers={"Authorization": f"Bearer {key}"})

        assert ask(ada).status_code == 200
        guesses = [ask(bob[:-4] + f"{number:04}") for number in range(12)]
        assert [answer.status_code for answer in guesses] == [401] * 5 + [429] * 7
        assert 0 < int(guesses[-1].headers["retry-after"]) <= 60
        assert ask(bob).status_code == 429  # the key that was guessed at, and this address
        assert ask(ada).status_code == 200  # was at work here before
        assert ask(ada[:-4] + "0000").status_code == 401
        assert ask(ada).status_code == 429  # somebody here guesses at it


def test_what_was_valid_once_is_no_guess(serve) -> None:
    served = serve(failures_per_minute=3)
    key = served.person("user:ada", ads="viewer")
    served.platform.ledger.access.revoke_key(key.split("_")[1], by=Actor("owner", "local"))
    with served.http(key) as ada:
        assert {ada.get("/v1/me").status_code for _ in range(10)} == {401}


def test_a_flood_of_denials_does_not_fill_the_audit_log(served) -> None:
    with served.http(None) as nobody:
        for _ in range(300):
            assert nobody.get("/v1/me").status_code == 401
    told = denied(served, "address:127.0.0.1")
    assert len(told) == 20
    app_denials = served.app.user_middleware[0].kwargs["denials"]
    app_denials.flush(all_of_them=True)
    assert denied(served, "address:127.0.0.1")[0].detail == {"count": 280}


def test_who_asks_too_much_is_told_when_to_ask_again(serve) -> None:
    served = serve(requests_per_minute=30)
    with served.http(served.person("user:ada", ads="viewer")) as ada:
        answers = [ada.get("/v1/me") for _ in range(80)]
        assert answers[0].status_code == 200
        # The minute may turn once meanwhile.
        refused = [answer for answer in answers if answer.status_code == 429]
        assert 20 <= len(refused) <= 50
        assert int(refused[0].headers["retry-after"]) >= 1
        assert refused[0].json()["code"] == "too_many"
    assert served.http(served.owner_key).get("/v1/me").status_code == 200


def test_the_owners_key_is_made_once_and_for_the_owner_only(served) -> None:
    home = served.settings.home
    for name in ("owner.key", "pepper"):
        assert stat.S_IMODE(os.stat(home / name).st_mode) == 0o600
    assert (home / "owner.key").read_text().strip() == served.owner_key
    with served.http(served.owner_key) as http:
        me = http.get("/v1/me").json()
    assert (me["name"], me["roles"]) == ("owner", {"*": "admin"})
    ledger = Ledger(served.settings.ledger_url)
    again = Identity(served.settings, ledger)
    assert again.prepare() == served.owner_key
    assert len(ledger.access.keys()) == 1
    ledger.close()


def test_a_key_of_another_ledger_is_replaced(served, settings, tmp_path) -> None:
    other = Ledger(f"sqlite:///{tmp_path}/other.db")
    other.create()
    key = Identity(settings, other).prepare()
    assert key != served.owner_key
    assert (settings.home / "owner.key").read_text().strip() == key
    other.close()


def test_the_ledger_alone_opens_nothing(served, settings, tmp_path) -> None:
    """Whoever reads the ledger and lacks the pepper cannot make a key that it takes."""
    stranger = settings.model_copy(update={"home": tmp_path / "stranger"})
    forged = Identity(stranger, served.platform.ledger)
    forged.prepare()
    _, key = forged.make_key("owner", by=Actor("owner", "local"))
    with served.http(key) as http:
        assert http.get("/v1/me").status_code == 401


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        "bearer",
        "Bearer manta_",
        "Bearer a.b.c",
        "Bearer é",
    ],
)
def test_what_is_no_credential_is_refused(served, header: str) -> None:
    with served.http(None) as http:
        try:
            answer = http.get("/v1/me", headers={"Authorization": header.encode()})
        except (httpx.LocalProtocolError, httpx.RemoteProtocolError):
            return  # not even HTTP
        assert answer.status_code in (400, 401)
