"""The plan: what would have to run for the platform to hold what a project defines. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from graphlib import CycleError, TopologicalSorter
from typing import Any

from pydantic import BaseModel, ConfigDict

from manta.definitions import Definition, Ref, Runnable
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


class Plan(BaseModel):
    """Steps in an order in which they can be done. ``touches`` lists, for each job that would run, what
    lies downstream of it."""

    model_config = ConfigDict(frozen=True)

    project: str
    steps: tuple[Step, ...]
    touches: dict[str, tuple[str, ...]] = {}

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

    ``only`` limits the plan to those jobs and what they depend on.

    Raises:
        DefinitionInvalid: definitions read each other's outputs, or need each other, in a circle; or one
            needs what the project does not define.
        NotFound: ``only`` names what the project does not define.
    """
    jobs = project.jobs()
    producer = {ref: name for name, (job, _) in jobs.items() for ref in job.outputs()}
    upstream = _upstream(project, producer)
    order = _ordered(upstream)
    if only is not None:
        order = [name for name in order if name in _closure(set(only), upstream)]
    steps: dict[str, Step] = {}
    for name in order:
        definition, fingerprint = jobs[name]
        steps[name] = _job_step(project, held, definition, fingerprint, upstream[name], steps)
    found = list(steps.values())
    if only is None:
        found += _endpoint_steps(project, held, producer, steps)
    touches = {
        step.name: _downstream(step.name, upstream, project, producer)
        for step in found
        if step.action is Action.RUN
    }
    return Plan(project=project.name, steps=tuple(found), touches=touches)


def needed(project: Project, held: Held, job: str) -> tuple[Step, ...]:
    """The steps of what ``job`` names in its ``needs``, and of what those name in theirs, in an order in
    which they can be done. What only the data depend on is not among them, and makes none of them stale.

    Raises:
        DefinitionInvalid: as :func:`plan`.
    """
    jobs = project.jobs()
    producer = {ref: name for name, (made, _) in jobs.items() for ref in made.outputs()}
    upstream = _upstream(project, producer)
    order = _ordered(upstream)
    among = _closure({job}, {name: _needs(definition) for name, (definition, _) in jobs.items()}) - {job}
    steps: dict[str, Step] = {}
    for name in order:
        if name in among:
            definition, fingerprint = jobs[name]
            before = tuple(other for other in upstream[name] if other in among)
            steps[name] = _job_step(project, held, definition, fingerprint, before, steps)
    return tuple(steps.values())


def _upstream(project: Project, producer: dict[Ref, str]) -> dict[str, tuple[str, ...]]:
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
        reads = [producer[ref] for ref in project.inputs(definition) if ref in producer]
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
        head = held.heads.get(ref)
        if head is None or head.version not in {v.version for v in success.outputs if v.ref == ref}:
            return f"{ref} is not what its run {success.id} made"
    return None


def _endpoint_steps(
    project: Project, held: Held, producer: dict[Ref, str], steps: dict[str, Step]
) -> list[Step]:
    found = []
    for name, (endpoint, fingerprint) in project.endpoints().items():
        needs = tuple(
            producer[ref]
            for ref in endpoint.inputs()
            if ref in producer and steps[producer[ref]].action in (Action.RUN, Action.FOLLOW)
        )
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
            because = f"serves {endpoint.model}@{row.served.get('version', '?')}"
            found.append(Step(**base, action=Action.KEEP, because=because))
    for name in sorted(set(held.endpoints) - set(project.endpoints())):
        because = "the project no longer defines it"
        found.append(Step(name=name, kind="endpoint", action=Action.REMOVE, because=because))
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
    name: str, upstream: dict[str, tuple[str, ...]], project: Project, producer: dict[Ref, str]
) -> tuple[str, ...]:
    found: dict[str, None] = {}
    todo = [name]
    while todo:
        here = todo.pop(0)
        todo += [other for other, needs in upstream.items() if here in needs and other not in found]
        found[here] = None
    for endpoint, _ in project.endpoints().values():
        if any(producer.get(ref) in found for ref in endpoint.inputs()):
            found[f"endpoint {endpoint.name}"] = None
    return tuple(other for other in found if other != name)
