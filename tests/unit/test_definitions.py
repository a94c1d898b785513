"""Definitions: frozen, checked where they are written, and the same after a round trip through JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from manta import (
    AtLeast,
    AtMost,
    BeatsChampion,
    Calibrated,
    Column,
    Contract,
    Endpoint,
    Examples,
    FeatureTable,
    Ingest,
    Invariant,
    Kafka,
    Latency,
    LightGBM,
    Materialize,
    Memory,
    Monotone,
    NoLeakage,
    Parity,
    Signature,
    StreamFeatures,
    TimeSplit,
    Torch,
    Training,
)
from manta.connectors.files import Files
from manta.definitions import Definition, Ref, from_json, load_function
from manta.errors import DefinitionInvalid

CONTRACT = Contract(columns={"a": Column(type="int64", min=0), "t": Column(type="timestamp")}, key=("a",))
INGEST = Ingest(dataset="raw", source=Files(path="x.csv"), contract=CONTRACT)
TABLE = FeatureTable(dataset="table", inputs_from=("raw",), fn="jobs.a:f", key=("a",), time="t")
TRAINING = Training(
    model="late",
    fn="jobs.a:train",
    module="jobs.a:Net",
    trainer=Torch(workers=2),
    examples=Examples(dataset="raw", label="y", time="t"),
    features="v1",
    split=TimeSplit(test_from=datetime(2013, 11, 1, tzinfo=UTC)),
    gates=[AtLeast("roc_auc", 0.7), AtMost("ece", 0.1), BeatsChampion("roc_auc")],
    params={"epochs": 3},
)
TESTED = TRAINING.replace(
    repeats=5,
    card="For tests.",
    gates=[
        AtLeast("roc_auc", 0.7, by="carrier", min_rows=100),
        AtMost("ece", 0.1, any_seed=True),
        BeatsChampion("brier", tolerance=0.01, confidence=0.95),
        Calibrated(ece=0.1, slope=0.2),
        Invariant("carrier", at_most=0.1, values=("UA", 1, 2.5, True, None)),
        Monotone("wind", "up", step=1.0),
        NoLeakage(rows=500, params={"epochs": 1}),
        Latency(p95_ms=5),
        Memory(mb=100, rows=10),
        Signature(),
        Parity(keys=10),
    ],
)
OWN_LOOP = TRAINING.replace(
    fn=None, trainer=Torch(workers=2, strategy="fsdp", precision="bf16", accumulate=2, compile=True)
)
ENDPOINT = Endpoint(model="late", features="v1")
TOPIC = Kafka(servers="127.0.0.1:9092", topic="t")
OPEN = Contract(columns={"a": Column(type="int64"), "t": Column(type="timestamp")})
STREAM = StreamFeatures(dataset="clicks", source=TOPIC, contract=OPEN, features="v1")


@pytest.mark.parametrize(
    "definition", [INGEST, TABLE, Materialize(features="v1"), STREAM, TRAINING, OWN_LOOP, TESTED, ENDPOINT]
)
def test_json_and_back_is_the_same(definition: Definition) -> None:
    assert from_json(definition.to_json()) == definition


def test_an_altered_value_keeps_its_type() -> None:
    back = from_json(json.loads(json.dumps(TESTED.to_json())))
    assert isinstance(back, Training)
    gate = back.gates[4]
    assert isinstance(gate, Invariant)
    assert [type(value) for value in gate.values] == [str, int, float, bool, type(None)]


def test_how_the_own_loop_trains_is_no_part_of_older_definitions() -> None:
    assert TRAINING.to_json()["trainer"] == {
        "kind": "torch",
        "workers": 2,
        "use_gpu": None,
        "cpus_per_worker": 1.0,
    }
    assert TRAINING.replace(fn=None, trainer=Torch(accumulate=2)).to_json()["trainer"]["accumulate"] == 2
    assert LightGBM().model_dump() == {"kind": "lightgbm", "cpus": 1.0}
    assert LightGBM(workers=2).model_dump()["workers"] == 2


def test_a_card_says_something_of_a_model_and_makes_none_stale() -> None:
    assert TESTED.replace(card="").fingerprinted() == TESTED.fingerprinted()
    assert TESTED.replace(repeats=4).fingerprinted() != TESTED.fingerprinted()


@pytest.mark.parametrize(
    "make",
    [
        lambda: BeatsChampion("roc_auc", tolerance=-0.1),
        lambda: BeatsChampion("roc_auc", confidence=1.0),
        lambda: BeatsChampion("roc_auc", confidence=0.05),
        lambda: Invariant("carrier", at_most=0),
        lambda: NoLeakage(rows=3),
        lambda: Latency(p95_ms=0),
        lambda: AtLeast("roc_auc", 0.5, by="carrier", any_seed=True),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValidationError):
        make()


def test_names_are_taken_from_what_is_produced() -> None:
    assert [d.name for d in (INGEST, TABLE, TRAINING, ENDPOINT)] == ["raw", "table", "late", "late"]
    assert TRAINING.replace(name="late-smoke").model == "late"


def test_a_stream_is_an_ingest_whose_pace_makes_nothing_stale() -> None:
    assert (STREAM.name, STREAM.mode) == ("clicks", "append")
    assert STREAM.inputs() == (Ref("source", "clicks"), Ref("features", "v1"))
    assert STREAM.outputs() == (Ref("dataset", "clicks"),)
    assert STREAM.replace(seconds=5, poll_seconds=9).fingerprinted() == STREAM.fingerprinted()
    assert STREAM.replace(features="v2").fingerprinted() != STREAM.fingerprinted()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"source": Files(path="x.csv"), "mode": "append"}, "reads all each time"),
        ({"contract": OPEN.replace(min_rows=1)}, "min_rows: a batch may be one row"),
        (
            {"contract": Contract(columns={"t": Column(type="timestamp", fresh_within="1h")})},
            "fresh_within of t: a batch may be one row",
        ),
        ({"seconds": -1}, "seconds"),
        ({"poll_seconds": 0}, "poll_seconds"),
    ],
)
def test_a_stream_that_could_not_go_on_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DefinitionInvalid, match=says):
        STREAM.replace(**changes)


def test_a_definition_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TRAINING.pool = "a100"
    assert TRAINING.replace(pool="a100").pool == "a100"
    assert TRAINING.pool == "default"


def test_functions_are_named_by_where_they_stand() -> None:
    table = TABLE.replace(fn=load_function)
    assert table.fn == "manta.definitions.base:load_function"
    assert load_function(table.fn) is load_function
    with pytest.raises(DefinitionInvalid, match=r"jobs\.a:f cannot be imported"):
        load_function(TABLE.fn)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: INGEST.replace(dataset="Raw"), "dataset"),
        (lambda: INGEST.replace(colour="red"), "colour"),
        (lambda: TABLE.replace(fn=lambda x: x), "top level"),
        (lambda: TABLE.replace(partition_by=("b",)), "partition_by must be columns of the key"),
        (lambda: TRAINING.replace(trainer={"kind": "torch", "workers": 0}), "workers"),
        (
            lambda: TRAINING.replace(trainer=Torch(accumulate=2, compile=True)),
            "accumulate=2, compile=True is for",
        ),
        (lambda: TRAINING.replace(module=None), "takes module, and may take fn"),
        (
            lambda: TRAINING.replace(trainer={"kind": "torch", "precision": "fp16", "strategy": "fsdp"}),
            "bf16",
        ),
        (lambda: TRAINING.replace(trainer={"kind": "torch", "precision": "fp8"}), "precision"),
        (lambda: TRAINING.replace(gates=[{"kind": "nope"}]), "gates"),
        (lambda: TRAINING.replace(gates=[AtLeast("roc_auc", 0.5, any_seed=True)]), "needs repeats=2"),
        (lambda: TRAINING.replace(repeats=0), "repeats"),
        (lambda: ENDPOINT.replace(threshold=2), "threshold"),
    ],
)
def test_what_is_wrong_is_named(build: Any, words: str) -> None:
    with pytest.raises(DefinitionInvalid) as error:
        build()
    assert words in error.value.message


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Column(type="string", min=1), "bound numbers"),
        (lambda: Column(type="int64", one_of=("a",)), "'a' is no int64"),
        (lambda: Column(type="float64", one_of=(1,)), "hold for strings and integers"),
        (lambda: Column(type="string", pattern="a(?=b)"), "looks around"),
        (lambda: Contract(columns={"a": Column(type="int64")}, key=("b",)), "key names columns"),
        (lambda: TimeSplit(test_from=datetime(2013, 1, 1), validation_from=datetime(2013, 2, 1)), "before"),
    ],
)
def test_pieces_are_checked_too(build: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        build()


def test_an_unknown_kind_is_refused_with_those_there_are() -> None:
    with pytest.raises(DefinitionInvalid) as error:
        from_json({"kind": "ingestion", "name": "x"})
    assert "ingest" in error.value.hint


def test_what_is_read_and_produced() -> None:
    assert TABLE.inputs() == (Ref("dataset", "raw"),)
    assert TRAINING.inputs() == (Ref("dataset", "raw"), Ref("features", "v1"))
    assert TRAINING.outputs() == (Ref("model", "late"),)
    assert set(TRAINING.code()) == {"jobs.a:train", "jobs.a:Net"}


@pytest.mark.parametrize(
    ("path", "read_as"),
    [
        ("data/part-?.parquet", "parquet"),
        ("s3://lake/day=*/x.PQ", "parquet"),
        ("log.jsonl.gz", "jsonl"),
        ("https://example.com/rows.ndjson?page=2", "jsonl"),
        ("photos/*/*.JPG", "image"),
        ("x.csv.zip", "csv"),
        ("https://example.com/export?as=.parquet", "csv"),
        ("x", "csv"),
    ],
)
def test_files_are_read_as_their_ending_says_unless_told(path: str, read_as: str) -> None:
    assert Files(path=path).format == read_as
    assert Files(path=path, format="orc").format == "orc"
    assert Files(**Files(path=path).model_dump()).format == read_as


# --- tasks ----------------------------------------------------------------------------------------------


REGRESSION = TRAINING.replace(task="regression", gates=[AtMost("rmse", 12), BeatsChampion("mae")])
CLASSES = TRAINING.replace(task="multiclass", gates=[AtLeast("macro_f1", 0.8), AtMost("ece", 0.1)])


@pytest.mark.parametrize("training", [REGRESSION, CLASSES])
def test_a_task_is_kept_in_json_and_makes_another_definition(training: Training) -> None:
    assert from_json(json.loads(json.dumps(training.to_json()))) == training
    assert training.fingerprinted()["task"] == training.task


def test_what_is_binary_is_what_it_was_before_there_were_other_tasks() -> None:
    assert TRAINING.task == "binary"
    assert "task" not in TRAINING.to_json()
    assert TRAINING.replace(task="binary").fingerprinted() == TRAINING.fingerprinted()


@pytest.mark.parametrize(
    ("task", "gate", "says"),
    [
        ("binary", AtMost("rmse", 1), "'rmse' is not measured of a binary training: one of roc_auc"),
        ("binary", AtLeast("auc", 0.7), "'auc' is not measured"),
        (
            "multiclass",
            AtLeast("average_precision", 0.7),
            "one of roc_auc, accuracy, macro_f1, ece, log_loss",
        ),
        ("regression", BeatsChampion("roc_auc"), "one of rmse, mae, r2"),
        ("multiclass", Calibrated(ece=0.1), r'ask AtMost\("ece"'),
        ("regression", Calibrated(offset=1), r'ask AtMost\("mae"'),
        ("multiclass", Monotone("wind", "up", step=1), r"ask Invariant\('wind'"),
        ("binary", Invariant("carrier", at_most=2), "below 1, and 2 is not"),
        ("multiclass", Invariant("carrier", at_most=1), "below 1, and 1 is not"),
    ],
)
def test_a_gate_that_makes_no_sense_of_a_task_is_refused(task: str, gate: Any, says: str) -> None:
    with pytest.raises(DefinitionInvalid, match=says):
        TRAINING.replace(task=task, gates=[gate])


def test_a_change_of_a_number_may_be_larger_than_one() -> None:
    gates = [Invariant("carrier", at_most=30), Monotone("wind", "up", step=1), NoLeakage()]
    assert REGRESSION.replace(gates=gates).gates == tuple(gates)


def test_several_classes_have_no_baseline_of_one_number() -> None:
    assert REGRESSION.replace(baseline="wind").baseline == "wind"
    with pytest.raises(DefinitionInvalid, match="classes' shares"):
        CLASSES.replace(baseline="wind")
    with pytest.raises(DefinitionInvalid, match="task"):
        TRAINING.replace(task="ranking")
