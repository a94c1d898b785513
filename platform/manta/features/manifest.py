"""Compile what the Feast registry holds of a feature service into a manifest (see `compiled.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from feast import FeatureService, FeatureStore, FeatureView, OnDemandFeatureView, PushSource
from feast.errors import FeastObjectNotFoundException
from feast.feature_view import DUMMY_ENTITY_ID
from feast.feature_view_projection import FeatureViewProjection
from feast.infra.online_stores.helpers import compute_table_id
from feast.repo_config import RepoConfig
from feast.value_type import ValueType

from manta.errors import DefinitionInvalid, NotFound
from manta.features.compiled import FORMAT, Feature, Key, OnDemand, View
from manta.features.source import DatasetSource
from manta.features.stale import contract_of
from manta.features.wire import KEY_TYPES

_SCALARS = {
    ValueType.BYTES: "bytes",
    ValueType.STRING: "string",
    ValueType.INT32: "int32",
    ValueType.INT64: "int64",
    ValueType.DOUBLE: "float64",
    ValueType.FLOAT: "float32",
    ValueType.BOOL: "bool",
    ValueType.UNIX_TIMESTAMP: "timestamp",
}
TYPES = _SCALARS | {ValueType[f"{kind.name}_LIST"]: f"list[{name}]" for kind, name in _SCALARS.items()}

Functions = Mapping[str, tuple[str, str]]
"""On-demand view → `module:qualname` of its function, and the hash of the code that it runs."""


def compile_service(store: FeatureStore, name: str, functions: Functions) -> dict[str, Any]:
    """The manifest of the service ``name`` as it is registered.

    Raises:
        NotFound: there is no such service.
        DefinitionInvalid: it uses what manta cannot serve; the message says what, and why.
    """
    service = registered(store, name)
    projections = {p.name_to_use(): p for p in service.feature_view_projections}
    views: dict[str, tuple[FeatureView, dict[str, str]]] = {}
    on_demand: list[OnDemand] = []
    for label, projection in projections.items():
        view = store.registry.get_any_feature_view(projection.name, store.project)
        if isinstance(view, OnDemandFeatureView):
            on_demand.append(on_demand_of(view, projection, *functions[view.name]))
            for source in view.source_feature_view_projections.values():
                origin = store.registry.get_any_feature_view(source.name, store.project)
                _use(views, source.name_to_use(), origin, source)
        else:
            _use(views, label, view, projection)
    compiled = [_view_of(store, label, view, features) for label, (view, features) in views.items()]
    body = {
        "name": name,
        "project": store.project,
        "store": store_of(store.config),
        "views": [asdict(view) for view in compiled],
        "on_demand": [asdict(view) for view in on_demand],
        "features": [[label, f.name] for label, p in projections.items() for f in p.features],
    }
    timed = [view.name for view in compiled if view.time is not None]
    stale = contract_of(
        name, service.tags, timed, {feature.name: view.name for view in compiled for feature in view.features}
    )
    body |= {"staleness": stale} if stale else {}
    _check_names(name, [feature for _, feature in body["features"]], compiled, on_demand)
    return {"format": FORMAT, "service": body}


def compile_catalog(
    store: FeatureStore, functions: Functions, services: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """All that is registered, as one: what lists of ``view:feature`` are read by, what pushes are written by,
    and the ``services``, compiled already.

    Raises:
        DefinitionInvalid: as :func:`compile_service`.
    """
    views: dict[str, tuple[FeatureView, dict[str, str]]] = {}
    pushes: dict[str, list[str]] = {}
    for view in store.registry.list_feature_views(store.project):
        _use(views, view.name, view, view.projection)
        if isinstance(view.stream_source, PushSource):
            pushes.setdefault(view.stream_source.name, []).append(view.name)
    on_demand = []
    for demand in store.registry.list_on_demand_feature_views(store.project):
        on_demand.append(on_demand_of(demand, demand.projection, *functions[demand.name]))
        for source in demand.source_feature_view_projections.values():
            origin = store.registry.get_any_feature_view(source.name, store.project)
            _use(views, source.name_to_use(), origin, source)
    compiled = [_view_of(store, label, view, features) for label, (view, features) in views.items()]
    body = {
        "project": store.project,
        "store": store_of(store.config),
        "views": [asdict(view) for view in sorted(compiled, key=lambda view: view.name)],
        "on_demand": [asdict(view) for view in sorted(on_demand, key=lambda view: view.name)],
        "services": {name: manifest["service"] for name, manifest in sorted(services.items())},
        "pushes": {name: sorted(names) for name, names in sorted(pushes.items())},
    }
    return {"format": FORMAT, "catalog": body}


def registered(store: FeatureStore, name: str) -> FeatureService:
    """Raises:
    NotFound: the registry has no such feature service.
    """
    try:
        return store.registry.get_feature_service(name, store.project)
    except FeastObjectNotFoundException:
        known = ", ".join(s.name for s in store.registry.list_feature_services(store.project))
        raise NotFound(
            f"there is no feature service {name!r} in the registry of project {store.project!r}",
            hint=f"there is: {known}" if known else "`manta run features` registers those of the project",
        ) from None


def view_of(label: str, view: FeatureView, features: Mapping[str, str], table: str) -> View:
    """A view with those of its features (name → type), under the name ``label``.

    Raises:
        DefinitionInvalid: its source is no dataset, or a key has a type that Feast does not keep keys of.
    """
    source = view.batch_source
    if not isinstance(source, DatasetSource):
        raise DefinitionInvalid(
            f"feature view {view.name!r} reads a {type(source).__name__}, and manta reads datasets",
            hint="give it source=DatasetSource(name=…, dataset=…, timestamp_field=…)",
        )
    pushed = view.stream_source
    if pushed is not None and not isinstance(pushed, PushSource):
        raise DefinitionInvalid(
            f"feature view {view.name!r} reads a {type(pushed).__name__}, which manta does not",
            hint="give it source=PushSource(name=…, batch_source=DatasetSource(…)), and feed that",
        )
    if pushed is not None and source.time is None:
        raise DefinitionInvalid(
            f"feature view {view.name!r} is pushed to, and its source {source.name!r} has no time",
            hint="name a timestamp_field: of two rows for a key, the newer counts",
        )
    ttl = view.ttl.total_seconds() if view.ttl else 0.0
    if ttl and source.time is None:
        raise DefinitionInvalid(
            f"feature view {view.name!r} has a TTL, and its source {source.name!r} has no time",
            hint="leave the ttl out, or name a timestamp_field",
        )
    return View(
        name=label,
        table=table,
        dataset=source.dataset,
        time=source.time,
        created=source.created,
        ttl_seconds=ttl,
        keys=keys_of(view),
        features=tuple(Feature(name, kind, source.column(name)) for name, kind in features.items()),
        pushed=pushed is not None,
    )


def keys_of(view: FeatureView) -> tuple[Key, ...]:
    """The join keys of a view, under the names that its projection gives them.

    Raises:
        DefinitionInvalid: one has a type that Feast does not keep keys of.
    """
    keys = []
    for column in view.entity_columns:
        if column.name == DUMMY_ENTITY_ID:
            continue
        kind = type_name(f"join key {column.name!r} of feature view {view.name!r}", column.dtype)
        if kind not in KEY_TYPES:
            raise DefinitionInvalid(
                f"join key {column.name!r} of feature view {view.name!r} is {column.dtype}",
                hint="Feast keeps keys of String, Int32, Int64, Bytes and UnixTimestamp",
            )
        mapped = view.projection.join_key_map.get(column.name, column.name)
        keys.append(Key(column=mapped, join_key=column.name, type=kind))
    return tuple(keys)


def on_demand_of(
    view: OnDemandFeatureView, projection: FeatureViewProjection, function: str, code: str
) -> OnDemand:
    """Raises:
    DefinitionInvalid: it is not in Python mode.
    """
    if view.mode != "python" or view.aggregations or view.write_to_online_store:
        raise DefinitionInvalid(
            f"on-demand view {view.name!r} is in mode {view.mode!r}, aggregates, or is written online",
            hint='manta computes on-demand views in mode="python", when they are asked for',
        )
    where = f"on-demand view {view.name!r}"
    return OnDemand(
        name=projection.name_to_use(),
        function=function,
        code=code,
        singleton=bool(view.singleton),
        inputs=tuple(
            (source.name_to_use(), feature.name)
            for source in view.source_feature_view_projections.values()
            for feature in source.features
        ),
        request={
            field.name: type_name(f"field {field.name!r} of {where}", field.dtype)
            for source in view.source_request_sources.values()
            for field in source.schema
        },
        features={f.name: type_name(f"feature {f.name!r} of {where}", f.dtype) for f in projection.features},
    )


def type_name(what: str, dtype: Any) -> str:
    """Raises:
    DefinitionInvalid: manta reads no such type.
    """
    kind = TYPES.get(dtype.to_value_type())
    if kind is None:
        names = ", ".join(sorted(_SCALARS.values()))
        raise DefinitionInvalid(f"{what} is {dtype}", hint=f"manta reads {names}, and lists of them")
    return kind


def _use(
    views: dict[str, tuple[FeatureView, dict[str, str]]],
    label: str,
    view: Any,
    projection: FeatureViewProjection,
) -> None:
    """Take a view up, or widen what is taken of it already: a service and its on-demand views share views."""
    where = f"of feature view {view.name!r}"
    held = views.setdefault(label, (view.with_projection(projection), {}))[1]
    for feature in projection.features:
        held[feature.name] = type_name(f"feature {feature.name!r} {where}", feature.dtype)


def _view_of(store: FeatureStore, label: str, view: FeatureView, features: Mapping[str, str]) -> View:
    versions = store.config.registry.enable_online_feature_view_versioning
    compiled = view_of(label, view, features, compute_table_id(store.project, view, versions))
    if store.config.online_store.type != "redis":
        return compiled
    # Redis keeps one event time for all features of a view: they are written together.
    registered = store.registry.get_feature_view(view.name, store.project)
    kinds = {f.name: f.dtype for f in registered.features if f.name not in features}
    others = {name: type_name(f"feature {name!r} of {view.name!r}", dtype) for name, dtype in kinds.items()}
    _check_expiry(store.config.online_store.key_ttl_seconds, compiled)
    return replace(compiled, others=view_of(label, view, others, "").features)


def _check_expiry(seconds: int | None, view: View) -> None:
    if seconds and not 0 < view.ttl_seconds <= seconds:
        holds = f"for {view.ttl_seconds:g} s" if view.ttl_seconds else "for ever"
        raise DefinitionInvalid(
            f"online_store.key_ttl_seconds is {seconds}, and the values of view {view.name!r} hold {holds}: "
            "they would be gone online while a training set still has them",
            hint="leave key_ttl_seconds out, or make it as long as the longest ttl of the views",
        )


def store_of(config: RepoConfig) -> dict[str, Any]:
    """What a manifest says of the online store; see `stores/`. Of a configuration that manta has read,
    passwords are the references that feature_store.yaml has."""
    online = config.online_store
    named: dict[str, Any] = getattr(config, "_online", {})
    if online.type == "sqlite":
        path = Path(online.path)
        if not path.is_absolute() and config.repo_path:
            path = config.repo_path / path
        return {"kind": "sqlite", "path": str(path.absolute())}
    facts = {name: named.get(name, getattr(online, name, None)) for name in _FACTS.get(online.type, ())}
    told = {name: value for name, value in facts.items() if value is not None}
    return {"kind": online.type, "project": config.project, **told}


_FACTS = {
    "redis": ("connection_string", "key_ttl_seconds"),
    "postgres": (
        *("host", "port", "database", "db_schema", "user", "password", "keepalives_idle"),
        *("sslmode", "sslkey_path", "sslcert_path", "sslrootcert_path"),
    ),
}


def _check_names(service: str, features: list[str], views: list[View], on_demand: list[OnDemand]) -> None:
    """A name must mean one thing to whoever asks the service."""
    fields = {name for view in on_demand for name in view.request}
    asked = fields | {key.column for view in views for key in view.keys}
    twice = {name for name in features if features.count(name) > 1} | (set(features) & asked)
    if twice:
        raise DefinitionInvalid(
            f"feature service {service!r} has several features, keys or request fields named "
            f"{', '.join(sorted(twice))}",
            hint="rename them in the views",
        )
