"""Lineage: what something was made from, and what was made from it.

The graph has versions (``dataset:flights@2``), runs (``run:17``), promotions (``promotion:3``, a move of an
alias) and endpoints (``endpoint:delay``); an edge goes from what was there before to what came of it. It is
grown from rows, level by level: each level is a few queries by index, whatever the length of the history.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, and_, func, or_, select

from manta.definitions import Ref
from manta.definitions.features import CATALOG
from manta.errors import InvalidInput, NotFound
from manta.ledger import tables as t
from manta.ledger.database import Database
from manta.ledger.records import Direction, Edge, Lineage, Node
from manta.ledger.runs import State

DEPTH = 40  # levels, of which a chain from source to endpoint takes about twelve
SIZE = 400  # nodes
BATCH = 100  # versions, runs or promotions asked for at once

VERSION_KINDS = ("source", "dataset", "features", "online", "model")
TARGET = re.compile(rf"(?:(run|endpoint):)?([a-z0-9_-]+)|({'|'.join(VERSION_KINDS)}):([^@\s]+)(?:@(\S+))?")


def grow(
    start: str,
    neighbours: Callable[[Collection[str]], Iterable[Edge]],
    *,
    up: bool,
    depth: int,
    size: int,
) -> tuple[dict[str, None], list[Edge], bool]:
    """Breadth first from ``start``: the nodes found, in that order, the edges between them, and whether some
    were left out. ``neighbours`` gives the edges one step on from those nodes. A node is visited once, so
    that even a circle, which cannot be, would end."""
    found = {start: None}
    edges: dict[Edge, None] = {}
    frontier = [start]
    truncated = False
    for _ in range(depth):
        if not frontier:
            break
        following: list[str] = []
        for edge in neighbours(frontier):
            further = edge.source if up else edge.target
            if further not in found:
                if len(found) >= size:
                    truncated = True
                    continue
                found[further] = None
                following.append(further)
            edges[edge] = None
        frontier = following
    else:
        truncated = truncated or bool(frontier and list(neighbours(frontier)))
    return found, list(edges), truncated


class Histories:
    """The lineage in one ledger."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def lineage(
        self, project: str, of: str, direction: Direction = "both", *, depth: int = DEPTH, size: int = SIZE
    ) -> Lineage:
        """The lineage of ``run:17``, ``endpoint:delay``, ``dataset:flights@2`` (the newest without @…).

        Raises:
            InvalidInput: ``of`` names none of these.
            NotFound: the project has no such thing.
        """
        with self._db.read() as db:
            look = _Look(db, project, size)
            start = look.start(of)
            found: dict[str, None] = {start: None}
            edges: dict[Edge, None] = {}
            truncated = False
            for up in (True, False):
                if direction in ("both", "up" if up else "down"):
                    step = look.upward if up else look.downward
                    seen, between, cut = grow(start, step, up=up, depth=depth, size=size)
                    found |= seen
                    edges |= dict.fromkeys(between)
                    truncated |= cut
            return Lineage(
                of=start,
                direction=direction,
                nodes=tuple(look.nodes(found)),
                edges=tuple(edges),
                truncated=truncated or look.cut,
            )


