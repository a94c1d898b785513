"""Settings: one frozen object, read from `cluster/<profile>.yaml` and overlaid by MANTA_* variables.

Every store is a URL or a path here. What is given is attached and never owned; what is left out is a local
default under the state folder, started or made by `manta up`.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from manta import words
from manta.errors import SettingsInvalid
from manta.ledger.roles import Role
from manta.secrets import mapped, plain_passwords, without_passwords

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]

WORKER_VARIABLE = "MANTA_SETTINGS"  # how the control wing hands its settings to what it starts
CLUSTER_VARIABLE = "MANTA_CLUSTER"  # in a Ray head's environment: the platform that the cluster belongs to

ADDRESSES = {
    *("home", "host", "ports", "ray_auth", "lake"),
    *("server_url", "ray_url", "mlflow_url", "serve_url", "ledger_url"),
}


class Ports(BaseModel):
    """Ports on the loopback interface; each must be free when `manta up` starts what uses it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    server: int = 7260
    serve: int = 8000
    mlflow: int = 5000
    ray: int = 6379
    dashboard: int = 8265


class OpenLineage(BaseModel):
    """Where the runs are told as OpenLineage events: a consumer's URL, or a file that they are added to, one
    line of JSON each. ``key`` is sent to the URL as a bearer token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = ""
    file: str = ""
    key: str = ""

    @model_validator(mode="after")
    def _one_of_them(self) -> OpenLineage:
        if bool(self.url) == bool(self.file):
            raise ValueError("give url or file")
        return self


class Oidc(BaseModel):
    """Tokens of an OpenID Connect issuer that the server accepts.

    Attributes:
        issuer, audience: what a token's ``iss`` and ``aud`` must be.
        jwks_url: where the issuer publishes its keys; read from its discovery document unless given.
        algorithms: the signatures accepted; none of them symmetric.
        name_claim: the claim that names the principal, ``user:<claim>``.
        groups_claim: the claim that lists the principal's groups; empty for none.
        groups: group → project (or "*") → role.
        leeway_seconds: how far the issuer's clock may be from ours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1)
    jwks_url: str = ""
    algorithms: tuple[Algorithm, ...] = Field(default=("RS256", "ES256"), min_length=1)
    name_claim: str = "sub"
    groups_claim: str = ""
    groups: dict[str, dict[str, Role]] = {}
    leeway_seconds: float = Field(default=10.0, ge=0, le=120)


