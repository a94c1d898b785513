"""A stock Feast SDK, in a process of its own, reads and pushes through the look-up door with a manta key.

It runs with the Feast of this environment; with MANTA_STOCK_FEAST=venv (`make test-stock-feast`) in a virtual
environment of its own, where there is no manta.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from manta.features.materialize import materialize
from manta.serving.lookup.callers import Callers
from tests.integration.api.conftest import serving as serving_manta

from .conftest import Shop
from .doors import PUSHING, opened
from .test_push import history

REPO = """
project: test
provider: local
registry: {folder}/registry.db
online_store:
  type: remote
  path: {url}
auth:
  type: oidc
  token_env_var: MANTA_API_KEY
entity_key_serialization_version: 3
"""
# Without shop 1, whose list is empty: of an empty list Feast's remote client cannot tell the type.
ROWS: list[dict[str, Any]] = [
    {"shop": 3, "city": "bari", "from_city": "bari"},
    {"shop": 2, "city": "rom", "from_city": "oslo"},
    {"shop": 99, "city": "", "from_city": "nowhere"},
]


@pytest.fixture
def python(tmp_path: Path) -> str:
    """The interpreter that the client runs with."""
    if os.environ.get("MANTA_STOCK_FEAST") != "venv":
        return sys.executable
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    own = f"{folder}/bin/python"
    subprocess.run([own, "-m", "pip", "install", "--quiet", f"feast=={version('feast')}"], check=True)
    return own


def client(python: str, folder: Path, url: str, key: str, at: datetime) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / "feature_store.yaml").write_text(REPO.format(folder=folder, url=url))
    script = Path(__file__).with_name("stock_client.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [python, str(script), str(folder), json.dumps(ROWS), at.isoformat()],
        env=environment | {"MANTA_API_KEY": key},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.timeout(900)
def test_a_stock_client_reads_what_the_sdk_reads_and_pushes(shop: Shop, tmp_path: Path, python: str) -> None:
    shop.write("pushing.py", PUSHING)
    for ttl in ("days=2", "hours=3", "days=9"):  # Feast's own SDK knows none: without it both must agree
        shop.change("views.py", f"ttl=timedelta({ttl})", "ttl=timedelta(0)")
    shop.lake.replace("tills", history(), run_key="first")
    materialize(shop.service("plain"), shop.settings.datasets, shop.versions())
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    with serving_manta(shop.settings) as manta:
        key = manta.person("service:shopfront", test="developer")
        lesser = manta.person("service:other", hotels="developer")
        with opened(shop, callers=Callers(manta.url, "test")) as door:
            url = str(door.base_url).rstrip("/")
            done = client(python, tmp_path / "stock", url, key, at)
            refused = client(python, tmp_path / "other", url, lesser, at)
            unknown = client(python, tmp_path / "none", url, "guess", at)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["manta"] == []

    store = shop.store()
    sales = ["sales:sold", "sales:buyers", "sales:best", "sales:open", "sales:recent", "facts:built"]
    keys = [{"shop": row["shop"], "city": row["city"]} for row in ROWS]
    assert found["list"] == store.get_online_features(sales, keys).to_dict()
    assert found["full"] == store.get_online_features(sales, keys, full_feature_names=True).to_dict()
    direct = store.get_online_features(store.get_feature_service("plain"), ROWS).to_dict()
    # JSON has no times: whoever asks Feast's server gets seconds as well.
    direct["last_sale"] = [each and int(each.timestamp()) for each in direct["last_sale"]]
    assert found["service"] == direct
    assert found["list"]["best"] == ["tea", "égg", None]
    assert found["list"]["recent"] == [[3.0], [1.5, -2.0], None]
    assert found["pushed"] == {"shop": [1], "waiting": [6], "calm": [True]}
    assert "sales" in found["refused"]
    assert "there is no project" in refused.stderr
    assert "not an API key" in unknown.stderr
