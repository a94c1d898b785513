"""MLflow shows where the ledger's aliases point, also when it was away while they moved."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from manta.control.mirror import Mirror
from manta.errors import Unavailable
from manta.models.registry import Registry
from manta.settings import Settings
from tests.integration.training.conftest import Bench
from tests.unit.ledger.test_aliases import ADA, trained


def test_what_moved_is_shown_once_and_an_mlflow_that_was_away_is_told_later(
    bench: Bench, mlflow_server: str
) -> None:
    ledger, settings = bench.ledger, bench.settings
    client = MlflowClient(mlflow_server, mlflow_server)
    name = Registry(mlflow_server, "p").name("delay")
    client.create_registered_model(name)
    for version in ("1", "2"):
        run = client.create_run("0")
        client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id)
        trained(ledger, version)
    point = ledger.aliases.point
    point("p", "delay", "champion", "1", expect=None, by=ADA, why="first")

    away = Mirror(_elsewhere(settings), ledger)
    with pytest.raises(Unavailable, match="does not answer"):
        away.show()
    mirror = Mirror(settings, ledger)
    assert mirror.show() == 1
    assert shown(client, name) == "1"
    assert mirror.show() == 0
    point("p", "delay", "champion", "2", expect="1", by=ADA, why="better")
    assert mirror.show() == 1
    assert shown(client, name) == "2"
    # A model that this MLflow does not know keeps the others from nothing.
    trained(ledger, "9")
    point("p", "delay", "challenger", "9", expect=None, by=ADA, why="elsewhere")
    ledger.aliases.rollback("p", "delay", "champion", expect="2", by=ADA, why="worse")
    assert mirror.show() == 2
    assert shown(client, name) == "1"
    assert mirror.show() == 0
    for each in (away, mirror):
        each.close()


def shown(client: MlflowClient, name: str) -> str:
    return str(client.get_model_version_by_alias(name, "champion").version)


def _elsewhere(settings: Settings) -> Settings:
    return settings.model_copy(update={"mlflow_url": "http://127.0.0.1:9"})
