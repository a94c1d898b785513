"""Definitions that produce datasets: ingests and feature tables, and the contracts they are held to."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from manta.definitions.base import FunctionPath, Name, Ref
from manta.definitions.contracts import Check, Column, Contract
from manta.definitions.jobs import Runnable
from manta.definitions.sources import AnySource, Source

__all__ = ["Check", "Column", "Contract", "FeatureTable", "Ingest"]

Mode = Literal["replace", "append", "upsert"]


class Ingest(Runnable):
    """Reads a source into a dataset, refusing the rows that break the contract.

    Each run makes at most one version, in one commit. Its name is the dataset's, unless given.

    Attributes:
        source: where the rows are; see :mod:`manta.connectors`.
        mode: ``replace`` makes what is read the dataset's whole content; ``append`` adds it; ``upsert`` adds
            it in place of the rows that have the same key. Not given: ``replace``, or for a source that reads
            on where it stopped, ``upsert`` where the contract has a key and ``append`` where it has none.
        evolve: what a contract may change in a dataset that has versions. ``add``: columns that may be null
            are added; ``refuse``: nothing; ``any``, with mode ``replace`` only: everything.
    """

    kind: ClassVar[str] = "ingest"
    dataset: Name
    source: AnySource
    contract: Contract
    mode: Mode = "replace"
    evolve: Literal["add", "refuse", "any"] = "add"

    def __init__(self, **fields: Any) -> None:
        named: dict[str, Any] = {"name": fields.get("dataset")}
        super().__init__(**(named | fields))

    @model_validator(mode="before")
    @classmethod
    def _choose_mode(cls, fields: Any) -> Any:
        source, contract = fields.get("source"), fields.get("contract")
        if "mode" in fields or not isinstance(source, Source) or not source.incremental:
            return fields
        keyed = isinstance(contract, Contract) and contract.key
        return {**fields, "mode": "upsert" if keyed else "append"}

    @model_validator(mode="after")
    def _mode_fits(self) -> Ingest:
        if self.mode == "replace" and self.source.incremental:
            raise ValueError("the source gives only what is new, so mode='replace' would lose what was there")
        if self.mode != "upsert" and self.source.overlaps:
            raise ValueError("the source gives some rows again: that takes mode='upsert', and a key")
        if self.mode == "upsert":
            if not self.contract.key:
                raise ValueError("mode='upsert' needs the contract's key: it says which row is replaced")
            empty = [name for name in self.contract.key if self.contract.columns[name].nullable]
            if empty:
                raise ValueError(f"mode='upsert' finds rows by their key: {', '.join(empty)} may not be null")
        if self.evolve == "any" and self.mode != "replace":
            raise ValueError("evolve='any' goes with mode='replace': rows that are kept have the old types")
        return self

    def inputs(self) -> tuple[Ref, ...]:
        read = self.source.datasets()
        return tuple(Ref("dataset", name) for name in read) or (Ref("source", self.name),)

    def outputs(self) -> tuple[Ref, ...]:
        return (Ref("dataset", self.dataset),)

    def code(self) -> tuple[str, ...]:
        return (*self.source.code(), *self.contract.code())


class FeatureTable(Runnable):
    """Computes a dataset from others.

    ``fn(inputs: dict[str, polars.DataFrame]) -> polars.DataFrame`` gets the inputs by dataset name. With
    ``partition_by`` it is called once per partition, in parallel Ray tasks: each call sees all rows of the
    inputs whose values in those columns hash to its partition (inputs without the columns are seen whole).

    Attributes:
        dataset: the dataset it produces; the definition's name, unless given.
        inputs_from: names of the datasets it reads.
        key: columns that name the thing a row is about; null in none of them.
        time: the column, UTC, that says from when on a row is known; null in no row. None for facts
            without a time.
        partition_by: columns of the key.
        partitions: how many Ray tasks; 0 lets manta choose.
    """

    kind: ClassVar[str] = "feature-table"
    dataset: Name
    inputs_from: tuple[Name, ...]
    fn: FunctionPath
    key: tuple[str, ...]
    time: str | None = None
    partition_by: tuple[str, ...] = ()
    partitions: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _partitions_by_its_key(self) -> FeatureTable:
        foreign = [name for name in self.partition_by if name not in self.key]
        if foreign:
            raise ValueError(f"partition_by must be columns of the key, and {', '.join(foreign)} is none")
        return self

    def __init__(self, **fields: Any) -> None:
        named: dict[str, Any] = {"name": fields.get("dataset")}
        super().__init__(**(named | fields))

    def inputs(self) -> tuple[Ref, ...]:
        return tuple(Ref("dataset", name) for name in self.inputs_from)

    def outputs(self) -> tuple[Ref, ...]:
        return (Ref("dataset", self.dataset),)

    def code(self) -> tuple[str, ...]:
        return (self.fn,)
