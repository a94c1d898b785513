"""The client: the platform's verbs. What crosses HTTP is the transport's."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pydantic import BaseModel

from manta.answers import Applied, EndpointInfo
from manta.api.shown import Granted, NewKey
from manta.client.handle import RunHandle
from manta.client.models import ModelVerbs
from manta.client.transport import Transport, segment
from manta.errors import NotFound, PlatformDown, RunFailed, Unavailable
from manta.ledger.comparison import Comparison
from manta.ledger.leaderboard import Standing
from manta.ledger.manifest import Manifest
from manta.ledger.records import Direction, Entry, Key, Lineage, Verdict
from manta.ledger.runs import Attempt, Run, State
from manta.plan import Action, Plan
from manta.project import Project, load
from manta.settings import Settings

if TYPE_CHECKING:
    import polars

    from manta.client.data import Datasets
    from manta.client.features import Features

POLL_SECONDS = 0.4
PAGE_ROWS = 200
WAITING_PATIENCE = (
    60.0  # seconds that a server may be away while a run is waited for: it may be starting anew
)


class Happening(BaseModel):
    """Something that happened to a run."""

    at: datetime
    what: str
    detail: dict[str, Any]


class Look(NamedTuple):
    """A run as it is now, and what it has printed since the last look. A new attempt's log starts anew."""

    run: Run
    printed: str


