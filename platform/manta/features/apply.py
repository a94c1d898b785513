"""Registering the project's Feast repository, and compiling its services into manifests."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feast import FeatureStore
from feast.diff.registry_diff import apply_diff_to_registry
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from manta.definitions import digest
from manta.definitions.features import CATALOG
from manta.errors import DefinitionInvalid
from manta.features.config import FOLDER
from manta.features.manifest import compile_catalog, compile_service, store_of
from manta.features.repo import Repo, open_store, parse
from manta.features.stores import open_store_of
from manta.ledger.context import RunContext
from manta.settings import Settings

REGISTRY_LOCK = 0x6D616E7461  # in a registry's database, held while it is changed


def execute(context: RunContext) -> None:
    """Make the registry hold exactly what the repository defines, and produce each feature service.

    A service's version is the digest of its manifest, so that it changes when, and only when, reading the
    service does. Doing it again changes nothing.

    Raises:
        SettingsInvalid, DefinitionInvalid: see `repo.py` and `manifest.py`; nothing has been registered.
    """
    repo = parse(context.root, context.settings)
    applied = register(repo, context.root, context.settings)
    for name, path in applied.manifests.items():
        context.produced("features", name, path.stem, manifest=str(path))
        print(f"manta: feature service {name}, manifest {path.stem}", flush=True)
    catalog, package = applied.catalog, context.run.package
    context.produced(*CATALOG, catalog.stem, catalog=str(catalog), package=package)


@dataclass(frozen=True)
class Applied:
    """Where what was compiled is: each service's manifest, and the catalog of all that is registered."""

    manifests: dict[str, Path]
    catalog: Path


def apply(repo: Repo, root: Path, settings: Settings) -> dict[str, Path]:
    """:func:`register`; gives each service's manifest."""
    return register(repo, root, settings).manifests


def register(repo: Repo, root: Path, settings: Settings) -> Applied:
    """Feast's own `apply` of a whole repository.

    Feast itself takes no lock, and two that apply at once would mix: here the second waits. What the
    repository no longer has is deleted from the registry. A deleted view's online table stays, since a model
    that was trained with it may be serving until the next is promoted.
    """
    with alone(settings.home / "features.lock", repo.config.registry.path):
        store = open_store(root, settings)
        _register(store, repo)
        services = [service.name for service in repo.contents.feature_services]
        compiled = {name: compile_service(store, name, repo.functions) for name in services}
        catalog = compile_catalog(store, repo.functions, compiled)
    folder = settings.home / "manifests"
    return Applied({name: keep(made, folder) for name, made in compiled.items()}, keep(catalog, folder))


def keep(manifest: dict[str, Any], folder: Path) -> Path:
    """Write a manifest under its digest, at once and for good; gives where it is."""
    path = folder / f"{digest(manifest)}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(manifest, indent=1))
        partial.replace(path)
    return path


def _register(store: FeatureStore, repo: Repo) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "On demand feature view is an experimental feature")
            difference, _, infra = store.plan(repo.contents)
    except Exception as error:
        raise DefinitionInvalid(
            f"Feast refuses the repository: {type(error).__name__}: {error}", hint=f"correct it in {FOLDER}/"
        ) from error
    apply_diff_to_registry(store.registry, difference, store.project, commit=False)
    _replace_changed_outputs(store, repo)
    store.provider.update_infra(
        project=store.project,
        tables_to_delete=[],
        tables_to_keep=repo.contents.feature_views,
        entities_to_delete=[],
        entities_to_keep=repo.contents.entities,
        partial=False,
    )
    store.registry.update_infra(infra, store.project, commit=True)
    store.refresh_registry()
    with closing(open_store_of(store_of(store.config))) as online:
        online.prepare()


def _replace_changed_outputs(store: FeatureStore, repo: Repo) -> None:
    """Feast takes two on-demand views for equal whatever features they give, and keeps the old one."""
    held = {view.name: view for view in store.registry.list_on_demand_feature_views(store.project)}
    for view in repo.contents.on_demand_feature_views:
        if view.name in held and held[view.name].features != view.features:
            store.registry.delete_feature_view(view.name, store.project, commit=False)
            store.registry.apply_feature_view(view, store.project, commit=False)


@contextmanager
def alone(path: Path, registry: str) -> Iterator[None]:
    """One process at a time: of those that share the state folder, and of those that share a registry in
    PostgreSQL. The lock is given back when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle, contextlib.ExitStack() as held:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if registry.startswith("postgresql"):
            engine = create_engine(registry, poolclass=NullPool, isolation_level="AUTOCOMMIT")
            connection = held.enter_context(engine.connect())
            connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": REGISTRY_LOCK})
        yield
