"""What all definitions share: frozen data with a name, a JSON form and a fingerprint."""

from __future__ import annotations

import hashlib
import importlib
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints, ValidationError

from manta import words
from manta.errors import DefinitionInvalid

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]


class Ref(NamedTuple):
    """Something with versions that runs read and produce.

    ``kind`` is one of ``source``, ``dataset``, ``features`` (a feature service as registered), ``online``
    (a feature service as materialized) and ``model``.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


def _to_path(value: Any) -> Any:
    if isinstance(value, str) or not callable(value):
        return value
    module, qualname = value.__module__, getattr(value, "__qualname__", "")
    if module == "__main__" or "<" in qualname or not qualname:
        raise ValueError(
            f"{qualname or value!r} of {module} cannot be imported by a worker: "
            "define it at the top level of a module of the project"
        )
    return f"{module}:{qualname}"


FunctionPath = Annotated[
    str, BeforeValidator(_to_path), StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
]
"""A function or class of the project, written as the object itself and kept as ``module:qualname``."""


def load_function(path: str) -> Callable[..., Any]:
    """Import what a :data:`FunctionPath` names.

    Raises:
        DefinitionInvalid: the module or the name in it is gone.
    """
    module, _, qualname = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise DefinitionInvalid(
            f"{path} cannot be imported: {error}", hint="run `manta plan` in the project to find what changed"
        ) from error
    return found  # type: ignore[no-any-return]


def import_failure(what: str, root: Path, error: Exception) -> DefinitionInvalid:
    """That ``what`` of the project in ``root`` failed to import: with the last of the project's own lines
    in the traceback."""
    own = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(root))
    ]
    place = f" at {Path(own[-1].filename).relative_to(root)}:{own[-1].lineno}" if own else ""
    return DefinitionInvalid(
        f"{what} cannot be imported: {type(error).__name__}: {error}{place}",
        hint="correct it and run `manta plan` again",
    )


class Frozen(BaseModel):
    """A piece of a definition: immutable, and strict about unknown fields."""

    # Built when first used: a worker uses one kind, and need not wait for all.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    def replace(self, **changes: Any) -> Self:
        """A validated copy with ``changes`` applied.

        Raises:
            DefinitionInvalid: the changed copy is not valid.
        """
        current = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**(current | changes))


class Definition(Frozen):
    """A noun of the project: an instance at module level, found by loading the folder.

    Attributes:
        name: unique among the project's jobs (or its endpoints).
    """

    kind: ClassVar[str]
    name: Name

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            lines = words.faults(error.errors(), "definition")
            name = fields.get("name", "?")
            raise DefinitionInvalid(f"{type(self).__name__} {name!r}: {lines}") from None

    def inputs(self) -> tuple[Ref, ...]:
        """What a run of it reads; a change of any makes the last run stale."""
        return ()

    def outputs(self) -> tuple[Ref, ...]:
        """What a run of it produces."""
        return ()

    def code(self) -> tuple[str, ...]:
        """The :data:`FunctionPath` of everything of the project that a run executes."""
        return ()

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.model_dump(mode="json")}

    def fingerprinted(self) -> dict[str, Any]:
        """The part of its JSON form whose change makes stale what it made."""
        return self.to_json()


def digest(value: Any) -> str:
    """A hash of any JSON value that does not depend on the order of its keys: 16 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
