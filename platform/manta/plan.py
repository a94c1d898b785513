"""The plan: what would have to run for the platform to hold what a project defines. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from graphlib import CycleError, TopologicalSorter
from typing import Any

from pydantic import BaseModel, ConfigDict

from manta.definitions import Definition, FeatureRepo, Ref, Runnable, from_json
from manta.errors import DefinitionInvalid, NotFound
from manta.ledger.endpoints import EndpointRow
from manta.ledger.runs import Run, State, Version
from manta.project import Project


class Action(StrEnum):
    RUN = "run"  # it is missing or stale
    FOLLOW = "follow"  # the run that would be submitted is at work already
    KEEP = "keep"  # what it made is fresh
    DEPLOY = "deploy"  # an endpoint to be put up, or changed
    REMOVE = "remove"  # an endpoint that the project no longer defines


class Step(BaseModel):
    """One line of a plan. ``needs`` names the steps that must succeed before; ``because`` says why."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: str
    action: Action
    because: str
    needs: tuple[str, ...] = ()
    run: int | None = None
    produces: tuple[str, ...] = ()


class Break(BaseModel):
    """A change of the features that what is served now relies on. ``what`` says which; ``serves`` are the
    endpoints, with the model versions that they answer with."""

    model_config = ConfigDict(frozen=True)

    service: str
    what: str
    serves: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.service}: {self.what}; {', '.join(self.serves)} reads it"


class Plan(BaseModel):
    """Steps in an order in which they can be done. ``touches`` lists, for each job that would run, what
    lies downstream of it; for the feature repository also the models, and which of its views have changed.
    ``breaks`` is what has to be acknowledged before it is carried out. ``asked`` names the jobs that run only
    when somebody asks for them, and that it leaves alone."""

    model_config = ConfigDict(frozen=True)

    project: str
    steps: tuple[Step, ...]
    touches: dict[str, tuple[str, ...]] = {}
    changed_views: dict[str, tuple[str, ...]] = {}
    breaks: tuple[Break, ...] = ()
    asked: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return all(step.action is Action.KEEP for step in self.steps)


