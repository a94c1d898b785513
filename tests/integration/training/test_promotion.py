"""Promotion against a real registry and ledger: races, champions that cannot be compared, withdrawals."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from onnx import TensorProto, helper

from manta.definitions import AtLeast, BeatsChampion, Examples, Parity, TimeSplit, Training
from manta.errors import Conflict, GateFailed
from manta.ledger.context import RunContext
from manta.ledger.parity import Cause, Example, ParityReport, Skewed
from manta.models import package
from manta.models.encoding import Encoding
from manta.models.graph import OPSET, raw_graph
from manta.models.registry import Registry
from manta.training.evaluate import predict, score
from manta.training.promotion import Candidate, among, incomparable, promote
from manta.training.slices import Held
from tests.integration.training.conftest import Bench

ROWS = pl.DataFrame({"wind": [-2.0, -1.0, 1.0, 2.0], "rain": [0.0, 3.0, 0.0, 3.0]})
LABELS = np.array([0, 0, 1, 1], dtype=np.float32)
HELD = Held(ROWS, ROWS, "at", LABELS)
TRAINING = Training(
    model="delay",
    fn="training_loops:train",
    module="training_loops:Net",
    examples=Examples(dataset="flights", label="late", time="at"),
    features="weather_v1",
    split=TimeSplit(test_from=datetime(2013, 2, 20)),
    gates=(BeatsChampion("roc_auc"),),
)


def first_number(features: list[str]) -> bytes:
    """A packaged graph whose logit is the first feature, with a flag for each."""
    encoding = Encoding(vocabularies={}, moments=dict.fromkeys(features, (0.0, 1.0)), types={})
    ints = [("from", [0]), ("to", [1]), ("axis", [1])]
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["numbers", "from", "to", "axis"], ["first"]),
            helper.make_node("Squeeze", ["first", "axis"], ["logits"]),
        ],
        "first",
        [
            helper.make_tensor_value_info("categories", TensorProto.INT64, ["n", 0]),
            helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["n", 2 * len(features)]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n"])],
        initializer=[helper.make_tensor(name, TensorProto.INT64, [1], value) for name, value in ints],
    )
    module = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    whole: onnx.ModelProto = raw_graph(encoding, module)
    return whole.SerializeToString(deterministic=True)


class Case:
    """Trainings of one model that come as far as promotion."""

    def __init__(self, bench: Bench, registry: Registry) -> None:
        self.bench = bench
        self.registry = registry

    def candidate(self, features: list[str], training: Training = TRAINING) -> tuple[RunContext, Candidate]:
        context = self.bench.begin(training)
        card = {"inputs": dict.fromkeys(features, "float32"), "run": context.run_key}
        folder = self.bench.settings.home / "models" / "test" / "delay"
        location, digest = package.write(folder, {package.GRAPH: first_number(features)}, card)
        metrics = score(LABELS, predict(package.load(location, digest), ROWS))
        figures = self.bench.settings.home / "figures"
        figures.mkdir(exist_ok=True)
        run = self.registry.record(
            context.run_key,
            "delay",
            params={},
            metrics=metrics,
            reports=[],
            tags={},
            figures=figures,
            location=location,
        )
        return context, Candidate(run, metrics, location, digest, "manifest.json")

    def promote(self, features: list[str], registry: Registry | None = None) -> str:
        context, candidate = self.candidate(features)
        version = promote(context, registry or self.registry, candidate, HELD)
        where = {"location": str(candidate.location), "digest": candidate.digest}
        context.produced("model", "delay", version, **where)
        self.bench.succeeded(context)
        return version

    @property
    def champion(self) -> str | None:
        return self.bench.ledger.aliases.get("test", "delay", "champion")

    @property
    def versions(self) -> list[str]:
        with self.registry._answering() as client:
            found = client.search_model_versions(f"name = '{self.registry.name('delay')}'")
            return sorted(str(version.version) for version in found)


@pytest.fixture(scope="module")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """MLflow without a server; making its tables takes seconds, so all tests share them."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def case(bench: Bench, mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.chdir(tmp_path)  # where MLflow without a server keeps artifacts
    return Case(bench, Registry(mlflow_store, tmp_path.name))


GOOD, BAD = ["wind", "rain"], ["rain", "wind"]


def test_the_better_one_takes_the_alias_and_mlflow_shows_it(case: Case) -> None:
    assert case.promote(BAD) == case.champion == "1"
    assert case.promote(GOOD) == case.champion == "2"
    with pytest.raises(GateFailed, match="failed by 0"):
        case.promote(BAD)
    assert case.champion == "2"
    assert case.versions == ["1", "2"]
    with case.registry._answering() as client:
        shown = client.get_model_version_by_alias(case.registry.name("delay"), "champion")
    assert str(shown.version) == "2"


class Overtaken(Registry):
    """Somebody else acts just before each registration."""

    def __init__(self, registry: Registry, act: Callable[[], None]) -> None:
        super().__init__(registry.url, registry.project)
        self._act = act

    def register(self, model: str, run: str, tags: Mapping[str, str]) -> str:
        self._act()
        return super().register(model, run, tags)


