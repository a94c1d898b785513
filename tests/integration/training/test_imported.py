"""Models that were made elsewhere: taken in by a training, held to its rows and gates, answering the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import pytest
import xgboost
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load as load_tensors
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from manta.control import imports
from manta.data.lake import Lake
from manta.definitions import AtLeast, Imported, Training
from manta.errors import DefinitionInvalid, GateFailed, ModelRefused, NotFound, TrainingInvalid
from manta.ledger.context import RunContext
from manta.models import package
from manta.training import run as training_run
from tests.integration.training.conftest import Bench
from tests.integration.training.test_training_run import GOOD

GATED = GOOD.replace(params={}, gates=(AtLeast("roc_auc", 0.8),))


@pytest.fixture(scope="module")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """MLflow without a server; making its tables takes seconds, so all tests share them."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


class Door:
    """What the platform does with an import, up to the run's end."""

    def __init__(self, bench: Bench, project: str) -> None:
        self.bench = bench
        bench.settings = bench.settings.model_copy()
        self.project = project

    def begin(self, content: bytes, file: str, training: Training = GATED) -> RunContext:
        sha256 = hashlib.sha256(content).hexdigest()
        imports.put(self.bench.settings, sha256, content)
        return self.bench.begin(training.replace(trainer=Imported(sha256=sha256, file=file)))

    def take(self, content: bytes, file: str, training: Training = GATED) -> RunContext:
        context = self.begin(content, file, training)
        training_run.execute(context)
        self.bench.succeeded(context)
        return context

    @property
    def champion(self) -> str | None:
        return self.bench.ledger.aliases.get("test", "delay", "champion")


@pytest.fixture
def door(bench: Bench, mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Door:
    monkeypatch.chdir(tmp_path)  # where MLflow without a server keeps artifacts
    bench.settings = bench.settings.model_copy(update={"mlflow_url": mlflow_store})
    return Door(bench, "test")


@pytest.fixture
def rows(bench: Bench) -> tuple[pl.DataFrame, np.ndarray]:
    """Features and labels to fit with, joined by hand: what the scientist has at her desk."""
    lake = Lake(bench.settings.datasets)
    flights, weather = lake.read("flights").drop_nulls("late"), lake.read("weather")
    joined = flights.sort("at").join_asof(weather.sort("at"), on="at", by="origin", check_sortedness=False)
    return joined, joined["late"].to_numpy().astype(np.int64)


def sklearn_graph(rows: pl.DataFrame, labels: np.ndarray, **options: Any) -> tuple[Any, bytes]:
    """A pipeline over a number and a text, as skl2onnx writes it: inputs by name, label and probabilities."""
    made = make_pipeline(
        ColumnTransformer(
            [
                ("numbers", SimpleImputer(strategy="mean"), ["wind"]),
                ("texts", OneHotEncoder(handle_unknown="ignore"), ["sky"]),
            ]
        ),
        LogisticRegression(C=10),
    )
    frame = rows.select("wind", pl.col("sky").fill_null("")).to_pandas()
    made.fit(frame, labels)
    types = [("wind", FloatTensorType([None, 1])), ("sky", StringTensorType([None, 1]))]
    proto = to_onnx(made, initial_types=types, options={"zipmap": False} | options, target_opset=17)
    return made, proto.SerializeToString()


def loaded(context: RunContext) -> package.Package:
    (version,) = (each for each in context.outputs if each.kind == "model")
    return package.load(version.detail["location"], version.detail["digest"])


def test_a_pipeline_of_scikit_learn_is_held_to_the_gates_and_promoted(
    door: Door, rows: tuple[pl.DataFrame, np.ndarray]
) -> None:
    frame, labels = rows
    made, content = sklearn_graph(frame, labels)
    context = door.take(content, "model.onnx")
    (made_version,) = context.outputs
    assert door.champion == made_version.version
    assert context.metrics["parity"] < 1e-6
    held = frame.filter(pl.col("at") >= GATED.split.test_from)
    theirs = made.predict_proba(held.select("wind", pl.col("sky").fill_null("")).to_pandas())[:, 1]
    ours = loaded(context).predict({name: held[name].to_list() for name in ("wind", "sky")})
    assert np.abs(ours - theirs).max() < 1e-5
    truth = held["late"].to_numpy().astype(int)
    assert context.metrics["roc_auc"] == pytest.approx(roc_auc_score(truth, theirs), abs=1e-4)
    assert loaded(context).inputs == {"wind": "float32", "sky": "string"}
    # What is missing or was never seen is answered as scikit-learn answers it.
    odd = {"wind": [None, 4.0, float("nan")], "sky": ["rain", "never seen", None]}
    wanted = made.predict_proba(
        pl.DataFrame({"wind": [None, 4.0, None], "sky": ["rain", "never seen", ""]}).to_pandas()
    )[:, 1]
    assert np.abs(loaded(context).predict(odd) - wanted).max() < 1e-6

    # Executed again, after it was killed at its end: the same.
    again = door.bench.context(door.bench.ledger.run(context.run.id))
    training_run.execute(again)
    assert again.outputs == context.outputs


def test_xgboost_json_and_ubj_answer_what_xgboost_answers(
    door: Door, rows: tuple[pl.DataFrame, np.ndarray]
) -> None:
    frame, labels = rows
    values = frame.select(pl.col("wind").cast(pl.Float32)).to_numpy()
    matrix = xgboost.DMatrix(values, labels, feature_names=["wind"])
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 4, "gamma": 0.2}, matrix, 30)
    easier = GATED.replace(gates=(AtLeast("roc_auc", 0.7),))
    for form in ("json", "ubj"):
        context = door.take(bytes(booster.save_raw(form)), f"model.{form}", easier)
        ours = loaded(context).predict({"wind": values[:, 0]})
        assert np.isnan(values).any(), "missing values go where the trees send them"
        assert np.abs(ours - booster.predict(matrix)).max() < 1e-6
    assert door.champion == context.outputs[0].version
    digests = {each.detail["digest"] for each, _ in door.bench.ledger.made("test", "model")}
    assert len(digests) == 2


