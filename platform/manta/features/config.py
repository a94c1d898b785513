"""`features/feature_store.yaml`: read, and refused where Feast would give wrong values or stop serving."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from feast.repo_config import RepoConfig
from pydantic import PrivateAttr, ValidationError

from manta.errors import SettingsInvalid
from manta.secrets import REFERENCE, resolve
from manta.settings import Settings

FOLDER = "features"
FILE = "features/feature_store.yaml"
OFFLINE_STORE = "manta.features.offline.AsofOfflineStore"
ONLINE_STORES = ("sqlite", "redis", "postgres")
# A password from the environment stays a reference: the rest of the file is written into manifests.
_PASSWORD_VARIABLE = re.compile(r"(password\s*[:=]\s*[\"']?)\$\{(\w+)\}")
_WRONG_ROWS = {
    "dask": "drops rows: those whose values have expired or lie ahead vanish, and equal rows become one",
    "file": "is Feast's dask store, which drops rows",
    "ray": "ignores TTLs, or gives every feature as null",
}


class NamedRepoConfig(RepoConfig):
    """Feast's configuration, with what the file says of the online store: passwords as references."""

    _online: dict[str, Any] = PrivateAttr(default_factory=dict)


def config_of(root: Path, settings: Settings) -> RepoConfig:
    """`features/feature_store.yaml` as Feast reads it, checked. In it, ${MANTA_HOME}, ${MANTA_LAKE} and
    ${MANTA_PROJECT} stand for the settings' `home`, `lake` and `project`; other names for variables of the
    environment, and ${env:…}, ${file:…} and ${k8s:…} for secrets.

    Raises:
        SettingsInvalid: it is missing, or asks for what would give wrong values.
        SecretUnreadable: a secret is not there.
    """
    raw = _read(root, settings)
    check(raw, settings)
    try:
        config = NamedRepoConfig(**resolve(raw))
        config._online = _section(raw, "online_store")
        _ = config.registry, config.offline_store, config.online_store  # parsed when first asked for
    except (ValidationError, ValueError) as error:
        raise SettingsInvalid(f"{FILE}: {error}", hint="see Feast's documentation") from None
    config.repo_path = (root / FOLDER).absolute()
    return config


def _plain(password: object) -> bool:
    return bool(password) and not REFERENCE.fullmatch(str(password))


def _redis_password(online: Mapping[str, Any]) -> str:
    found = re.search(r"(?:^|,)password=([^,]*)", str(online.get("connection_string", "")))
    return found[1] if found else ""


_NAMED = "it is written into manifests, and a password must not be"
_Refused = tuple[str, Callable[[Mapping[str, Any]], object], str]
_REFUSED_ONLINE: dict[str, tuple[_Refused, ...]] = {
    "redis": (
        (
            "online_store.redis_type must be redis",
            lambda online: online.get("redis_type", "redis") != "redis",
            "manta writes many keys by one script, which a cluster does not take, and has not been tried "
            "with sentinels",
        ),
        (
            "online_store.skip_dedup must be false",
            lambda online: online.get("skip_dedup"),
            "else what Feast pushes overwrites what is newer",
        ),
        (
            "the password in online_store.connection_string must be ${NAME} or ${env:NAME}",
            lambda online: _plain(_redis_password(online)),
            _NAMED,
        ),
    ),
    "postgres": (
        (
            "online_store.vector_enabled must be false",
            lambda online: online.get("vector_enabled"),
            "manta writes no vectors for searching",
        ),
        (
            "online_store.enable_openai_compatible_store must be false",
            lambda online: online.get("enable_openai_compatible_store"),
            "manta does not fill the column that it filters by",
        ),
        (
            "online_store.password must be ${NAME} or ${env:NAME}",
            lambda online: _plain(online.get("password")),
            _NAMED,
        ),
    ),
}


def check(raw: Mapping[str, Any], settings: Settings) -> None:
    """Raises:
    SettingsInvalid: naming each setting that must be otherwise, and why.
    """
    offline, online = _section(raw, "offline_store"), _section(raw, "online_store")
    registry, engine = _section(raw, "registry"), _section(raw, "materialization")
    wrong: list[str] = []

    def must(holds: object, setting: str, why: str) -> None:
        if not holds:
            wrong.append(f"{setting}: {why}")

    store = offline.get("type", "dask")
    bad = _WRONG_ROWS.get(store, "reads no datasets of the lake")
    name = f"the {store} store" if "type" in offline else "Feast's default, the dask store,"
    must(store == OFFLINE_STORE, f"offline_store.type must be {OFFLINE_STORE}", f"{name} {bad}")
    must(
        raw.get("project") == settings.project,
        f"project must be {settings.project}",
        "it is the project's name everywhere (write ${MANTA_PROJECT})",
    )
    must(raw.get("provider", "local") == "local", "provider must be local", "the stores are named here")
    kind = online.get("type", "sqlite")
    must(
        kind in ONLINE_STORES,
        f"online_store.type must be one of {', '.join(ONLINE_STORES)}",
        "these are what replicas read",
    )
    for setting, refused, why in _REFUSED_ONLINE.get(kind, ()):
        must(not refused(online), setting, why)
    must(
        registry.get("registry_type") == "sql",
        "registry.registry_type must be sql",
        "a registry in a file is rewritten whole, and the last of two writers wins",
    )
    ttl = registry.get("cache_ttl_seconds", 600)
    must(
        ttl == 0 or ttl >= 600,
        "registry.cache_ttl_seconds must be 0 or at least 600",
        "each refresh parses the whole registry, during somebody's request",
    )
    must(
        registry.get("serve_features_while_materializing"),
        "registry.serve_features_while_materializing must be true",
        "else Feast refuses to serve a view while it is materialized",
    )
    must(
        engine.get("pull_latest_features"),
        "materialization.pull_latest_features must be true",
        "else Feast writes every value a key ever had, one after the other",
    )
    must(
        raw.get("entity_key_serialization_version", 3) == 3,
        "entity_key_serialization_version must be 3",
        "it is how keys are written online",
    )
    if wrong:
        raise SettingsInvalid(
            f"{FILE}: " + "; ".join(wrong),
            hint="`manta init` in an empty folder writes one that is right, to compare with",
        )


def _read(root: Path, settings: Settings) -> dict[str, Any]:
    path = root / FILE
    if not path.exists():
        raise SettingsInvalid(
            f"{FILE} does not exist",
            hint="`manta init DIR` writes a project that has one",
        )
    stands_for = {
        **os.environ,
        "MANTA_HOME": str(settings.home),
        "MANTA_LAKE": settings.datasets,
        "MANTA_PROJECT": settings.project,
    }

    def expand(found: re.Match[str]) -> str:
        if found[1] not in stands_for:
            raise SettingsInvalid(f"{FILE}: ${{{found[1]}}} is not set", hint=f"export {found[1]}=…")
        return stands_for[found[1]]

    try:
        text = _PASSWORD_VARIABLE.sub(r"\1${env:\2}", path.read_text())
        raw = yaml.safe_load(re.sub(r"\$\{(\w+)\}", expand, text))
    except yaml.YAMLError as error:
        raise SettingsInvalid(f"{FILE} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise SettingsInvalid(f"{FILE} must hold names and values")
    return raw


def _section(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part of the file; Feast allows a bare string where only the type is given."""
    value = raw.get(name) or {}
    if isinstance(value, str):
        return {"path": value} if name == "registry" else {"type": value}
    return dict(value)
