"""Settings: one frozen object, read from `cluster/<profile>.yaml` and overlaid by MANTA_* variables.

Every store is a URL or a path here. What is given is attached and never owned; what is left out is a local
default under the state folder, started or made by `manta up`.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from manta.errors import SettingsInvalid

WORKER_VARIABLE = "MANTA_SETTINGS"  # how the control wing hands its settings to what it starts
CLUSTER_VARIABLE = "MANTA_CLUSTER"  # in a Ray head's environment: the platform that the cluster belongs to

ADDRESSES = {
    *("home", "host", "ports", "ray_auth", "lake"),
    *("server_url", "ray_url", "mlflow_url", "serve_url", "ledger_url"),
}
_PASSWORD = re.compile(r"(://[^/?#@:]*):[^/?#@]*@")


class Ports(BaseModel):
    """Ports on the loopback interface; each must be free when `manta up` starts what uses it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    server: int = 7260
    serve: int = 8000
    mlflow: int = 5000
    ray: int = 6379
    dashboard: int = 8265


class Settings(BaseSettings):
    """
    Attributes:
        profile: which `cluster/<profile>.yaml` was read.
        project: the project's name: its namespace in the ledger, in Feast and among the endpoints.
        root: the project folder.
        home: the state folder; everything local lives in it.
        server_url, ray_url, mlflow_url: attached when given; ``ray_url`` is the address of Ray's dashboard.
        ledger_url: a SQLAlchemy URL.
        lake: the folder that holds the datasets.
        cpus: logical CPUs that a local Ray head offers; 0 lets manta choose.
        ray_auth: Ray's RAY_AUTH_MODE, always set explicitly.
        concurrent_runs: the most runs at work at once.
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
    cpus: int = Field(default=0, ge=0)
    ray_auth: str = "disabled"
    concurrent_runs: int = Field(default=3, ge=1)

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
            lines = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
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

    def for_worker(self) -> str:
        """The JSON to put into the environment of a worker as :data:`WORKER_VARIABLE`."""
        return self.model_dump_json()

    def for_cluster(self) -> str:
        """The JSON to put into the environment of a Ray head as :data:`CLUSTER_VARIABLE`, for every job
        there to read: where the platform's parts are, and no password."""
        found = self.model_dump(mode="json", include=ADDRESSES)
        return json.dumps(
            {
                name: _PASSWORD.sub(r"\1@", value) if isinstance(value, str) else value
                for name, value in found.items()
            }
        )
