"""The project's own code that something executes, found by reading it: nothing is imported."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Code:
    """``files``: path in the project → hash of its content. ``packages``: the top-level names that these
    import, the project's own included."""

    files: dict[str, str]
    packages: frozenset[str]


def code_of(root: Path, start: Iterable[Path]) -> Code:
    """The files in ``start`` and, transitively, what they import from the project in ``root``. What lies
    outside of it is left out."""
    files: dict[str, str] = {}
    packages: set[str] = set()
    todo = list(start)
    while todo:
        path = todo.pop()
        if not path.is_relative_to(root) or str(path.relative_to(root)) in files:
            continue
        text = path.read_bytes()
        files[str(path.relative_to(root))] = hashlib.sha256(text).hexdigest()
        for name in _imports(ast.parse(text), path.relative_to(root).parent.parts):
            packages.add(name.partition(".")[0])
            found = file_of(root, name)
            if found is not None:
                todo.append(found)
    return Code(files, frozenset(packages))


def file_of(root: Path, module: str) -> Path | None:
    """The file of a module of the project; None when it is not one of its."""
    stem = root.joinpath(*module.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if module and path.is_file():
            return path
    return None


def _imports(tree: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    """The modules that a file of ``package`` may import: of `from a import b`, both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