def test_a_champion_that_was_faster_is_what_counts(case: Case) -> None:
    case.promote(BAD)
    others = iter([lambda: case.promote(GOOD)])
    overtaken = Overtaken(case.registry, lambda: next(others, lambda: None)())
    with pytest.raises(GateFailed, match="version 2"):
        case.promote(BAD, overtaken)
    assert case.champion == "2"
    assert case.versions == ["1", "2"]  # it had been registered as version 3, and was withdrawn


def test_as_good_as_the_faster_one_follows_it(case: Case) -> None:
    others = iter([lambda: case.promote(GOOD)])
    overtaken = Overtaken(case.registry, lambda: next(others, lambda: None)())
    assert case.promote(GOOD, overtaken) == case.champion
    assert len(case.versions) == 2


def test_who_is_always_overtaken_gives_up_and_leaves_nothing(case: Case) -> None:
    with pytest.raises(Conflict, match="3 times"):
        case.promote(GOOD, Overtaken(case.registry, lambda: case.promote(GOOD) and None))
    assert case.champion == "4"
    assert case.versions == ["1", "3", "4"]  # version 2 was its own


def test_a_champion_that_takes_a_feature_that_is_gone_blocks_unless_the_gate_is_taken_out(case: Case) -> None:
    case.promote(BAD)
    context, candidate = case.candidate(["wind"])
    with pytest.raises(GateFailed, match=r"version 1.*it takes rain"):
        promote(context, case.registry, candidate, replace(HELD, features=ROWS.drop("rain")))
    assert case.champion == "1"
    assert candidate.metrics["roc_auc"] == 1
    lifted = TRAINING.replace(gates=(AtLeast("roc_auc", 0.9),))
    context, candidate = case.candidate(["wind"], lifted)
    version = promote(context, case.registry, candidate, replace(HELD, features=ROWS.drop("rain")))
    assert version == case.champion


def test_a_champion_whose_package_was_changed_blocks(case: Case) -> None:
    case.promote(BAD)
    detail = case.bench.ledger.made("test", "model")[0][0].detail
    graph = Path(detail["location"]) / package.GRAPH
    graph.write_bytes(graph.read_bytes() + b" ")
    with pytest.raises(GateFailed, match="has been changed"):
        case.promote(GOOD)
    _, other = case.candidate(GOOD)
    shutil.rmtree(detail["location"])
    shutil.copytree(other.location, detail["location"])
    with pytest.raises(GateFailed, match="not the one that was registered"):
        case.promote(GOOD)
    assert case.champion == "1"


def test_executed_again_after_the_alias_moved(case: Case) -> None:
    context, candidate = case.candidate(GOOD)
    first = promote(context, case.registry, candidate, HELD)
    assert promote(context, case.registry, candidate, HELD) == first == case.champion
    assert case.versions == [first]


def test_a_model_whose_features_differ_online_is_not_registered(case: Case) -> None:
    at = datetime(2024, 5, 1, tzinfo=UTC)
    example = Example(keys={"origin": "EWR"}, at=at, offline="1.5", online="missing")
    skewed = Skewed(view="weather", feature="wind", cause=Cause.JOIN, values=9, of=50, example=example)
    found = ParityReport(
        service="weather_v1",
        watermark=at,
        rows=50,
        values=100,
        skewed=9,
        compared={"weather.wind": 50},
        found=(skewed,),
    )
    training = TRAINING.replace(gates=(Parity(keys=50),))
    context, candidate = case.candidate(GOOD, training)
    with pytest.raises(GateFailed, match=r"9 of 100 values .* join in weather.wind") as refused:
        promote(context, case.registry, candidate, HELD, found)
    assert "see how keys are mapped" in refused.value.hint
    assert case.champion is None
    assert case.versions == []
    same = found.model_copy(update={"skewed": 0, "found": ()})
    assert promote(context, case.registry, candidate, HELD, same) == case.champion == "1"


def test_a_champion_that_answers_something_else_cannot_be_compared() -> None:
    def champion(**card: Any) -> package.Package:
        return package.Package({"inputs": {"wind": "float32"}, **card}, first_number(["wind"]), "", 1)

    several = replace(HELD, task="multiclass", classes=("a", "b", "c"))
    assert incomparable(champion(), HELD) == ""
    assert "rain" in incomparable(
        champion(inputs={"rain": "float32"}), replace(HELD, features=ROWS[["wind"]])
    )
    assert incomparable(champion(), several) == "it is a binary model, and this one a multiclass model"
    fewer, other = (champion(task="multiclass", classes=names) for names in (["c", "a"], ["a", "d"]))
    assert incomparable(fewer, several) == ""
    assert "answers d, which is no label any more" in incomparable(other, several)
    answers = among(fewer.classes, several.classes, np.array([[0.9, 0.1], [0.3, 0.7]]))
    assert answers.tolist() == [[0.1, 0, 0.9], [0.7, 0, 0.3]], "what it does not know, it never answers"
