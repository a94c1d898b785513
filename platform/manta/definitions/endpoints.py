"""Definitions of what stays up: endpoints."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from manta.definitions.base import Definition, Name, Ref


class Endpoint(Definition):
    """Answers predictions of a model's alias over HTTP, by keys or by full feature rows.

    Attributes:
        model: the registered model's name; the definition's name, unless given.
        alias: the alias it follows; when the alias moves, the replicas swap in place.
        features: the feature service looked up online; the one the model was trained with.
        replicas: how many processes answer.
        cpus_per_replica: logical CPUs each holds.
        max_rows: the most rows one request may carry.
        threshold: predictions at or above it answer ``true``.
    """

    kind: ClassVar[str] = "endpoint"
    model: Name
    alias: Name = "champion"
    features: str
    replicas: int = Field(default=1, ge=1)
    cpus_per_replica: float = Field(default=0.5, ge=0)
    max_rows: int = Field(default=10_000, ge=1)
    threshold: float = Field(default=0.5, ge=0, le=1)

    def __init__(self, **fields: object) -> None:
        super().__init__(**({"name": fields.get("model")} | fields))

    def inputs(self) -> tuple[Ref, ...]:
        return (Ref("model", self.model), Ref("online", self.features))