class _Look:
    """The rows around some nodes, in one transaction."""

    def __init__(self, db: Connection, project: str, size: int) -> None:
        self._db = db
        self._project = project
        self._most = size + 1
        self._details: dict[str, dict[str, Any]] = {}
        self._promotions: dict[str, Any] = {}
        self.cut = False
        query = select(t.endpoints).where(t.endpoints.c.project == project)
        self._endpoints = [dict(row) for row in db.execute(query).mappings()]

    def start(self, of: str) -> str:
        match = TARGET.fullmatch(of.strip())
        if match is None or (match[1] != "endpoint" and match[2] and not match[2].isdecimal()):
            raise InvalidInput(
                f"{of!r} names nothing that has a lineage",
                hint="run:17, model:delay@3, dataset:flights@2, features:…, online:…, endpoint:delay",
            )
        kind, name, version_kind, version_name, version = match.groups()
        if kind == "endpoint":
            if name not in {row["name"] for row in self._endpoints}:
                raise NotFound(f"there is no endpoint {name!r}", hint="`manta status` lists them")
            return f"endpoint:{name}"
        if version_kind:
            return self._version(Ref(version_kind, version_name), version)
        where = and_(t.runs.c.id == int(name), t.runs.c.project == self._project)
        if int(name) > 2**31 - 1 or self._db.execute(select(t.runs.c.id).where(where)).first() is None:
            raise NotFound(f"there is no run {name}", hint="`manta runs` lists them")
        return f"run:{int(name)}"

    def _version(self, ref: Ref, version: str | None) -> str:
        c = t.versions.c
        query = (
            select(c.version, c.detail)
            .join(t.runs)
            .where(t.runs.c.project == self._project, c.kind == ref.kind, c.name == ref.name)
            .order_by(c.id.desc())
            .limit(1)
        )
        if version is not None:
            query = query.where(c.version == version)
        else:
            query = query.where(t.runs.c.state == State.SUCCEEDED, t.runs.c.replay_of.is_(None))
        row = self._db.execute(query).first()
        if row is None:
            wanted = f"{ref}@{version}" if version else str(ref)
            raise NotFound(f"no run has read or made {wanted}", hint="`manta runs` shows what runs made")
        node = f"{ref}@{row.version}"
        self._details.setdefault(node, row.detail)
        return node

    # --- one step on ----------------------------------------------------------------------------------

    def upward(self, ids: Collection[str]) -> Iterator[Edge]:
        yield from self._producers(ids)
        yield from self._of_runs(ids, "in")
        for node in ids:
            if node in self._promotions:
                row = self._promotions[node]
                yield Edge(f"model:{row['model']}@{row['version']}", node, "promoted")
            elif node.startswith("endpoint:"):
                yield from self._behind(node)

    def downward(self, ids: Collection[str]) -> Iterator[Edge]:
        yield from self._of_runs(ids, "out")
        yield from self._readers(ids)
        models = [node for node in ids if node.startswith("model:")]
        for promotion, row in self._promoted(models):
            yield Edge(f"model:{row['model']}@{row['version']}", promotion, "promoted")
        for endpoint in self._endpoints if any(_kind(node) in _BEHIND for node in ids) else ():
            name = f"endpoint:{endpoint['name']}"
            yield from (edge for edge in self._behind(name) if edge.source in ids)

    def _behind(self, node: str) -> Iterator[Edge]:
        """What an endpoint serves: the promotion that its alias came to the version by, and the features
        that are online."""
        row = next(each for each in self._endpoints if f"endpoint:{each['name']}" == node)
        definition, version = row["definition"], row["served"].get("version")
        if definition.get("kind") == "lookup":
            if version is not None:
                yield Edge(f"{CATALOG}@{version}", node, "serves")
            return
        if version is not None:
            model = f"model:{definition['model']}@{version}"
            moves = [
                promotion
                for promotion, made in self._promoted([model])
                if made["alias"] == definition.get("alias", "champion")
            ]
            yield Edge(moves[-1] if moves else model, node, "serves")
        try:
            yield Edge(self._version(Ref("online", definition["features"]), None), node, "serves")
        except NotFound:
            return  # nothing has been made ready online

    def _producers(self, ids: Collection[str]) -> Iterator[Edge]:
        # The first that made it: a version that is a digest can be made again.
        c = t.versions.c
        for wanted in _batches([node for node in ids if _kind(node) in VERSION_KINDS]):
            query = (
                select(c.kind, c.name, c.version, func.min(c.run_id).label("run_id"))
                .join(t.runs)
                .where(self._same(wanted), c.direction == "out", t.runs.c.project == self._project)
                .group_by(c.kind, c.name, c.version)
            )
            for row in self._db.execute(query).mappings():
                yield Edge(f"run:{row['run_id']}", _version_id(row), "made")

    def _readers(self, ids: Collection[str]) -> Iterator[Edge]:
        c = t.versions.c
        for wanted in _batches([node for node in ids if _kind(node) in VERSION_KINDS]):
            query = (
                select(c.kind, c.name, c.version, c.run_id)
                .join(t.runs)
                .where(self._same(wanted), c.direction == "in", t.runs.c.project == self._project)
                .order_by(c.run_id.desc())
                .limit(self._most)
            )
            rows = self._db.execute(query).mappings().all()
            self.cut |= len(rows) == self._most
            for row in reversed(rows):
                yield Edge(_version_id(row), f"run:{row['run_id']}", "read")

    def _of_runs(self, ids: Collection[str], direction: str) -> Iterator[Edge]:
        c = t.versions.c
        for wanted in _batches([int(node[4:]) for node in ids if node.startswith("run:")]):
            query = select(t.versions).where(c.run_id.in_(wanted), c.direction == direction).order_by(c.id)
            for row in self._db.execute(query).mappings():
                run, version = f"run:{row['run_id']}", _version_id(row)
                self._details.setdefault(version, row["detail"])
                yield Edge(version, run, "read") if direction == "in" else Edge(run, version, "made")

    def _promoted(self, models: Collection[str]) -> Iterator[tuple[str, Any]]:
        """``(promotion's id, row)`` of every move of an alias to those versions, oldest first."""
        c = t.promotions.c
        for wanted in _batches(list(models)):
            pairs = [and_(c.model == name, c.version == version) for _, name, version in map(_parts, wanted)]
            query = select(t.promotions).where(c.project == self._project, or_(*pairs)).order_by(c.id)
            for row in self._db.execute(query).mappings():
                node = f"promotion:{row['id']}"
                self._promotions[node] = row
                yield node, row

    def _same(self, wanted: Iterable[str]) -> Any:
        c = t.versions.c
        return or_(
            *(
                and_(c.kind == kind, c.name == name, c.version == version)
                for kind, name, version in map(_parts, wanted)
            )
        )

    # --- what there is to say of each -----------------------------------------------------------------

    def nodes(self, ids: Iterable[str]) -> Iterator[Node]:
        ids = list(ids)
        runs = self._runs([int(node[4:]) for node in ids if node.startswith("run:")])
        endpoints = {f"endpoint:{row['name']}": row for row in self._endpoints}
        for node in ids:
            kind = _kind(node)
            if kind == "run":
                detail = runs[node]
                yield Node(id=node, kind=kind, name=detail["job"], version=node[4:], detail=detail)
            elif kind == "promotion":
                row = self._promotions[node]
                detail = {"at": row["at"].isoformat(), "previous": row["previous"], "run": row["run_id"]}
                name = f"{row['model']}/{row['alias']}"
                yield Node(id=node, kind=kind, name=name, version=row["version"], detail=detail)
            elif kind == "endpoint":
                row = endpoints[node]
                version = str(row["served"].get("version") or "")
                yield Node(
                    id=node, kind=kind, name=row["name"], version=version, detail={"state": row["state"]}
                )
            else:
                _, name, version = _parts(node)
                detail = self._details.get(node, {})
                yield Node(id=node, kind=kind, name=name, version=version, detail=detail)

    def _runs(self, ids: list[int]) -> dict[str, dict[str, Any]]:
        c = t.runs.c
        found: dict[str, dict[str, Any]] = {}
        for wanted in _batches(ids):
            last = and_(t.attempts.c.run_id == c.id, t.attempts.c.number == c.attempt)
            query = (
                select(t.runs, t.attempts.c.environment)
                .join(t.attempts, last, isouter=True)
                .where(c.id.in_(wanted))
            )
            for row in self._db.execute(query).mappings():
                detail = {name: row[name] for name in ("job", "kind", "state", "package", "fingerprint")}
                detail |= {name: row[name] for name in ("params", "submitted_by") if row[name]}
                detail |= {"replay_of": row["replay_of"]} if row["replay_of"] else {}
                detail |= {"seed": row["definition"]["seed"]} if "seed" in row["definition"] else {}
                found[f"run:{row['id']}"] = detail | (row["environment"] or {})
        return found


_BEHIND = ("model", "online", "promotion")


def _kind(node: str) -> str:
    return node.partition(":")[0]


def _parts(node: str) -> tuple[str, str, str]:
    ref, _, version = node.partition("@")
    kind, _, name = ref.partition(":")
    return kind, name, version


def _version_id(row: Any) -> str:
    return f"{row['kind']}:{row['name']}@{row['version']}"


def _batches(values: list[Any]) -> Iterator[list[Any]]:
    return (values[at : at + BATCH] for at in range(0, len(values), BATCH))