class Settings(BaseSettings):
    """A text may hold references to secrets, ``${env:NAME}``, ``${file:/path}`` or
    ``${k8s:namespace/name/key}`` (see :mod:`manta.secrets`): they are read by the process that opens the
    connection, and nowhere else.

    Attributes:
        profile: which `cluster/<profile>.yaml` was read.
        project: the project's name: its namespace in the ledger, in Feast and among the endpoints.
        root: the project folder.
        home: the state folder; everything local lives in it.
        server_url, ray_url, mlflow_url: attached when given; ``ray_url`` is the address of Ray's dashboard.
        ledger_url: a SQLAlchemy URL.
        lake: the folder that holds the datasets, of each project in a folder of its own.
        engine: what executes runs: ``ray``; or ``inline``, each as a process here, without a cluster.
        cpus: logical CPUs that a local Ray head offers; 0 lets manta choose.
        ray_auth: Ray's RAY_AUTH_MODE, always set explicitly.
        concurrent_runs: the most runs at work at once.
        openlineage: where runs are told as OpenLineage events; nowhere unless given.
        oidc: whose tokens the server accepts, beside API keys.
        pepper_file: the secret under which API keys are digested; `<home>/pepper`, made when there is none,
            unless given. All servers of one ledger need the same.
        requests_per_minute: what the server answers one principal; 0 for no limit.
        failures_per_minute: failed log-ins from one address, or for one key, before both are locked out.
    """

    model_config = SettingsConfigDict(
        env_prefix="MANTA_", env_nested_delimiter="__", frozen=True, extra="forbid", validate_default=True
    )

    profile: str = "local"
    project: str = Field(default="project", pattern=r"^[a-z][a-z0-9_]{0,30}$")
    root: Path = Path(".")
    home: Path = Path(".manta")
    host: str = "127.0.0.1"
    ports: Ports = Ports()
    server_url: str = ""
    ray_url: str = ""
    mlflow_url: str = ""
    serve_url: str = ""
    ledger_url: str = ""
    lake: str = ""
    engine: Literal["ray", "inline"] = "ray"
    cpus: int = Field(default=0, ge=0)
    ray_auth: str = "disabled"
    concurrent_runs: int = Field(default=3, ge=1)
    openlineage: OpenLineage | None = None
    oidc: Oidc | None = None
    pepper_file: Path | None = None
    requests_per_minute: int = Field(default=12_000, ge=0)
    failures_per_minute: int = Field(default=20, ge=1)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # A variable beats the file, and the file (handed in as arguments) beats the defaults.
        return (env_settings, init_settings)

    @classmethod
    def load(cls, root: Path | str = ".", profile: str | None = None) -> Self:
        """The settings of the project in ``root``; in a worker, those of whoever started it.

        Raises:
            SettingsInvalid: the file is not YAML, or a field in it or in a variable does not fit.
        """
        handed_over = os.environ.get(WORKER_VARIABLE)
        if handed_over:
            return cls._checked(json.loads(handed_over), WORKER_VARIABLE, Path(root))
        profile = profile or os.environ.get("MANTA_PROFILE") or "local"
        path = Path(root) / "cluster" / f"{profile}.yaml"
        if not path.exists() and profile != "local":
            raise SettingsInvalid(f"{path} does not exist", hint="unset MANTA_PROFILE, or write the file")
        values: Any = {}
        if path.exists():
            import yaml  # a worker, whose settings are handed over, need not wait for it

            try:
                values = yaml.safe_load(path.read_text()) or {}
            except yaml.YAMLError as error:
                raise SettingsInvalid(f"{path} is not YAML: {error}") from error
            if not isinstance(values, dict):
                raise SettingsInvalid(f"{path} must hold names and values")
        return cls._checked({"profile": profile, **values}, str(path), Path(root))

    @classmethod
    def on_cluster(cls, root: Path | str = ".") -> Self:
        """In a job that was submitted straight to Ray: the settings of the project in ``root``, on the
        platform that the cluster belongs to. A cluster that `manta up` did not start names its platform by
        MANTA_* variables, or the project's own file does.

        Raises:
            SettingsInvalid: as :meth:`load`.
        """
        own = cls.load(root)
        platform = os.environ.get(CLUSTER_VARIABLE)
        if not platform or os.environ.get(WORKER_VARIABLE):
            return own
        mine = {"profile": own.profile, "project": own.project}
        return cls._checked(json.loads(platform) | mine, CLUSTER_VARIABLE, Path(root))

    @classmethod
    def _checked(cls, values: dict[str, Any], where: str, root: Path) -> Self:
        try:
            given = cls(**({"root": root} | values))
        except ValidationError as error:
            lines = words.faults(error.errors())
            raise SettingsInvalid(
                f"{where} or a MANTA_* variable: {lines}", hint="see manta.settings.Settings for the names"
            ) from None
        return given._resolved()

    def _resolved(self) -> Self:
        root = self.root.resolve()
        home = self.home if self.home.is_absolute() else root / self.home
        http = f"http://{self.host}"
        return self.model_copy(
            update={
                "root": root,
                "home": home,
                "server_url": self.server_url or f"{http}:{self.ports.server}",
                "ray_url": self.ray_url or f"{http}:{self.ports.dashboard}",
                "mlflow_url": self.mlflow_url or f"{http}:{self.ports.mlflow}",
                "serve_url": self.serve_url or f"{http}:{self.ports.serve}",
                "ledger_url": self.ledger_url or f"sqlite:///{home}/ledger.db",
                "lake": self.lake or str(home / "lake"),
            }
        )

    def shown(self) -> dict[str, Any]:
        """All of them as JSON values, with the passwords in URLs hidden: to be shown to people."""
        return {
            name: mapped(value, without_passwords) for name, value in self.model_dump(mode="json").items()
        }

    @property
    def datasets(self) -> str:
        """The folder of this project's datasets: each project has its own in the lake."""
        return f"{self.lake}/{self.project}"

    def for_project(self, name: str) -> Self:
        """The same platform's settings, for a run of that project."""
        return self.model_copy(update={"project": name})

    def for_worker(self) -> str:
        """The JSON to put into the environment of a worker as :data:`WORKER_VARIABLE`. It holds no password,
        for whoever sees Ray's dashboard reads it: one that is written out in a URL is kept in a file of the
        state folder, which the caller's user alone may read, and is named by it."""
        return json.dumps(mapped(self.model_dump(mode="json"), self._handed_over))

    def for_cluster(self) -> str:
        """The JSON to put into the environment of a Ray head as :data:`CLUSTER_VARIABLE`, for every job
        there to read: where the platform's parts are, and no password, as :meth:`for_worker`."""
        found = self.model_dump(mode="json", include=ADDRESSES)
        return json.dumps(mapped(found, self._handed_over))

    def _handed_over(self, text: str) -> str:
        for password in dict.fromkeys(plain_passwords(text)):
            named = self._kept(unquote(password))
            text = text.replace(f":{password}@", f":{named}@").replace(f"={password}", f"={named}")
        return text

    def _kept(self, value: str) -> str:
        name = hashlib.sha256(value.encode()).hexdigest()[:16]
        path = self.home / "secrets" / name
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(value)
            partial.replace(path)
        return f"${{file:{path}}}"
