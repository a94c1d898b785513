"""How raw feature values become the two arrays that a model computes with.

The same encoding is applied in three places: to the training rows (`manta.training.encoder`), inside the
ONNX graph that answers requests (`manta.models.graph`), and in the tests that hold the two together.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Self

TEXT_TYPES = ("string", "int64", "bool")
"""What a category may be before it is written as text; anything else is a number, "float32", or that many of
them, "float32[64]"."""

_VECTOR = re.compile(r"float32\[([1-9][0-9]*)\]")


def vector_length(kind: str) -> int | None:
    """64 of "float32[64]"; None of what is no vector."""
    found = _VECTOR.fullmatch(kind)
    return int(found[1]) if found else None


@dataclass(frozen=True)
class Encoding:
    """Fitted once, on the training rows only.

    A category is looked up as text; index 0 stands for missing (null or "") and for every value that is not
    in its vocabulary. A number is missing when it is null, NaN or infinite; otherwise it is standardised in
    float32 arithmetic, so that every place computes the same bits. A vector is as many numbers as it is long,
    each standardised by itself; where it is null, all of them are missing.

    The numbers of a row are the values, those of vectors behind the others, and then a flag for each feature
    in the same order: of a number 1 where it is missing, of a vector the share of its elements that are. What
    is missing has the value 0.

    Attributes:
        vocabularies: per categorical feature, its values in the order of their indices, from index 1 on.
        moments: per numeric feature, (mean, standard deviation); the deviation is never 0.
        types: per categorical feature what it is before it becomes text: one of :data:`TEXT_TYPES`.
        vectors: per feature that is a vector, (means, standard deviations) of its elements.
    """

    vocabularies: dict[str, tuple[str, ...]]
    moments: dict[str, tuple[float, float]]
    types: dict[str, str]
    vectors: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, str]:
        """Feature → "string", "int64" or "bool" for categories, "float32" for numbers, "float32[64]" for
        vectors of 64; in order."""
        return (
            {name: self.types[name] for name in self.vocabularies}
            | dict.fromkeys(self.moments, "float32")
            | {name: f"float32[{length}]" for name, length in self.lengths.items()}
        )

    @property
    def lengths(self) -> dict[str, int]:
        """How long each vector is."""
        return {name: len(means) for name, (means, _) in self.vectors.items()}

    @property
    def shape(self) -> dict[str, Any]:
        """What a module is built with: ``categories``, the sizes of the vocabularies in order (index 0
        counted), and ``numbers``, the width of the numeric input (values, then flags). Where there are
        vectors, ``vectors`` says where each begins in it, and how long it is."""
        at, places = len(self.moments), {}
        for name, length in self.lengths.items():
            places[name] = [at, length]
            at += length
        shape = {
            "categories": [len(values) + 1 for values in self.vocabularies.values()],
            "numbers": at + len(self.moments) + len(self.vectors),
        }
        return shape | ({"vectors": places} if places else {})

    def to_json(self) -> dict[str, Any]:
        told = asdict(self)
        return told if self.vectors else {name: told[name] for name in told if name != "vectors"}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(
            vocabularies={name: tuple(values) for name, values in value["vocabularies"].items()},
            moments={name: (mean, deviation) for name, (mean, deviation) in value["moments"].items()},
            types=dict(value["types"]),
            vectors={
                name: (tuple(means), tuple(deviations))
                for name, (means, deviations) in value.get("vectors", {}).items()
            },
        )
