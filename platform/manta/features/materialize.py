"""Materialization: the newest values of a service's views, from the lake into the online store.

For each view, in one transaction, the store is made to hold what the dataset holds: the newest row of every
key, by the order of the as-of join. Readers see the values of before until the transaction commits, and all
of the new ones from then on. A key that the dataset no longer has is removed, as a training set would not
find it either; so is a value later than the newest, if the row that brought it is gone. Of a view that is
also pushed to, nothing is removed and nothing newer is overwritten.

What the service does not use of a view is not written. Feast's own record of materialized intervals is left
alone: the ledger knows which versions are online.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime

from manta.data.lake import Lake
from manta.definitions import digest
from manta.errors import SkewFound
from manta.features import asof
from manta.features.compiled import Service, read_manifest, service_of
from manta.features.historical import side_of
from manta.features.stores import open_store_of
from manta.ledger.context import RunContext


def execute(context: RunContext) -> None:
    """Materialize the newest version of a feature service from the newest versions of its datasets.

    A failure leaves each view as it was before or as it is to be; running it again completes it.

    Raises:
        NotFound: the service has not been applied, or a dataset has no version.
        FeaturesUnavailable: the store cannot be written, or holds another count than was written.
        DefinitionInvalid: a dataset does not hold what a view declares.
        SkewFound: the store has been written, and readers get other values than the as-of join gives.
    """
    name = context.definition.features
    applied = context.read("features", name)
    path = applied.detail["manifest"]
    service = service_of(read_manifest(path), name)
    datasets = dict.fromkeys(view.dataset for view in service.views)
    versions = {dataset: int(context.read("dataset", dataset).version) for dataset in datasets}
    context.progress(0, len(service.views), "views")
    until = datetime.now(UTC)
    rows = materialize(service, context.settings.datasets, versions, until, told=context.progress)
    if context.definition.parity:
        _check_parity(context, name, path, versions, until)
    version = digest([applied.version, versions])
    context.produced(
        "online",
        name,
        version,
        manifest=path,
        rows=sum(rows.values()),
        views=rows,
        datasets=versions,
        until=until.isoformat(),
    )
    context.measured(keys=rows)


def _check_parity(
    context: RunContext, name: str, path: str, versions: Mapping[str, int], until: datetime
) -> None:
    """Raises:
    SkewFound: what is online now is not what the as-of join gives.
    """
    from manta.features.parity import check

    found = check(
        read_manifest(path),
        name,
        context.settings.datasets,
        versions,
        until,
        root=context.root,
        keys=context.definition.parity,
    )
    print("\n".join(f"manta: {line}" for line in found.lines()), flush=True)
    context.measured(online_parity=found.model_dump(mode="json"))
    if not found.clean:
        raise SkewFound(found.summary(), hint=found.hint())


def materialize(
    service: Service,
    lake: str,
    versions: Mapping[str, int],
    until: datetime | None = None,
    told: Callable[[float, float, str], None] | None = None,
) -> dict[str, int]:
    """Make the service's views hold what those versions of the datasets hold up to ``until`` (now, unless
    given); gives the number of keys of each view.

    Raises:
        NotFound, FeaturesUnavailable, DefinitionInvalid: as :func:`execute`.
    """
    end = round((until or datetime.now(UTC)).timestamp() * 1e6)
    counts: dict[str, int] = {}
    with closing(open_store_of(service.store)) as store:
        for view in [view.whole for view in service.views]:
            began = time.monotonic()
            side = side_of(view, Lake(lake).scan(view.dataset, versions[view.dataset]))
            newest = asof.newest(side, end)
            counts[view.name] = store.write(view, newest, whole=True)
            if told:
                told(len(counts), len(service.views), "views")
            took = time.monotonic() - began
            print(f"manta: {view.name}: {counts[view.name]} keys online in {took:.2f} s", flush=True)
    return counts
