"""Definitions of what stays up: endpoints that predict, and doors to look features up."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from manta.definitions.base import Definition, Name, Ref
from manta.definitions.features import CATALOG


class StaysUp(Definition):
    """Answers over HTTP until the project no longer defines it.

    Attributes:
        replicas: how many processes answer.
        cpus_per_replica: logical CPUs each holds.
    """

    replicas: int = Field(default=1, ge=1)
    cpus_per_replica: float = Field(default=0.5, ge=0)

    @property
    def serves(self) -> str:
        """What a version of is served."""
        raise NotImplementedError


class Endpoint(StaysUp):
    """Answers predictions of a model's alias over HTTP, by keys or by full feature rows.

    Attributes:
        model: the registered model's name; the definition's name, unless given.
        alias: the alias it follows; when the alias moves, the replicas swap in place.
        features: the feature service looked up online; the one the model was trained with.
        max_rows: the most rows one request may carry.
        threshold: of a binary model, probabilities at or above it answer ``true``.
    """

    kind: ClassVar[str] = "endpoint"
    model: Name
    alias: Name = "champion"
    features: str
    max_rows: int = Field(default=10_000, ge=1)
    threshold: float = Field(default=0.5, ge=0, le=1)

    def __init__(self, **fields: Any) -> None:
        named: dict[str, Any] = {"name": fields.get("model"), **fields}
        super().__init__(**named)

    def inputs(self) -> tuple[Ref, ...]:
        return (Ref("model", self.model), Ref("online", self.features))

    @property
    def serves(self) -> str:
        return self.model


class Lookup(StaysUp):
    """Answers feature look-ups, and takes pushed rows, over HTTP in the form of Feast's feature server: a
    Feast SDK with ``online_store: {type: remote, path: <its address>}`` works against it.

    Every request shows a key: to read needs the role viewer in the project, to write needs developer.

    Attributes:
        features: the feature services that are asked for by name; lists of ``view:feature`` may name any
            view of the project.
        max_rows: the most rows that one request may ask for, or push.
    """

    kind: ClassVar[str] = "lookup"
    name: Name = "lookup"
    features: tuple[str, ...] = ()
    max_rows: int = Field(default=10_000, ge=1)

    def inputs(self) -> tuple[Ref, ...]:
        return (CATALOG, *(Ref("features", service) for service in self.features))

    @property
    def serves(self) -> str:
        return "features"
