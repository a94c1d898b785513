"""The digits, from files to answers: images ingested, made into vectors, trained on, packaged, asked."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from jobs import digit_images
from jobs.digits import digit
from manta.data.lake import Lake
from manta.definitions import Definition, Endpoint, FeatureRepo, from_json
from manta.errors import RequestInvalid
from manta.ledger.context import RunContext
from manta.ledger.runs import Run
from manta.models import package
from manta.serving import core
from manta.serving.core import Loaded
from manta.serving.http import json_of
from manta.serving.protocols import predict
from manta.settings import Settings
from manta.worker.__main__ import EXECUTORS
from tests.integration.training.conftest import Bench

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[3]
STEPS: tuple[Definition, ...] = (
    digit_images.digit_files,
    digit_images.digit_images,
    digit_images.digits,
    FeatureRepo(),
    digit_images.online,
    digit,
)
ENDPOINT = Endpoint(model="digit", features="digits_v1")


class Project(Bench):
    """The repository's own definitions, over an empty state folder."""

    def context(self, run: Run) -> RunContext:
        return RunContext(self.settings, self.ledger, run, from_json(run.definition), ROOT)

    def carry_out(self, definition: Definition) -> RunContext:
        context = self.context(self.start(definition.kind, definition.name, definition.to_json()))
        importlib.import_module(EXECUTORS[definition.kind][0]).execute(context)
        self.succeeded(context)
        return context


def test_from_files_to_answers(ray_cluster: None, settings: Settings, mlflow_server: str) -> None:
    project = Project(settings)
    made = {each.name: project.carry_out(each) for each in STEPS}
    assert made["digit_images"].metrics == {"rows": 1797, "refused": 0}
    assert made["digits_online"].metrics["online_parity"]["skewed"] == 0
    table = Lake(settings.datasets).read("digits").sort("image")
    held_out = table.filter(pl.col("written_at") >= digit.split.test_from)
    trained = made["digit"]
    (model,) = trained.outputs

    # As good as scikit-learn's own classifier on the same rows, by a count of our own.
    packaged = package.load(model.detail["location"], model.detail["digest"])
    assert packaged.inputs == {"pixels": "float32[64]"}
    answers = packaged.predict({"pixels": held_out["pixels"].to_list()})
    answered = [packaged.classes[at] for at in answers.argmax(axis=1)]
    right = np.mean(np.array(answered) == held_out["digit"].cast(pl.String).to_numpy())
    assert trained.metrics["accuracy"] == pytest.approx(right)
    assert right >= _oracle(held_out.height) - 0.02

    loaded = core.load(ENDPOINT, {name: model.detail[name] for name in ("location", "digest", "manifest")}
                       | {"version": model.version})  # fmt: skip
    _asked_by_keys_and_by_rows(loaded, held_out.head(5), answers[:5])
    _mlflow_gives_the_same(mlflow_server, model.detail["mlflow_run"], held_out.head(5), answers[:5])

    # Executed again after a kill, it ends in the same state, and trains nothing anew.
    again = project.context(project.ledger.run(trained.run.id))
    importlib.import_module(EXECUTORS["training"][0]).execute(again)
    assert again.outputs == trained.outputs


def _oracle(rows: int) -> float:
    digits = load_digits()
    fitted = SVC(gamma=0.001).fit(digits.data[:-rows], digits.target[:-rows])
    return float(fitted.score(digits.data[-rows:], digits.target[-rows:]))


def _ask(loaded: Loaded, body: dict[str, Any]) -> list[dict[str, Any]]:
    form, rows = predict.parse(json.dumps(body).encode(), ENDPOINT)
    ask_by = core.by_keys if form == "keys" else core.by_rows
    answered = json_of(ask_by(ENDPOINT, loaded, rows, show_features=False))
    predictions: list[dict[str, Any]] = json.loads(answered.content)
    return predictions


def _asked_by_keys_and_by_rows(loaded: Loaded, rows: pl.DataFrame, answers: np.ndarray) -> None:
    by_keys = _ask(loaded, {"keys": rows.select("image").to_dicts()})
    by_rows = _ask(loaded, {"rows": rows.select("pixels").to_dicts()})
    assert by_keys == by_rows
    for each, answer in zip(by_keys, answers, strict=True):
        assert list(each["probabilities"].values()) == pytest.approx(answer.tolist(), abs=1e-6)
        assert each["prediction"] == loaded.package.classes[answer.argmax()]
    assert _ask(loaded, loaded.example)
    with pytest.raises(
        RequestInvalid, match="pixels: the model takes vectors of 64 numbers, and row 0 has 63"
    ):
        _ask(loaded, {"rows": {"pixels": [0.0] * 63}})


def _mlflow_gives_the_same(url: str, run: str, rows: pl.DataFrame, answers: np.ndarray) -> None:
    import mlflow

    mlflow.set_tracking_uri(url)
    loaded = mlflow.pyfunc.load_model(f"runs:/{run}/model")
    assert loaded.predict(rows.select("pixels").to_pandas()).to_numpy() == pytest.approx(answers, abs=1e-6)
