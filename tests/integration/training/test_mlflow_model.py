"""A package as MLflow sees it: signature, example, pinned requirements, and the same answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import yaml

from manta.models import package, registry
from manta.models.graph import raw_graph
from tests.unit.models.test_model_package import CARD, FILES, PIXELS, summing
from tests.unit.serving import tiny

SAMPLE = {"carrier": "AA", "month": 2, "rain": True, "wind": 20.0}

ASK = """
import json, sys
import mlflow.pyfunc
from mlflow.models import Model
model = mlflow.pyfunc.load_model(sys.argv[1])
example = Model.load(sys.argv[1]).load_input_example(sys.argv[1])
rows = example.loc[[0, 0, 0]].reset_index(drop=True)
rows.loc[1, "carrier"] = None
rows.loc[2, "wind"] = float("nan")
print(json.dumps([float(p) for p in model.predict(rows)]))
print(json.dumps([name for name in ("ray", "torch", "feast") if name in sys.modules]))
"""


def test_mlflow_answers_what_the_package_answers(tmp_path: Path) -> None:
    location, digest = package.write(tmp_path / "delay", FILES, CARD | {"sample": SAMPLE})
    folder = tmp_path / "model"
    shutil.copytree(location, folder)
    registry._describe(folder, location, "run-1")  # as `Registry.record` writes it beside the package

    told = yaml.safe_load((folder / "MLmodel").read_text())
    inputs = {each["name"]: each["type"] for each in json.loads(told["signature"]["inputs"])}
    assert inputs == {"carrier": "string", "month": "long", "rain": "boolean", "wind": "double"}
    assert told["flavors"]["onnx"]["data"] == "model.onnx"
    wanted = {name: version(name) for name in ("manta-ml", "onnxruntime", "numpy", "mlflow", "pandas")}
    assert (folder / "requirements.txt").read_text() == "".join(
        f"{name}=={at}\n" for name, at in wanted.items()
    )
    assert json.loads((folder / "input_example.json").read_text()) == {
        "columns": list(SAMPLE),
        "data": [list(SAMPLE.values())],
    }
    # What MLflow keeps is the package, whole: it can be loaded from there as well.
    assert package.load(folder, digest).digest == digest

    done = subprocess.run(
        [sys.executable, "-c", ASK, str(folder)], capture_output=True, text=True, check=True
    )
    answered, engines = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    columns = {name: [value] * 3 for name, value in SAMPLE.items()}
    columns["carrier"] = ["AA", None, "AA"]
    columns["wind"] = [20.0, 20.0, None]
    assert answered == package.load(location, digest).predict(columns).tolist()
    assert engines == []


def test_of_several_classes_mlflow_answers_a_column_of_probabilities_each(tmp_path: Path) -> None:
    location, digest = tiny.write_package(tmp_path / "trip", 0.5, task="multiclass")
    folder = tmp_path / "model"
    shutil.copytree(location, folder)
    registry._describe(folder, Path(location), "run-1")
    told = yaml.safe_load((folder / "MLmodel").read_text())
    outputs = json.loads(told["signature"]["outputs"])
    assert [(each["name"], each["type"]) for each in outputs] == [(name, "float") for name in tiny.CLASSES]
    rows = {"rating": [5.0, None], "city": [None, None], "far": [0.0, 1.0]}
    answered = package._load_pyfunc(str(folder)).predict(pd.DataFrame(rows))
    assert list(answered.columns) == list(tiny.CLASSES)
    assert answered.to_numpy() == pytest.approx(package.load(location, digest).predict(rows))


ASK_VECTORS = """
import json, sys
import mlflow.pyfunc, pandas
from mlflow.models import Model
model = mlflow.pyfunc.load_model(sys.argv[1])
example = Model.load(sys.argv[1]).load_input_example(sys.argv[1])
rows = pandas.DataFrame({"pixels": [example["pixels"][0], [3.5, float("nan")], None]})
print(json.dumps([float(p) for p in model.predict(rows)]))
"""


def test_mlflow_answers_vectors(tmp_path: Path) -> None:
    graph = raw_graph(PIXELS, summing()).SerializeToString()
    card = {"inputs": PIXELS.inputs, "sample": {"pixels": [1.0, 2.0]}}
    location, digest = package.write(tmp_path / "looks", {package.GRAPH: graph}, card)
    folder = tmp_path / "model"
    shutil.copytree(location, folder)
    registry._describe(folder, location, "run-1")

    told = yaml.safe_load((folder / "MLmodel").read_text())
    (pixels,) = json.loads(told["signature"]["inputs"])
    assert (pixels["name"], pixels["type"], pixels["items"]) == ("pixels", "array", {"type": "double"})
    done = subprocess.run(
        [sys.executable, "-c", ASK_VECTORS, str(folder)], capture_output=True, text=True, check=True
    )
    expected = package.load(location, digest).predict({"pixels": [[1.0, 2.0], [3.5, None], None]})
    assert json.loads(done.stdout.splitlines()[-1]) == expected.tolist()
