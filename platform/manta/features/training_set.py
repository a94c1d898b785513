"""Training sets: rows with the features of a service as they were known at each row's time."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from manta.data.lake import Lake
from manta.definitions import load_function
from manta.errors import InvalidInput
from manta.features.compiled import Service, service_of
from manta.features.historical import Retrieval, side_of
from manta.features.partitioned import limits_of
from manta.settings import Settings


def training_set(
    context_root: Path,
    settings: Settings,
    service: str,
    rows: pa.Table,
    time: str,
    versions: Mapping[str, int],
    manifest: dict[str, Any] | None = None,
) -> pa.Table:
    """Every one of ``rows``, once and in order, with the features of ``service`` as of the row's ``time``.

    The features follow the rows' own columns, under their plain names, in the service's order. What was
    written after a row's time is not seen by it, TTLs are obeyed, on-demand features are computed. A missing
    feature is null.

    Args:
        context_root: the project folder, from which the on-demand functions are imported.
        rows: has the join keys, the request-time fields, and ``time``.
        versions: the version to read of every dataset behind the service.
        manifest: the compiled service (`manta.features.compiled.read_manifest` of the path that a version of
            it names). Without it, what the Feast registry holds now is compiled, and Feast is imported.

    Raises:
        InvalidInput: ``rows`` or ``versions`` lack something, or a column has another type.
        NotFound: there is no such service, dataset or version.
        DefinitionInvalid: a dataset does not hold what a view declares, or an on-demand function fails.
    """
    if str(context_root) not in sys.path:
        sys.path.insert(0, str(context_root))
    described = service_of(manifest or _compiled(context_root, settings, service), service)
    lake = Lake(settings.datasets)
    _require_versions(described, versions)
    demands = [(view, load_function(view.function)) for view in described.on_demand]
    asked = list(dict.fromkeys([time, *described.join_keys, *described.request]))
    missing = [name for name in asked if name not in rows.column_names]
    if missing:
        raise InvalidInput(
            f"the rows have no column {', '.join(missing)}, which feature service {service!r} needs",
            hint=f"they have: {', '.join(rows.column_names)}",
        )
    retrieval = Retrieval(
        time=time,
        views=described.views,
        sides=[side_of(view, lake.scan(view.dataset, versions[view.dataset])) for view in described.views],
        on_demand=demands,
        names={feature: feature[1] for feature in described.features},
        hide_late=True,
    )
    return retrieval.table(rows, limits_of(lake))


def _require_versions(service: Service, versions: Mapping[str, int]) -> None:
    missing = sorted({view.dataset for view in service.views} - set(versions))
    if missing:
        raise InvalidInput(
            f"feature service {service.name!r} reads {', '.join(missing)}, of which no version is named",
            hint="name a version of each, so that the training set can be made again",
        )


def _compiled(root: Path, settings: Settings, service: str) -> dict[str, Any]:
    from manta.features.manifest import compile_service
    from manta.features.repo import open_store, parse

    functions = parse(root, settings).functions
    return compile_service(open_store(root, settings), service, functions)
