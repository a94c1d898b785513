"""How raw feature values become the two arrays that a model computes with.

The same encoding is applied in three places: to the training rows (`manta.training.encoder`), inside the
ONNX graph that answers requests (`manta.models.graph`), and in the tests that hold the two together.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

TEXT_TYPES = ("string", "int64", "bool")
"""What a category may be before it is written as text; anything else is a number, "float32"."""


@dataclass(frozen=True)
class Encoding:
    """Fitted once, on the training rows only.

    A category is looked up as text; index 0 stands for missing (null or "") and for every value that is not
    in its vocabulary. A number is missing when it is null, NaN or infinite; otherwise it is standardised in
    float32 arithmetic, so that every place computes the same bits.

    Attributes:
        vocabularies: per categorical feature, its values in the order of their indices, from index 1 on.
        moments: per numeric feature, (mean, standard deviation); the deviation is never 0.
        types: per categorical feature what it is before it becomes text: one of :data:`TEXT_TYPES`.
    """

    vocabularies: dict[str, tuple[str, ...]]
    moments: dict[str, tuple[float, float]]
    types: dict[str, str]

    @property
    def inputs(self) -> dict[str, str]:
        """Feature → "string", "int64" or "bool" for categories, "float32" for numbers; in order."""
        return {name: self.types[name] for name in self.vocabularies} | dict.fromkeys(self.moments, "float32")

    @property
    def shape(self) -> dict[str, Any]:
        """What a module is built with: ``categories``, the sizes of the vocabularies in order (index 0
        counted), and ``numbers``, the width of the numeric input (values, then flags)."""
        return {
            "categories": [len(values) + 1 for values in self.vocabularies.values()],
            "numbers": 2 * len(self.moments),
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(
            vocabularies={name: tuple(values) for name, values in value["vocabularies"].items()},
            moments={name: (mean, deviation) for name, (mean, deviation) in value["moments"].items()},
            types=dict(value["types"]),
        )