def test_weights_in_safetensors_go_into_the_trainings_module(door: Door) -> None:
    import torch
    from safetensors.torch import save

    from tests.integration.training.training_loops import Net

    torch.manual_seed(5)
    net = Net({"categories": [4], "numbers": 2})
    any_ = GATED.replace(gates=())
    context = door.take(save(net.state_dict()), "weights.safetensors", any_)
    (version,) = context.outputs
    kept = load_tensors((Path(version.detail["location"]) / "model.safetensors").read_bytes())
    assert {name: value.tolist() for name, value in kept.items()} == {
        name: value.tolist() for name, value in net.state_dict().items()
    }
    card = json.loads((Path(version.detail["location"]) / "package.json").read_text())
    assert "model.safetensors" in card["files"]
    assert "model.pt" not in card["files"]
    other = Net({"categories": [9], "numbers": 2})
    with pytest.raises(ModelRefused, match=r"size mismatch"):
        door.take(save(other.state_dict()), "weights.safetensors", any_)
    without = any_.replace(fn=None, module=None, trainer=Imported(sha256="0" * 64))
    with pytest.raises(TrainingInvalid, match="has no module"):
        door.take(save(net.state_dict()), "weights.safetensors", without)


def test_one_that_does_not_pass_is_recorded_and_not_promoted(
    door: Door, rows: tuple[pl.DataFrame, np.ndarray]
) -> None:
    frame, labels = rows
    _, content = sklearn_graph(frame, 1 - labels)  # it says the opposite
    with pytest.raises(GateFailed, match=r"roc_auc is 0\.[01]"):
        door.take(content, "model.onnx")
    assert door.champion is None


def test_a_file_that_may_not_be_loaded_ends_the_run_before_anything_is_made(
    door: Door, tmp_path: Path
) -> None:
    for content, file, match in [
        (b"\x80\x04K\x01.", "model.onnx", "is a pickle"),
        (b"", "model.onnx", "is empty"),
        (b"PK\x03\x04", "model.zip", "damaged zip"),
    ]:
        context = door.begin(content, file)
        with pytest.raises(ModelRefused, match=match):
            training_run.execute(context)
        assert context.outputs == []
    assert not (door.bench.settings.home / "models").exists()
    changed = door.begin(b"anything", "model.onnx")
    path = imports.path_of(door.bench.settings, changed.definition.trainer.sha256)
    path.write_bytes(b"something")
    with pytest.raises(ModelRefused, match="has been changed"):
        training_run.execute(changed)
    path.unlink()
    with pytest.raises(NotFound, match="no model with the digest"):
        training_run.execute(changed)


