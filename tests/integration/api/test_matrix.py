"""Every route × role × project: nothing is allowed that should not be, and what should be is."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import httpx
import pytest

from manta.api.access_table import TABLE, Where
from manta.api.server import routes
from manta.ledger.roles import Role

ROLES = [None, *Role]
FORBIDDEN = {401, 403, 404}
MINE, OTHERS = "mine", "others"


def expected(where: Where, needs: Role, role: Role | None, held_in: str, about: str) -> str:
    """What one who holds ``role`` in ``held_in`` should be told when asking about ``about``; written from the
    issue's rules, apart from the code that is tested."""
    if where in (Where.OPEN, Where.ANY):
        return "allowed"
    if role is None:
        return "hidden" if where in (Where.PATH, Where.RUN, Where.QUERY) else "refused"
    strong = list(Role).index(role) >= list(Role).index(needs)
    if where is Where.SOME:
        return "allowed" if strong else "refused"
    if where is Where.EVERY:
        return "allowed" if strong and held_in == "everywhere" else "refused"
    if held_in not in ("everywhere", about):
        return "hidden"
    return "allowed" if strong else "refused"


@pytest.fixture
def ask(served) -> Callable[..., httpx.Response]:
    runs = {project: served.run_of(project) for project in (MINE, OTHERS)}
    clients: dict[str, httpx.Client] = {}

    def asking(method: str, path: str, key: str | None, about: str) -> httpx.Response:
        client = clients.setdefault(key or "", served.http(key))
        filled = path.format(
            project="p1" if "grants" in path else about,
            run_id=runs[about],
            package="0" * 32,
            sha256="0" * 64,
            name="endpoint",
            model="model",
            prefix="0" * 12,
            principal="user:nobody",
        )
        # A body that fits no route: who is let in is told so, and nothing is changed.
        content = b'{"none": 1}' if method in ("POST", "PUT") else None
        headers = {"Content-Type": "application/json"} if content else {}
        params = {"project": about} if path == "/v1/audit" else {}
        return client.request(method, filled, content=content, headers=headers, params=params)

    return asking


def test_every_route_role_and_project(served, ask: Callable[..., httpx.Response]) -> None:
    people = {
        (role, held_in): served.person(f"user:{role}-{held_in}", **({held_in: role} if role else {}))
        for role, held_in in product(ROLES, (MINE, "everywhere"))
    }
    asked, wrong = 0, []
    for route in routes():
        (method,) = route.methods
        rule = TABLE[method, route.path]
        for (role, held_in), about in product(people, (MINE, OTHERS)):
            answer = ask(method, route.path, people[role, held_in], about)
            should = expected(rule.where, rule.role, role, held_in, about)
            # One who is let in may be told that what was named is not there: by another message.
            hidden = (
                answer.status_code == 404 and answer.request.method != "HEAD" and is_hidden(answer, about)
            )
            told = {403: "refused", 401: "nobody"}.get(answer.status_code, "hidden" if hidden else "allowed")
            asked += 1
            if told != should:
                wrong.append(f"{method} {route.path} {role} in {held_in} about {about}: {told}, not {should}")
    assert wrong == []
    assert asked == len(routes()) * 20


def is_hidden(answer: httpx.Response, about: str) -> bool:
    return answer.json()["detail"] in (f"there is no project {about!r}",) or answer.json()[
        "detail"
    ].startswith("there is no run ")


def test_without_credentials_only_health_answers(served, ask: Callable[..., httpx.Response]) -> None:
    opened = []
    for route in routes():
        (method,) = route.methods
        answer = ask(method, route.path, None, MINE)
        if answer.status_code != 401:
            opened.append(route.path)
        else:
            assert answer.headers["www-authenticate"] == "Bearer"
    assert sorted(opened) == ["/healthz", "/metrics", "/readyz"]


def test_what_the_strongest_may_is_done(served) -> None:
    """The matrix sends bodies that nothing accepts; here each changing route does its work."""
    developer = served.http(served.person("user:dev", mine="developer"))
    operator = served.http(served.person("user:op", mine="operator"))
    project = served.project(MINE)
    assert developer.post("/v1/projects/mine/plan", json=project).status_code == 200
    assert developer.post("/v1/projects/mine/apply", json=project).status_code == 403
    assert operator.post("/v1/projects/mine/apply", json=project).status_code == 200
    run = developer.post("/v1/projects/mine/runs", json=served.submission(MINE))
    assert run.status_code == 201
    assert run.json()["submitted_by"] == "user:dev"
    assert developer.post(f"/v1/runs/{run.json()['id']}/stop").status_code == 200
    adopted = served.submission(MINE, submission="ray-1")
    first, second = (developer.post("/v1/projects/mine/adoptions", json=adopted) for _ in range(2))
    assert (first.status_code, first.json()["origin"]) == (201, "ray")
    assert first.json()["id"] == second.json()["id"]


def test_a_project_in_the_body_must_be_the_one_in_the_path(served) -> None:
    developer = served.http(served.person("user:dev", mine="operator"))
    for route in ("plan", "apply"):
        assert developer.post(f"/v1/projects/mine/{route}", json=served.project(OTHERS)).status_code == 422
    for route in ("runs", "adoptions"):
        body = served.submission(OTHERS, submission="ray-2")
        assert developer.post(f"/v1/projects/mine/{route}", json=body).status_code == 422
    assert served.platform.runs(OTHERS) == []
