"""`python -m manta.worker.features`: what is online, looked at from outside of any run.

Reads from standard input a JSON object: ``what`` is to be done ("get", "freshness" or "parity"), the
``service`` and the path of its ``manifest``, what else that takes, and where to write, ``answer`` or else
``problem``. Changes nothing else.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from manta.data.lake import Lake
from manta.errors import InvalidInput, MantaError
from manta.features.compiled import Service, read_manifest, service_of
from manta.settings import Settings


def get(manifest: dict[str, Any], service: Service, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each row its ``values``, and by view ``status`` and ``fresh_as_of``. A key or request field that a
    row does not give is unknown; text is taken for what the field holds.

    Raises:
        InvalidInput: a field that the service does not know, or text that is no value of it.
    """
    from manta.features.online import OnlineReader

    kinds = service.join_keys | service.request
    rows = asked["rows"]
    unknown = sorted({name for row in rows for name in row} - set(kinds))
    if unknown:
        raise InvalidInput(
            f"{service.name} does not take {', '.join(unknown)}", hint=f"it takes: {', '.join(kinds)}"
        )
    columns = {name: [_value(name, kind, row.get(name)) for row in rows] for name, kind in kinds.items()}
    at = datetime.fromisoformat(asked["at"]) if asked.get("at") else datetime.now(UTC)
    found = OnlineReader(manifest, service.name).read(columns, [at] * len(rows))
    return [
        {
            "values": {name: values[row] for name, values in found.values.items()},
            "status": {view: str(states[row]) for view, states in found.status.items()},
            "fresh_as_of": {view: times[row] for view, times in found.fresh_as_of.items()},
        }
        for row in range(len(rows))
    ]


def _value(name: str, kind: str, given: Any) -> Any:
    try:
        if not isinstance(given, str) or kind == "string":
            return given
        if kind in ("int32", "int64"):
            return int(given)
        if kind in ("float32", "float64"):
            return float(given)
        if kind == "bool":
            return {"true": True, "false": False}[given.lower()]
        if kind == "timestamp":
            at = datetime.fromisoformat(given)
            return at if at.tzinfo else at.replace(tzinfo=UTC)
        return given.encode() if kind == "bytes" else json.loads(given)
    except (ValueError, KeyError):
        raise InvalidInput(f"{given!r} is no value of {name}", hint=f"it takes {kind}") from None


def answer(asked: dict[str, Any], settings: Settings, root: Path) -> Any:
    manifest = read_manifest(asked["manifest"])
    service = service_of(manifest, asked["service"])
    if asked["what"] == "get":
        return get(manifest, service, asked)
    if asked["what"] == "freshness":
        from manta.features.freshness import freshness

        lake = Lake(settings.datasets)
        versions = {name: lake.version(name) for name in {view.dataset for view in service.views}}
        known = {name: version for name, version in versions.items() if version is not None}
        return freshness(service, lake, known, datetime.now(UTC))
    from manta.features.parity import check

    until = datetime.fromisoformat(asked["until"])
    read = asked["datasets"]
    found = check(
        manifest,
        service.name,
        settings.datasets,
        read,
        until,
        root=root,
        keys=asked["keys"],
        seed=asked["seed"],
    )
    return found.model_dump(mode="json")


def main(asked: dict[str, Any]) -> None:
    root = Path.cwd()
    sys.path.insert(0, str(root))
    try:
        found = answer(asked, Settings.load(root), root)
        Path(asked["answer"]).write_text(json.dumps(found, default=_plain))
    except MantaError as error:
        Path(asked["problem"]).write_text(json.dumps(error.problem()))


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else repr(value)


if __name__ == "__main__":
    main(json.load(sys.stdin))
