"""The project's Feast repository, `features/`: parsing it, describing it, opening its store."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from feast import FeatureService, FeatureStore, FeatureView, OnDemandFeatureView, ValueType
from feast.errors import SpecifiedFeaturesNotPresentError
from feast.feature_view import DUMMY_ENTITY_NAME
from feast.project import Project
from feast.repo_config import RepoConfig
from feast.repo_contents import RepoContents
from feast.repo_operations import parse_repo
from google.protobuf.json_format import MessageToDict

from manta.definitions import FeatureRepo, ViewInfo, digest
from manta.definitions.base import import_failure
from manta.definitions.code import code_of
from manta.errors import DefinitionInvalid, MantaError
from manta.features.config import FILE, FOLDER, config_of
from manta.features.manifest import Functions, on_demand_of, type_name, view_of
from manta.features.source import DatasetSource
from manta.settings import Settings


@dataclass(frozen=True)
class Repo:
    """The repository as parsed: Feast's objects, and the functions of its on-demand views."""

    config: RepoConfig
    contents: RepoContents
    functions: Functions


def describe(root: Path, settings: Settings) -> FeatureRepo | None:
    """The repository as a definition; None when the project has none. Touches no registry.

    Raises:
        SettingsInvalid: feature_store.yaml asks for what would give wrong values.
        DefinitionInvalid: it cannot be imported, or holds what manta cannot serve.
    """
    if not (root / FILE).exists():
        return None
    repo = parse(root, settings)
    views = sorted((_info(view, repo) for view in _all_views(repo.contents)), key=lambda view: view.name)
    others = [*repo.contents.entities, *repo.contents.feature_services, *repo.contents.data_sources]
    fingerprint = digest(
        [
            [view.fingerprint for view in views],
            sorted(_fingerprint(thing) for thing in others),
            yaml.safe_load((root / FILE).read_text()),
        ]
    )
    return FeatureRepo(
        views=tuple(views),
        services={service.name: _views_of(service, repo) for service in repo.contents.feature_services},
        types={service.name: _types_of(service, repo) for service in repo.contents.feature_services},
        fingerprint=fingerprint,
    )


def open_store(root: Path, settings: Settings) -> FeatureStore:
    """Feast's own entry point, on the stores that `features/feature_store.yaml` names.

    Raises:
        SettingsInvalid: the file is missing, or asks for what would give wrong values.
    """
    config = config_of(root, settings)
    for path in (config.registry.path.removeprefix("sqlite:///"), getattr(config.online_store, "path", "")):
        if Path(path).is_absolute():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
    return FeatureStore(config=config)


def parse(root: Path, settings: Settings) -> Repo:
    """Import the repository, as modules `features.…` of the project folder.

    Raises:
        SettingsInvalid: as :func:`config_of`.
        DefinitionInvalid: a module fails, or defines what manta cannot serve.
    """
    root = root.resolve()
    config = config_of(root, settings)
    with _inside(root):
        try:
            contents = parse_repo(root / FOLDER)
        except MantaError:
            raise
        except Exception as error:
            raise import_failure(f"{FOLDER}/", root, error) from error
        if not contents.projects:
            contents.projects.append(Project(name=settings.project))
        functions = {view.name: _function_of(view, root) for view in contents.on_demand_feature_views}
    repo = Repo(config, contents, functions)
    _check_objects(repo)
    return repo


