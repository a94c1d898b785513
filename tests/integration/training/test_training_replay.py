"""A training is repeated without touching the champion; its secrets are known to its loop alone."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest
import ray

from manta import Secret
from manta.definitions import AtLeast, Torch, Training
from manta.errors import TrainingInvalid
from manta.ledger.actor import OWNER
from manta.ledger.comparison import comparison_of
from manta.ledger.runs import EndReason, State
from manta.models.registry import Registry
from manta.secrets import remember
from manta.training import run as training_run
from manta.worker.replay import repeat
from tests.integration.training.conftest import Bench
from tests.integration.training.test_training_run import GOOD, _client

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture
def token(tmp_path: Path) -> str:
    """What the file holds that the training's parameter names."""
    token = f"canary{secrets.token_hex(12)}"
    (tmp_path / "token").write_text(token + "\n")
    return token


def small(tmp_path: Path, **params: Any) -> Training:
    given = {"epochs": 1, "rate": 0.03, "token": Secret(f"file:{tmp_path}/token"), **params}
    return GOOD.replace(trainer=Torch(workers=1), params=given, gates=(AtLeast("roc_auc", 0.5),))


def test_repeated_beside_the_champion(
    ray_cluster: None, bench: Bench, mlflow_server: str, tmp_path: Path, token: str
) -> None:
    first = bench.begin(small(tmp_path))
    training_run.execute(first)
    bench.succeeded(first)
    run = bench.ledger.submit(
        key="replay",
        project="test",
        job=first.run.job,
        kind="training",
        definition=first.run.definition,
        fingerprint="f",
        package="",
        by=OWNER,
        replay_of=first.run.id,
    )
    again = bench.context(bench.ledger.move(bench.ledger.start(run, "again-1"), State.RUNNING))
    repeat(training_run.execute, again)
    bench.ledger.move(
        bench.ledger.run(run.id),
        State.SUCCEEDED,
        end_reason=EndReason.DONE,
        outputs=again.outputs,
        metrics=again.metrics,
    )
    found = comparison_of(bench.ledger.run(run.id))
    assert found.equal is True, found
    assert [output.output for output in found.outputs] == ["model:delay"]
    assert again.outputs[0].version == f"replay-{run.id}"
    assert bench.ledger.aliases.get("test", "delay", "champion") == "1"
    registry = Registry(mlflow_server, "test")
    assert len(_client(registry).search_model_versions("name = 'test.delay'")) == 1
    assert [each.version for each, _ in bench.ledger.made("test", "model")] == ["1"]
    named = _client(registry).get_run(first.metrics["mlflow_run"]).data.params["token"]
    assert named == f"${{file:{tmp_path}/token}}"


def test_a_loop_that_tells_its_secret(
    ray_cluster: None,
    bench: Bench,
    tmp_path: Path,
    token: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Registry, "check", lambda self: None)  # it does not get that far
    telling = bench.begin(small(tmp_path, tell=True))
    remember(telling.run.definition)  # as the worker does
    with pytest.raises(TrainingInvalid, match=r"no log-in with \[secret file:"):
        training_run.execute(telling)

    session = Path(ray._private.worker._global_node.get_session_dir_path())  # type: ignore[union-attr]
    logs = [path for path in (session / "logs").rglob("*") if path.is_file()]
    told = [path for path in logs if b"the token is [secret file:" in path.read_bytes()]
    assert told, "the loop's output is nowhere"
    for path in [*logs, *bench.settings.home.rglob("*")]:
        assert not path.is_file() or token.encode() not in path.read_bytes(), path
