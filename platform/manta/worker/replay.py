"""The worker's part in a replay: its datasets are made beside those of the first run, and compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from manta.data.lake import Lake
from manta.definitions import Definition, FeatureTable, Ingest
from manta.ledger.comparison import METRIC, Compared
from manta.ledger.context import RunContext
from manta.ledger.runs import Version
from manta.models.package import CARD

SUFFIX = "__replay"
NAME_LENGTH = 63
SEEDS = (11, 13)  # two sums of 64 bits: equal by chance for no two tables that anybody has
METRIC_TOLERANCE = 0.01  # of metrics above 1, as a share of them


def repeat(execute: Callable[[RunContext], None], context: RunContext) -> None:
    """Execute a replay, and measure as ``comparison`` whether it made the same."""
    context.definition = aside(context.definition)
    execute(context)
    compare(context)


def aside(definition: Definition) -> Definition:
    """The definition, with its dataset under another name: the lake's newest version stays what it is."""
    if isinstance(definition, Ingest | FeatureTable):
        return definition.replace(dataset=_aside(definition.dataset))
    return definition


def _aside(dataset: str) -> str:
    return dataset[: NAME_LENGTH - len(SUFFIX)] + SUFFIX


def compare(context: RunContext) -> None:
    """Measure, as ``comparison``, whether each output of the first run was made again."""
    assert context.run.replay_of is not None
    lake = Lake(context.settings.datasets)
    made = {(version.kind, version.name): version for version in context.outputs}
    compared = []
    for then in context.ledger.run(context.run.replay_of).outputs:
        name = _aside(then.name) if (then.kind, _aside(then.name)) in made else then.name
        compared.append(_compared(lake, then, made.get((then.kind, name))))
        print(f"manta: {_told(compared[-1])}", flush=True)
    context.measured(**{METRIC: [each.model_dump() for each in compared]})


def _told(each: Compared) -> str:
    what = "is equal" if each.equal else "DIFFERS"
    return f"{each.output} {what} by {each.by}{f': {each.detail}' if each.detail else ''}"


def _compared(lake: Lake, then: Version, now: Version | None) -> Compared:
    base: dict[str, Any] = {"output": str(then.ref), "version": then.version}
    if now is None:
        return Compared(**base, repeated=None, equal=False, by="version", detail="the replay did not make it")
    base["repeated"] = f"{now.name}@{now.version}"
    if then.kind == "dataset" and lake.version(then.name) is not None and lake.version(now.name) is not None:
        detail = differ(lake.scan(then.name, then.version), lake.scan(now.name, now.version))
        return Compared(**base, equal=not detail, by="content", detail=detail)
    if then.kind == "model":
        return _models(base, then, now)
    equal = (then.version, then.detail) == (now.version, now.detail)
    return Compared(**base, equal=equal, by="version", detail="" if equal else f"{then} and {now}")


def differ(one: pl.LazyFrame, other: pl.LazyFrame) -> str:
    """How two tables differ, whatever the order of their rows; empty when they do not."""
    schemas = one.collect_schema(), other.collect_schema()
    if schemas[0] != schemas[1]:
        names = [
            name for name in {**schemas[0], **schemas[1]} if schemas[0].get(name) != schemas[1].get(name)
        ]
        return f"columns {', '.join(names)}" if names else "the order of columns"
    if _sums(one) == _sums(other):
        return ""
    ours, theirs = (_counted(each) for each in (one, other))
    both = ours.join(theirs, on="row", how="full", coalesce=True).fill_null(0)
    gone = both.select(
        (pl.col("n").cast(pl.Int64) - pl.col("n_right").cast(pl.Int64)).clip(lower_bound=0).sum()
    )
    new = both.select(
        (pl.col("n_right").cast(pl.Int64) - pl.col("n").cast(pl.Int64)).clip(lower_bound=0).sum()
    )
    return f"{gone.item():,} rows are gone, {new.item():,} are new"


def _row(seed: int) -> pl.Expr:
    return pl.struct(pl.all()).hash(seed=seed)


def _sums(rows: pl.LazyFrame) -> tuple[Any, ...]:
    sums = [_row(seed).sum().alias(str(seed)) for seed in SEEDS]
    return rows.select(pl.len().alias("rows"), *sums).collect().row(0)


def _counted(rows: pl.LazyFrame) -> pl.DataFrame:
    return rows.select(row=_row(SEEDS[0])).collect().group_by("row").agg(n=pl.len())


def _models(base: dict[str, Any], then: Version, now: Version) -> Compared:
    files = _files(then), _files(now)
    if files[0] is not None and files[0] == files[1]:
        return Compared(**base, equal=True, by="digest")
    metrics = then.detail.get("metrics", {}), now.detail.get("metrics", {})
    apart = {
        name: _apart(metrics[0].get(name, float("inf")), metrics[1].get(name, float("inf")))
        for name in {**metrics[0], **metrics[1]}
    }
    if not apart:
        return Compared(**base, equal=False, by="digest", detail="the files differ, and there are no metrics")
    worst = max(apart, key=lambda name: apart[name])
    # Written so that not-a-number is not within it.
    within = all(value <= METRIC_TOLERANCE for value in apart.values())
    told = f"the files differ; {worst} by {apart[worst]:.2g}, {METRIC_TOLERANCE:g} is allowed"
    return Compared(**base, equal=within, by="metrics", detail=told)


def _apart(one: float, other: float) -> float:
    # An error is in what the label is measured in, and may be any number.
    return abs(one - other) / max(1.0, abs(one))


def _files(version: Version) -> dict[str, str] | None:
    """Name → SHA-256 of what the package holds, apart from the card, which names its run."""
    try:
        card = json.loads((Path(version.detail["location"]) / CARD).read_text())
    except (OSError, KeyError, ValueError):
        return None
    return dict(card["files"])