# --- inside -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _inside(root: Path) -> Iterator[None]:
    """Feast names the repository's modules after the working directory, so parsing goes on inside it. What
    another project's `features/` left in this process is forgotten first."""
    for name in [n for n in sys.modules if n == FOLDER or n.startswith(f"{FOLDER}.")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    before = Path.cwd()
    sys.path.insert(0, str(root))
    os.chdir(root)
    try:
        yield
    finally:
        os.chdir(before)
        sys.path.remove(str(root))


def _function_of(view: OnDemandFeatureView, root: Path) -> tuple[str, str]:
    """Where the view's function is imported from, and the hash of its code."""
    function = getattr(view.feature_transformation, "udf", None)
    # Feast's decorator renames the function's module, so it is found by its file.
    path = Path(getattr(getattr(function, "__code__", None), "co_filename", ""))
    name = getattr(function, "__qualname__", "")
    inside = path.is_relative_to(root)
    module = ".".join(path.relative_to(root).with_suffix("").parts) if inside else ""
    code = code_of(root, [path.resolve()]) if inside else None
    if (
        code is None
        or "feast" in code.packages
        or getattr(sys.modules.get(module), name, None) is not function
    ):
        raise DefinitionInvalid(
            f"the function of on-demand view {view.name!r} cannot be imported without Feast",
            hint=f"define it at the top level of a module without Feast, {FOLDER}/request_time.py say, and "
            "give it as OnDemandFeatureView(udf=…) in another: replicas import it, and never import Feast",
        )
    # Feast's SDK rebuilds the function from this text: with the whole module, it finds what it calls there.
    text = path.read_text()
    view.udf_string = view.feature_transformation.udf_string = text  # type: ignore[union-attr]
    return f"{module}:{name}", hashlib.sha256(repr(sorted(code.files.items())).encode()).hexdigest()[:16]


def _check_objects(repo: Repo) -> None:
    """Compile every view once, so that what manta cannot serve is said before anything is registered."""
    contents = repo.contents
    unserved = [*contents.stream_feature_views, *contents.label_views]
    if unserved:
        raise DefinitionInvalid(
            f"{type(unserved[0]).__name__} {unserved[0].name!r} is of a kind that manta does not serve",
            hint="write it as a FeatureView",
        )
    for name, times in Counter(view.name.lower() for view in _all_views(contents)).items():
        if times > 1:
            raise DefinitionInvalid(
                f"{times} feature views are named {name!r}",
                hint="write one that is renamed or mapped for a service (with_name, with_join_key_map) in "
                "the service's list and keep it in no variable: Feast takes it for another view",
            )
    entities = {entity.name: entity for entity in contents.entities}
    for view in contents.feature_views:
        typed = {field.name for field in view.entity_columns}
        for name in view.entities:
            entity = entities.get(name)
            if entity is None:
                raise DefinitionInvalid(
                    f"entity {name!r} of feature view {view.name!r} is in no module of {FOLDER}/",
                    hint="keep it in a variable at the top level of one",
                )
            known = entity.join_key in typed or entity.value_type != ValueType.UNKNOWN
            if not known and name != DUMMY_ENTITY_NAME:
                _untyped(view, f"its join key {entity.join_key}")
        if not view.features:
            _untyped(view, "its features")
        kinds = {f.name: type_name(f"feature {f.name!r} of {view.name!r}", f.dtype) for f in view.features}
        view_of(view.name, view, kinds, table="")
    for demand in contents.on_demand_feature_views:
        on_demand_of(demand, demand.projection, *repo.functions[demand.name])
        _check_answer(demand, repo.functions[demand.name][0])


def _check_answer(view: OnDemandFeatureView, function: str) -> None:
    """Refuse what Feast would refuse when the view is registered. It calls the function with one row of
    samples, and takes Python's floats for Float64, its integers for Int64."""
    where = f"on-demand view {view.name!r} ({function})"
    try:
        view.infer_features()
    except SpecifiedFeaturesNotPresentError:
        transformation: Any = view.feature_transformation
        sample = view._construct_random_input(singleton=view.singleton)
        gives = {f.name: f.dtype for f in transformation.infer_features(sample, view.singleton)}
        other = [f"{f.name} as {f.dtype} ({gives.get(f.name, 'not given')})" for f in view.features]
        wrong = [text for f, text in zip(view.features, other, strict=True) if gives.get(f.name) != f.dtype]
        raise DefinitionInvalid(
            f"{where} declares {', '.join(wrong)}",
            hint="declare what the function gives, in brackets here",
        ) from None
    except Exception as error:
        raise DefinitionInvalid(
            f"{where} fails when called with a row of samples: {type(error).__name__}: {error}",
            hint="Feast calls it with one row, to learn the types of what it gives",
        ) from error


def _all_views(contents: RepoContents) -> list[FeatureView | OnDemandFeatureView]:
    return [*contents.feature_views, *contents.on_demand_feature_views]


def _untyped(view: FeatureView, what: str) -> None:
    raise DefinitionInvalid(
        f"feature view {view.name!r} declares no type of {what}",
        hint="give it schema=[Field(name=…, dtype=…), …] for each join key and feature",
    )


def _info(view: FeatureView | OnDemandFeatureView, repo: Repo) -> ViewInfo:
    source, ttl = getattr(view, "batch_source", None), getattr(view, "ttl", None)
    return ViewInfo(
        name=view.name,
        dataset=source.dataset if isinstance(source, DatasetSource) else None,
        ttl_seconds=ttl.total_seconds() if ttl else 0.0,
        fingerprint=digest([_fingerprint(view), repo.functions.get(view.name)]),
        pushed=getattr(view, "stream_source", None) is not None,
    )


def _views_of(service: FeatureService, repo: Repo) -> tuple[str, ...]:
    """The views behind a service, those that its on-demand views read included."""
    demands = {view.name: view for view in repo.contents.on_demand_feature_views}
    names: dict[str, None] = {}
    given = [projection.name for projection in service.feature_view_projections]
    for name in given + [re.split("[@:]", ref)[0] for ref in service._pending_feature_refs]:
        names[name] = None
        if name in demands:
            names |= dict.fromkeys(p.name for p in demands[name].source_feature_view_projections.values())
    return tuple(names)


def _types_of(service: FeatureService, repo: Repo) -> dict[str, str]:
    """See :attr:`FeatureRepo.types`."""
    views = {view.name: view for view in repo.contents.feature_views}
    demands = {view.name: view for view in repo.contents.on_demand_feature_views}
    found: dict[str, str] = {}
    todo = list(service.feature_view_projections)
    for projection in todo:
        label = projection.name_to_use()
        if projection.name in demands:
            todo += demands[projection.name].source_feature_view_projections.values()
        for column in views[projection.name].entity_columns if projection.name in views else ():
            key = projection.join_key_map.get(column.name, column.name)
            found[f"join key {key}"] = type_name(f"join key {key!r}", column.dtype)
        for feature in projection.features:
            found[f"{label}.{feature.name}"] = type_name(f"feature {feature.name!r}", feature.dtype)
    return found


def _fingerprint(thing: Any) -> str:
    """A hash of the object's Feast specification, without times and without pickled code."""
    return digest(_bare(MessageToDict(thing.to_proto())))


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _bare(v) for k, v in value.items() if k not in ("meta", "body")}
    return [_bare(item) for item in value] if isinstance(value, list) else value
