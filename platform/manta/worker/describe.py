"""`python -m manta.worker.describe OUTPUT`: import the project in the working directory and write down what
it defines, as JSON. It runs in a process of its own, for it executes the project's code.
"""

from __future__ import annotations

import ast
import importlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from manta.definitions import Definition, Ingest, StaysUp, digest
from manta.definitions.base import import_failure
from manta.definitions.code import code_of, file_of
from manta.errors import DefinitionInvalid, MantaError
from manta.settings import Settings

FOLDERS = ("jobs", "serve")


def describe(root: Path, settings: Settings) -> dict[str, Any]:
    """The project's definitions with their fingerprints.

    Raises:
        DefinitionInvalid: a module cannot be imported, or two definitions share a name.
    """
    found: dict[tuple[bool, str], tuple[Definition, str]] = {}
    for module_name in _modules(root):
        module = _imported(module_name, root)
        elsewhere = _names_imported_by(module)
        for variable, value in vars(module).items():
            if not isinstance(value, Definition) or variable in elsewhere:
                continue
            where = f"{module_name}:{variable}"
            slot = (isinstance(value, StaysUp), value.name)
            held = found.setdefault(slot, (value, where))
            if held[0] is not value and held[0] != value:
                raise DefinitionInvalid(
                    f"{where} and {held[1]} are both named {value.name!r}", hint="give one another name="
                )
    definitions = [definition for definition, _ in found.values()]
    _require_checks(definitions)
    if (root / "features" / "feature_store.yaml").exists():
        from manta.features.repo import describe as describe_features

        features = describe_features(root, settings)
        if features is not None:
            definitions.append(features)
    where_of = {id(definition): where for definition, where in found.values()}
    return {
        "definitions": [
            {
                "definition": definition.to_json(),
                "fingerprint": digest([definition.fingerprinted(), _code(root, definition)]),
                "where": where_of.get(id(definition), "features/"),
            }
            for definition in definitions
        ]
    }


def _require_checks(definitions: Iterable[Definition]) -> None:
    """Raises:
    DefinitionInvalid: a check of a contract cannot be made.
    """
    for definition in definitions:
        if isinstance(definition, Ingest) and definition.contract.checks:
            from manta.data.checks import require

            require(definition.contract)


def _modules(root: Path) -> Iterator[str]:
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[-1] != "__init__":
                yield ".".join(parts)


def _names_imported_by(module: Any) -> set[str]:
    tree = ast.parse(Path(module.__file__).read_bytes())
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in froms for alias in node.names}


def _imported(name: str, root: Path) -> Any:
    try:
        return importlib.import_module(name)
    except MantaError:
        raise
    except Exception as error:
        raise import_failure(name, root, error) from error


def _code(root: Path, definition: Definition) -> dict[str, str]:
    """Hashes of the project's files that a run of it executes: its functions' modules and, transitively,
    what those import from the project."""
    modules = [file_of(root, path.partition(":")[0]) for path in definition.code()]
    return code_of(root, [path for path in modules if path is not None]).files


if __name__ == "__main__":
    project_root = Path.cwd()
    sys.path.insert(0, str(project_root))
    try:
        answer: dict[str, Any] = describe(project_root, Settings.load(project_root))
    except MantaError as problem:
        answer = {"problem": problem.problem()}
    Path(sys.argv[1]).write_text(json.dumps(answer))