class Client(ModelVerbs):
    """The verbs, for the project in ``settings.root``. Each raises the error that the platform raised, and
    PlatformDown when it does not answer."""

    def __init__(self, settings: Settings, transport: Transport) -> None:
        self.settings = settings
        self.url = transport.url
        self._transport = transport

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of connections; and of the platform, where it is in this process."""
        self._transport.close()

    def call(self, method: str, path: str, **content: Any) -> Any:
        """Any route of the API, its answer as JSON: for what has no verb of its own."""
        return self._transport.json(method, path, **content)

    def me(self) -> dict[str, Any]:
        """Who one is: ``name``, and ``roles`` by project, or by "*" for all of them; and whom one speaks to:
        ``version``, the ``project`` and ``root`` that the server was started in, and the ``trouble`` that its
        controller last had.

        Raises:
            PlatformDown: nothing answers.
            Unauthenticated: the key opens nothing.
        """
        found: dict[str, Any] = self.call("GET", "/v1/me")
        return found

    def check_is_own(self) -> dict[str, Any]:
        """As :meth:`me`, of a platform that should be this folder's.

        Raises:
            PlatformDown: nothing answers, or the platform of another project does.
        """
        found = self.me()
        if found["project"] != self.settings.project:
            raise PlatformDown(
                f"{self.url} serves the project {found['project']!r} in {found['root']}, "
                f"not {self.settings.project!r}",
                hint="run `manta down` there, or give this project other ports: MANTA_PORTS__SERVER=…",
            )
        return found

    # --- plan and apply -------------------------------------------------------------------------------

    def load(self) -> Project:
        """Load the project in this folder and hand its package to the platform."""
        project, content = load(self.settings)
        path = f"/v1/packages/{project.package}"
        if self._transport.send("HEAD", path, accept=(200, 404)).status_code == 404:
            self._transport.send("PUT", path, content=content)
        return project

    def plan(self) -> Plan:
        """What :meth:`apply` would do."""
        return Plan(**self.call("POST", self._of("plan"), json=self.load().model_dump(mode="json")))

    def apply(self, *, acknowledge: bool = False) -> Applied:
        """Make the platform hold what the project defines. Returns once all is set going.

        Args:
            acknowledge: what the plan lists under ``breaks`` may be broken.

        Raises:
            Unacknowledged: it breaks what is served now; nothing has been done.
        """
        params = {"acknowledge": "true"} if acknowledge else None
        body = self.load().model_dump(mode="json")
        return Applied(**self.call("POST", self._of("apply"), json=body, params=params))

    def wait_applied(
        self,
        applied: Applied,
        seen: Callable[[list[Run], list[EndpointInfo]], None] = lambda runs, endpoints: None,
    ) -> None:
        """Wait until every run of it has ended and every endpoint answers; ``seen`` is told each look.

        Raises:
            RunFailed: a run ended otherwise than SUCCEEDED, after the others have ended.
            Unavailable: an endpoint does not come up.
        """
        pending = [
            applied.runs[step.name]
            for step in applied.plan.steps
            if step.action in (Action.RUN, Action.FOLLOW)
        ]
        deployed = {step.name for step in applied.plan.steps if step.action is Action.DEPLOY}
        while True:
            runs = self._runs_of(pending)
            endpoints = [each for each in self.endpoints() if each.name in deployed]
            seen(runs, endpoints)
            if all(run.state.ended for run in runs):
                failed = [run for run in runs if run.state is not State.SUCCEEDED]
                if failed:
                    raise failure(failed)
                broken = [each for each in endpoints if each.state == "FAILED"]
                if broken:
                    raise Unavailable(
                        f"endpoint {broken[0].name} did not come up: {broken[0].message}",
                        hint="correct serve/ or the model, then `manta apply`",
                    )
                if all(each.state == "READY" for each in endpoints):
                    return
            time.sleep(POLL_SECONDS)

    # --- runs -----------------------------------------------------------------------------------------

    def submit(
        self, job: str, params: Mapping[str, Any] | None = None, *, key: str | None = None
    ) -> RunHandle:
        """Submit one run of a job of the project in this folder. The same ``key`` again gives the same run.

        Raises:
            NotFound: the project has no such job.
            InvalidInput: the job takes no parameter of that name.
            KeyReused, Conflict: the key was used for another submission.
        """
        body = {"project": self.load().model_dump(mode="json"), "job": job, "params": dict(params or {})}
        sent = self.call("POST", self._of("runs"), json=body | ({"key": key} if key else {}), key=key)
        return RunHandle(self, Run(**sent))

    def run(self, run_id: int) -> RunHandle:
        """Raises:
        NotFound: there is no such run, or none that one may see.
        """
        return RunHandle(self, self.look(run_id))

    def look(self, run_id: int, *, patience: float = 2.0) -> Run:
        """The run as it is now: data only."""
        return Run(**self._transport.json("GET", f"/v1/runs/{run_id}", patience=patience))

    def runs(
        self,
        job: str | None = None,
        *,
        active: bool = False,
        before: int | None = None,
        limit: int | None = 50,
    ) -> list[Run]:
        """The project's runs, newest first, at most ``limit`` of them (None: all), fetched page by page;
        ``before`` is the id to go on from."""
        wanted = {"job": job, "active": active or None, "before": before}
        return list(self._paged(self._of("runs"), limit, wanted, Run))

    def _runs_of(self, ids: list[int]) -> list[Run]:
        if not ids:
            return []
        found = self._paged(self._of("runs"), None, {"ids": ids}, Run, patience=WAITING_PATIENCE)
        return sorted(found, key=lambda run: run.id)

    def events(self, run_id: int) -> list[Happening]:
        """What happened to a run, oldest first."""
        return [Happening(**each) for each in self.call("GET", f"/v1/runs/{run_id}/events")]

    def attempts(self, run_id: int) -> list[Attempt]:
        """The tries of a run, oldest first."""
        return [Attempt(**each) for each in self.call("GET", f"/v1/runs/{run_id}/attempts")]

    def logs(self, run_id: int, *, attempt: int | None = None) -> str:
        """What an attempt of a run, the last unless given, has printed so far."""
        whole, decode = "", codecs.getincrementaldecoder("utf-8")("replace").decode
        chunk, offset = self._log(run_id, attempt, 0)
        while chunk:
            whole += decode(chunk)
            chunk, offset = self._log(run_id, attempt, offset)
        return whole

    def watch(self, run_id: int) -> Iterator[Look]:
        """Look at a run again and again until it has ended; the last look is at its end, and everything its
        attempts printed was in one of them. A server that is away for a while is waited for."""
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        attempt = offset = 0
        while True:
            run = self.look(run_id, patience=WAITING_PATIENCE)
            chunk = b""
            if attempt:  # before the next one: the rest of this
                chunk, offset = self._log(run_id, attempt, offset)
            if not chunk and run.attempt > attempt:
                attempt += 1
                chunk, offset = self._log(run_id, attempt, 0)
            yield Look(run, decode(chunk))
            if not chunk and attempt == run.attempt:
                if run.state.ended:
                    return
                time.sleep(POLL_SECONDS)

    def _log(self, run_id: int, attempt: int | None, offset: int) -> tuple[bytes, int]:
        """What follows ``offset``, and the offset that follows it; after a run's end, nothing is the end."""
        params = {"offset": offset} | ({"attempt": attempt} if attempt else {})
        answer = self._transport.send(
            "GET", f"/v1/runs/{run_id}/logs", params=params, patience=WAITING_PATIENCE
        )
        return answer.content, int(answer.headers["manta-next-offset"])

    def stop(self, run_id: int) -> Run:
        """Ask for a run to be stopped. Returns at once; :meth:`wait` for its end."""
        return Run(**self.call("POST", f"/v1/runs/{run_id}/stop"))

    def wait(self, run_id: int, seen: Callable[[Run], None] = lambda run: None) -> Run:
        """Wait until the run has ended; ``seen`` is told each look.

        Raises:
            RunFailed: it ended otherwise than SUCCEEDED.
        """
        while True:
            run = self.look(run_id, patience=WAITING_PATIENCE)
            seen(run)
            if run.state is State.SUCCEEDED:
                return run
            if run.state.ended:
                raise failure([run])
            time.sleep(POLL_SECONDS)

    def replay(self, run_id: int) -> RunHandle:
        """Run it again from the versions that it read. Its comparison: :meth:`comparison` of the new run."""
        return RunHandle(self, Run(**self.call("POST", f"/v1/runs/{run_id}/replay")))

    def manifest(self, run_id: int) -> Manifest:
        """All that decides what a run makes, and one id of it: two runs of one id differ in nothing."""
        return Manifest(**self.call("GET", f"/v1/runs/{run_id}/manifest"))

    def comparison(self, run_id: int) -> Comparison:
        """Whether a replay made the same as the run that it repeats.

        Raises:
            NotFound: the run is no replay.
        """
        return Comparison(**self.call("GET", f"/v1/runs/{run_id}/comparison"))

    # --- endpoints, lineage, audit; of models, see ModelVerbs -------------------------------------------

    def leaderboard(
        self, model: str, metric: str | None = None, *, everything: bool = False, limit: int | None = 50
    ) -> list[Standing]:
        """The runs that trained the model, the best by ``metric`` (None: ``roc_auc``, of a regression
        ``rmse``) first, at most ``limit`` of them (None: all); those that a gate refused are among them.
        ``everything``: also replays, and what was never measured.

        Raises:
            NotFound: no run has trained it.
            InvalidInput: none of them has a figure of that name.
        """
        wanted = {"metric": metric, "everything": everything or None}
        path = f"{self._of('models')}/{segment(model)}/leaderboard"
        return list(self._paged(path, limit, wanted, Standing))

    def endpoints(self) -> list[EndpointInfo]:
        return [EndpointInfo(**each) for each in self.call("GET", self._of("endpoints"))]

    def endpoint(self, name: str) -> EndpointInfo:
        """Raises:
        NotFound: there is no such endpoint.
        """
        return EndpointInfo(**self.call("GET", f"{self._of('endpoints')}/{segment(name)}"))

    def predict(self, model: str, body: Mapping[str, Any], *, features: bool = False) -> dict[str, Any]:
        """Ask the endpoint of that name, or the one that serves that model.

        Args:
            body: ``{"keys": …}`` or ``{"rows": …}``, one object or a list of them.
            features: also answer which feature values were used, and how fresh they are.

        Raises:
            NotFound: no endpoint serves it.
            RequestInvalid: the body does not fit.
        """
        endpoints = [each for each in self.endpoints() if each.kind == "endpoint"]
        for endpoint in endpoints:
            if model in (endpoint.name, endpoint.model):
                params = {"features": "true"} if features else None
                answer: dict[str, Any] = self._transport.ask(
                    f"{endpoint.url}/predict", json=dict(body), params=params
                ).json()
                return answer
        served = ", ".join(endpoint.name for endpoint in endpoints)
        raise NotFound(
            f"no endpoint serves {model!r}",
            hint=f"served: {served}" if served else "`manta apply` puts the project's endpoints up",
        )

    def training_set(self, training: str, *, run: int | None = None) -> polars.DataFrame:
        """The examples of a training joined with their features as of their times, labelled, with the part
        ("train", "validation", "test") that each falls into: what run ``run`` of it read, or, unless given,
        what a run submitted now would read.

        Raises:
            NotFound: the project has no such training, or what it reads has not been made.
        """
        from manta.client.training_set import training_set

        return training_set(self, training, run)

    @property
    def data(self) -> Datasets:
        """The project's datasets: ``client.data.read("flights", as_of="2026-11-17").polars()``,
        ``client.data.sql("select …")``; see :class:`manta.data.reading.Datasets`."""
        from manta.client.data import datasets

        return datasets(self.settings, self)

    @property
    def features(self) -> Features:
        """The project's feature services: ``client.features.get("delay_v1", [{…}])``,
        ``client.features.parity("delay_v1")``; see :class:`manta.client.features.Features`."""
        from manta.client.features import Features

        return Features(self)

    def lineage(self, of: str, direction: Direction = "both") -> Lineage:
        """What ``run:17``, ``model:delay@3``, ``dataset:flights@2``, ``endpoint:delay`` … was made from
        ("up"), and what was made from it ("down").

        Raises:
            NotFound: the project has no such thing.
        """
        params = {"of": of, "direction": direction}
        return Lineage(**self.call("GET", self._of("lineage"), params=params))

    def audit(
        self,
        *,
        actor: str | None = None,
        project: str | None = None,
        before: int | None = None,
        limit: int | None = 50,
    ) -> list[Entry]:
        """Who did what, and what was refused to whom, newest first; at most ``limit`` entries (None: all),
        before the one of number ``before``."""
        wanted = {"actor": actor, "project": project, "before": before}
        return list(self._paged("/v1/audit", limit, wanted, Entry))

    def verify_audit(self, expect: str | None = None) -> Verdict:
        """Have the whole log's chain of hashes computed again; ``expect`` is a head that was seen earlier."""
        params = {"expect": expect} if expect else {}
        return Verdict(**self.call("GET", "/v1/audit/verify", params=params))

    # --- who may do what ------------------------------------------------------------------------------

    def keys(self) -> list[Key]:
        """Every API key, newest first; without what it opens with."""
        return [Key(**each) for each in self.call("GET", "/v1/keys")]

    def create_key(self, principal: str, *, label: str = "", days: int | None = None) -> NewKey:
        """Make an API key for a principal; what is in its ``key`` is not shown again."""
        wanted = {"principal": principal, "label": label, "days": days}
        return NewKey(**self.call("POST", "/v1/keys", json=wanted))

    def revoke_key(self, prefix: str) -> None:
        """From the next request on it opens nothing.

        Raises:
            NotFound: there is no such key.
        """
        self._transport.send("DELETE", f"/v1/keys/{segment(prefix)}")

    def grants(self) -> list[Granted]:
        """Every role that a principal holds in a project."""
        return [Granted(**each) for each in self.call("GET", "/v1/grants")]

    def set_grant(self, principal: str, project: str, role: str) -> Granted:
        """Give a principal a role in a project ("*": in all), in place of the one it holds there."""
        return Granted(**self.call("PUT", _grant(principal, project), json={"role": role}))

    def remove_grant(self, principal: str, project: str) -> None:
        """Take a principal's role in a project away."""
        self._transport.send("DELETE", _grant(principal, project))

    # --- paths and pages ------------------------------------------------------------------------------

    def _of(self, noun: str) -> str:
        return f"/v1/projects/{segment(self.settings.project)}/{noun}"

    def _paged(
        self, path: str, limit: int | None, params: Mapping[str, Any], kind: Any, **how: Any
    ) -> Iterator[Any]:
        asked = {name: value for name, value in params.items() if value is not None}
        while limit is None or limit > 0:
            asked["limit"] = PAGE_ROWS if limit is None else min(PAGE_ROWS, limit)
            page = self.call("GET", path, params=asked, **how)
            yield from (kind(**each) for each in page["items"])
            if limit is not None:
                limit -= len(page["items"])
            if page["next"] is None:
                return
            asked["before"] = page["next"]


def _grant(principal: str, project: str) -> str:
    return f"/v1/grants/{segment(principal)}/{segment(project)}"


def failure(failed: list[Run]) -> RunFailed:
    """The first of them that did not fail for another's failure, as an error."""
    first = min(failed, key=lambda run: (run.end_reason == "NEED_FAILED", run.id))
    return RunFailed(
        f"run {first.id} ({first.job}) {first.state}: {first.message or first.end_reason}",
        hint=f"`manta logs {first.id}` shows what it printed",
    )