class Held(BaseModel):
    """What the platform holds for a project: the last run of each job (any state), the last that
    succeeded, the newest version of everything, and the endpoints."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    last: dict[str, Run] = {}
    succeeded: dict[str, Run] = {}
    active: dict[str, Run] = {}
    heads: dict[Ref, Version] = {}
    endpoints: dict[str, EndpointRow] = {}


def plan(project: Project, held: Held, only: Iterable[str] | None = None) -> Plan:
    """Compare what ``project`` defines with what is held.

    ``only`` limits the plan to those jobs and what they depend on; unless given, it is all that an apply runs
    of itself.

    Raises:
        DefinitionInvalid: definitions read each other's outputs, or need each other, in a circle; or one
            needs what the project does not define.
        NotFound: ``only`` names what the project does not define.
    """
    jobs = project.jobs()
    producers = _producers(project)
    upstream = _upstream(project, producers)
    order = _ordered(upstream)
    wanted = {name for name, (job, _) in jobs.items() if _on_apply(job)} if only is None else set(only)
    among = _closure(wanted, upstream)
    steps: dict[str, Step] = {}
    for name in (name for name in order if name in among):
        definition, fingerprint = jobs[name]
        steps[name] = _job_step(project, held, definition, fingerprint, upstream[name], steps)
    found = list(steps.values())
    if only is None:
        found += _endpoint_steps(project, held, producers, steps)
    left = {name: before for name, before in upstream.items() if name in among}
    touches = {
        step.name: _downstream(step.name, left, project, producers)
        for step in found
        if step.action is Action.RUN
    }
    before, after = _applied_repo(held), _repo(project)
    running = {step.name for step in found if step.action in (Action.RUN, Action.FOLLOW)}
    changed = after is not None and after.name in running
    return Plan(
        project=project.name,
        steps=tuple(found),
        touches=touches,
        changed_views=_changed_views(before, after) if changed else {},
        breaks=_breaks(before, after, project, held) if changed else (),
        asked=tuple(name for name in jobs if name not in among) if only is None else (),
    )


def _repo(project: Project) -> FeatureRepo | None:
    return next((job for job, _ in project.jobs().values() if isinstance(job, FeatureRepo)), None)


def _applied_repo(held: Held) -> FeatureRepo | None:
    run = held.succeeded.get(FeatureRepo().name)
    if run is None or run.definition.get("kind") != FeatureRepo.kind:
        return None
    applied = from_json(run.definition)
    return applied if isinstance(applied, FeatureRepo) else None


def _changed_views(before: FeatureRepo | None, after: FeatureRepo | None) -> dict[str, tuple[str, ...]]:
    """Each view that is new, other or gone, with the services that have it or had it."""
    if before is None or after is None:
        return {}
    old, new = ({view.name: view.fingerprint for view in repo.views} for repo in (before, after))
    found = {}
    for name in sorted(set(old) | set(new)):
        if old.get(name) != new.get(name):
            services = {**before.services, **after.services}
            both = [s for s in services if name in (*before.services.get(s, ()), *after.services.get(s, ()))]
            how = "new" if name not in old else "gone" if name not in new else "changed"
            found[f"{name} ({how})"] = tuple(sorted(both))
    return found


def _breaks(
    before: FeatureRepo | None, after: FeatureRepo | None, project: Project, held: Held
) -> tuple[Break, ...]:
    """What is served keeps reading the service as it was when its model was trained: what it reads must stay,
    under the same keys and in the same types, until another model has taken its place."""
    if before is None or after is None:
        return ()
    serves: dict[str, list[str]] = {}
    for name, row in held.endpoints.items():
        if name in project.endpoints() and row.served.get("version"):
            model, service = row.definition.get("model"), str(row.definition.get("features"))
            serves.setdefault(service, []).append(f"endpoint {name} ({model}@{row.served['version']})")
    found = []
    for service, endpoints in sorted(serves.items()):
        old, new = before.types.get(service, {}), after.types.get(service)
        if new is None:
            what = ["the service is gone"] if service in before.services else []
        else:
            what = [f"{name} is gone" for name in old if name not in new]
            what += [
                f"{name} is {new[name]}, was {kind}"
                for name, kind in old.items()
                if new.get(name, kind) != kind
            ]
            what += [
                f"{name} is new" for name in new if name.startswith("join key ") and old and name not in old
            ]
        found += [Break(service=service, what=each, serves=tuple(endpoints)) for each in what]
    return tuple(found)


def needed(project: Project, held: Held, job: str) -> tuple[Step, ...]:
    """The steps of what ``job`` names in its ``needs``, and of what those name in theirs, in an order in
    which they can be done. What only the data depend on is not among them, and makes none of them stale.

    Raises:
        DefinitionInvalid: as :func:`plan`.
    """
    jobs = project.jobs()
    upstream = _upstream(project, _producers(project))
    order = _ordered(upstream)
    among = _closure({job}, {name: _needs(definition) for name, (definition, _) in jobs.items()}) - {job}
    steps: dict[str, Step] = {}
    for name in order:
        if name in among:
            definition, fingerprint = jobs[name]
            before = tuple(other for other in upstream[name] if other in among)
            steps[name] = _job_step(project, held, definition, fingerprint, before, steps)
    return tuple(steps.values())


def _on_apply(job: Definition) -> bool:
    return job.on_apply if isinstance(job, Runnable) else True


def _producers(project: Project) -> dict[Ref, tuple[str, ...]]:
    """Who makes each output. Of a model that several trainings make, those that an apply runs, if any: the
    others are asked for one by one, and nothing waits for them."""
    found: dict[Ref, list[str]] = {}
    for name, (job, _) in project.jobs().items():
        for ref in job.outputs():
            found.setdefault(ref, []).append(name)
    applied = {name for name, (job, _) in project.jobs().items() if _on_apply(job)}
    return {ref: tuple([each for each in names if each in applied] or names) for ref, names in found.items()}


def _upstream(project: Project, producers: dict[Ref, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Each job and those that must have succeeded before: whose outputs it reads, and whom it names."""
    jobs = project.jobs()
    found = {}
    for name, (definition, _) in jobs.items():
        unknown = sorted(set(_needs(definition)) - set(jobs))
        if unknown:
            raise DefinitionInvalid(
                f"{name!r} needs {', '.join(unknown)}, which the project does not define",
                hint=f"it has: {', '.join(sorted(jobs))}",
            )
        reads = [maker for ref in project.inputs(definition) for maker in producers.get(ref, ())]
        found[name] = tuple(dict.fromkeys([*reads, *_needs(definition)]))
    return found


def _needs(definition: Definition) -> tuple[str, ...]:
    return definition.needs if isinstance(definition, Runnable) else ()


def _job_step(
    project: Project,
    held: Held,
    definition: Definition,
    fingerprint: str,
    upstream: tuple[str, ...],
    steps: dict[str, Step],
) -> Step:
    name = definition.name
    working = (Action.RUN, Action.FOLLOW)
    needs = tuple(other for other in upstream if steps[other].action in working)
    base: dict[str, Any] = {
        "name": name,
        "kind": definition.kind,
        "needs": needs,
        "produces": tuple(str(ref) for ref in definition.outputs()),
    }
    active = held.active.get(name)
    reason = _why_stale(project, held, definition, fingerprint, needs)
    if reason is None:
        run = held.succeeded[name]
        made = ", ".join(f"{version.name}@{version.version}" for version in run.outputs)
        return Step(**base, action=Action.KEEP, because=f"made by run {run.id}: {made}", run=run.id)
    would_run_anew = any(steps[other].action is Action.RUN for other in needs)
    if active and active.fingerprint == fingerprint and not active.params and not would_run_anew:
        return Step(**base, action=Action.FOLLOW, because=f"run {active.id} is {active.state}", run=active.id)
    return Step(**base, action=Action.RUN, because=reason)