def graph(
    inputs: dict[str, int], nodes: list[Any], output: tuple[str, int, list[Any]], held: dict[str, Any]
) -> bytes:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, ["n"]) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(*output)],
        initializer=[numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    return bytes(helper.make_model(made, opset_imports=opsets, ir_version=9).SerializeToString())


def linear(**changes: Any) -> bytes:
    """Of wind alone, in float64: its sigmoid, or what is asked for instead."""
    kind = changes.get("kind", TensorProto.DOUBLE)
    nodes = [
        helper.make_node("IsNaN", ["wind"], ["nan"]),
        helper.make_node("Where", ["nan", "five", "wind"], ["known"]),
        helper.make_node("Sub", ["known", "five"], ["above"]),
        helper.make_node("Mul", ["above", "gain"], ["x"]),
        helper.make_node(changes.get("last", "Sigmoid"), ["x"], ["probability"]),
    ]
    dtype = np.float64 if kind == TensorProto.DOUBLE else np.float32
    held = {"five": np.array(5, dtype=dtype), "gain": np.array(changes.get("gain", 1), dtype=dtype)}
    name = changes.get("name", "wind")
    for node in nodes:
        for at, given in enumerate(node.input):
            node.input[at] = name if given == "wind" else given
    return graph({name: kind}, nodes, ("probability", kind, ["n"]), held)


def test_float64_is_fed_as_float64(door: Door) -> None:
    easier = GATED.replace(gates=(AtLeast("roc_auc", 0.6),))
    steep = linear(gain=1e9)
    packaged = loaded(door.take(steep, "model.onnx", easier))
    assert packaged.inputs == {"wind": "float64"}
    wind = 5 + 1e-9  # which float32 does not tell from 5
    session = onnxruntime.InferenceSession(steep)
    (wanted,) = session.run(None, {"wind": np.array([wind, 9.0])})
    assert packaged.predict({"wind": [wind, 9.0]}).tolist() == wanted.astype(np.float32).tolist()
    assert wanted[0] > 0.7
    assert packaged.predict({"wind": [None]}).tolist() == [0.5]


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (linear(last="Neg"), TrainingInvalid, "and not probabilities"),
        (
            linear(name="visibility"),
            ModelRefused,
            "takes visibility, which the feature service does not have",
        ),
        (
            graph(
                {"sky": TensorProto.FLOAT},
                [helper.make_node("Sigmoid", ["sky"], ["probability"])],
                ("probability", TensorProto.FLOAT, ["n"]),
                {},
            ),
            ModelRefused,
            "takes sky as float32, and it is of type string",
        ),
        (
            graph(
                {"wind": TensorProto.INT64},
                [helper.make_node("Cast", ["wind"], ["probability"], to=1)],
                ("probability", TensorProto.FLOAT, ["n"]),
                {},
            ),
            ModelRefused,
            "takes wind as int64, and it is of type float32",
        ),
        (
            graph(
                {"wind": TensorProto.FLOAT},
                [
                    helper.make_node("Sigmoid", ["wind"], ["p"]),
                    helper.make_node("ReduceMean", ["p"], ["probability"], keepdims=1),
                ],
                ("probability", TensorProto.FLOAT, ["m"]),
                {},
            ),
            TrainingInvalid,
            "answers shape",
        ),
    ],
)
def test_what_does_not_fit_the_features_is_refused(
    door: Door, content: bytes, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        door.take(content, "model.onnx", GATED.replace(gates=()))
    assert door.champion is None


def test_the_definition_can_name_an_import_too() -> None:
    assert GATED.replace(trainer=Imported(sha256="a" * 64, file="m.onnx")).fn == GATED.fn
    for wrong in (
        {"sha256": "x"},
        {"sha256": "a" * 64, "file": "../m.onnx"},
        {"sha256": "a" * 64, "file": ""},
    ):
        with pytest.raises((DefinitionInvalid, ValueError)):
            GATED.replace(trainer={"kind": "imported", **wrong})