def _why_stale(
    project: Project, held: Held, definition: Definition, fingerprint: str, needs: tuple[str, ...]
) -> str | None:
    name = definition.name
    success, last = held.succeeded.get(name), held.last.get(name)
    if success is None or success.params:
        if last is not None and last.state is State.FAILED:
            return (
                f"run {last.id} failed: {last.message.splitlines()[0] if last.message else last.end_reason}"
            )
        return "never run" if success is None else f"run {success.id} had other parameters"
    if success.fingerprint != fingerprint:
        return "its definition or code has changed"
    if needs:
        return f"{', '.join(needs)} will be new"
    read = {version.ref: version.version for version in success.inputs}
    for ref in project.inputs(definition):
        if ref.kind == "source":
            # Of one that cannot be looked at cheaply nothing is known: who wants what is new, runs it.
            if name in project.sources and read.get(ref) != project.sources[name]:
                return "its source has changed"
        elif (head := held.heads.get(ref)) is not None and read.get(ref, head.version) != head.version:
            return f"{ref} is now at {head.version}; it read {read[ref]}"
    for ref in definition.outputs():
        if ref.kind == "model":
            continue  # it keeps its versions: one that another training makes takes none away
        head = held.heads.get(ref)
        if head is None or head.version not in {v.version for v in success.outputs if v.ref == ref}:
            return f"{ref} is not what its run {success.id} made"
    return None


def _endpoint_steps(
    project: Project, held: Held, producers: dict[Ref, tuple[str, ...]], steps: dict[str, Step]
) -> list[Step]:
    found = []
    for name, (endpoint, fingerprint) in project.endpoints().items():
        makers = dict.fromkeys(maker for ref in endpoint.inputs() for maker in producers.get(ref, ()))
        working = (Action.RUN, Action.FOLLOW)
        needs = tuple(name for name in makers if name in steps and steps[name].action in working)
        row = held.endpoints.get(name)
        base: dict[str, Any] = {"name": name, "kind": endpoint.kind, "needs": needs, "produces": ()}
        if row is None:
            found.append(Step(**base, action=Action.DEPLOY, because="not up"))
        elif row.fingerprint != fingerprint:
            found.append(Step(**base, action=Action.DEPLOY, because="its definition has changed"))
        elif row.state != "READY":
            found.append(Step(**base, action=Action.DEPLOY, because=row.message or f"it is {row.state}"))
        elif needs:
            found.append(Step(**base, action=Action.DEPLOY, because=f"{', '.join(needs)} will be new"))
        else:
            because = f"serves {endpoint.serves}@{row.served.get('version', '?')}"
            found.append(Step(**base, action=Action.KEEP, because=because))
    for name in sorted(set(held.endpoints) - set(project.endpoints())):
        because = "the project no longer defines it"
        found.append(
            Step(
                name=name, kind=held.endpoints[name].definition["kind"], action=Action.REMOVE, because=because
            )
        )
    return found


def _ordered(upstream: dict[str, tuple[str, ...]]) -> list[str]:
    try:
        return list(TopologicalSorter(upstream).static_order())
    except CycleError as error:
        raise DefinitionInvalid(f"these need one another: {' → '.join(error.args[1])}") from None


def _closure(names: set[str], upstream: dict[str, tuple[str, ...]]) -> set[str]:
    unknown = sorted(names - set(upstream))
    if unknown:
        raise NotFound(
            f"the project has no job {', '.join(unknown)}", hint=f"it has: {', '.join(sorted(upstream))}"
        )
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += upstream[name]
    return found


def _downstream(
    name: str,
    upstream: dict[str, tuple[str, ...]],
    project: Project,
    producers: dict[Ref, tuple[str, ...]],
) -> tuple[str, ...]:
    found: dict[str, None] = {}
    todo = [name]
    while todo:
        here = todo.pop(0)
        todo += [other for other, needs in upstream.items() if here in needs and other not in found]
        found[here] = None
    if name == FeatureRepo().name:
        jobs = project.jobs()
        for other in list(found):
            found |= {f"model {ref.name}": None for ref in jobs[other][0].outputs() if ref.kind == "model"}
    for endpoint, _ in project.endpoints().values():
        if any(maker in found for ref in endpoint.inputs() for maker in producers.get(ref, ())):
            found[f"endpoint {endpoint.name}"] = None
    return tuple(other for other in found if other != name)
