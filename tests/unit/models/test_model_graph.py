"""The graph that answers requests computes what the encoder and the torch module compute."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.errors import TrainingInvalid
from manta.models.encoding import Encoding
from manta.models.graph import _encoder, raw_graph
from manta.models.package import Package
from manta.training import encoder
from manta.training.encoder import Arrays
from manta.training.evaluate import predict

torch = pytest.importorskip("torch")
from manta.training.trainers.torch import TorchModel  # noqa: E402


class Net(torch.nn.Module):  # type: ignore[misc]
    """Embeddings and a hidden layer, like what is served."""

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        self.tables = torch.nn.ModuleList(torch.nn.Embedding(size, 3) for size in shape["categories"])
        width = 3 * len(shape["categories"]) + shape["numbers"]
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(width, 8),
            torch.nn.BatchNorm1d(8),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.5),
            torch.nn.Linear(8, 1),
        )

    def forward(self, categories: Any, numbers: Any) -> Any:
        found = [table(categories[:, at]) for at, table in enumerate(self.tables)]
        return self.layers(torch.cat([*found, numbers], dim=1)).squeeze(-1)


TRAIN = pl.DataFrame(
    {
        "carrier": ["UA", "AA", "UA", "AA", "ü", "ü"],
        "month": [1, 2, 1, 2, 3, 3],
        "wind": [1e6 + 1, 1e6 + 3, None, float("nan"), float("inf"), 1e6 + 5],
        "rain": [True, False, True, False, None, True],
    }
)


def packaged(rows: pl.DataFrame, categories: list[str] | None = None) -> tuple[Package, Encoding, TorchModel]:
    torch.manual_seed(3)
    encoding = encoder.fit(rows, categories)
    model = TorchModel(Net(encoding.shape).eval(), encoding.shape, [])
    graph = raw_graph(encoding, model.graph()).SerializeToString(deterministic=True)
    return Package({"inputs": encoding.inputs}, graph, "", 1), encoding, model


@pytest.fixture(scope="module")
def mixed() -> tuple[Package, Encoding, TorchModel]:
    return packaged(TRAIN, ["carrier", "month"])


def differ(parts: tuple[Package, Encoding, TorchModel], rows: pl.DataFrame) -> float:
    package, encoding, model = parts
    answered = predict(package, rows)
    assert answered.dtype == np.float32
    assert answered.shape == (rows.height,)
    return float(np.abs(answered - model.probabilities(encoder.encode(encoding, rows))).max(initial=0))


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "carrier": st.one_of(st.none(), st.sampled_from(["UA", "AA", "ü", "", "ua", "NEW", " UA"])),
                "month": st.one_of(st.none(), st.integers(-5, 14)),
                "wind": st.one_of(
                    st.none(), st.floats(9e5, 2e6), st.sampled_from([math.nan, math.inf, -math.inf, 1e300])
                ),
                "rain": st.one_of(st.none(), st.booleans()),
            }
        ),
        max_size=20,
    )
)
@settings(max_examples=60, deadline=None)
def test_any_rows_get_the_probability_that_torch_computes(
    mixed: tuple[Package, Encoding, TorchModel], rows: list[dict[str, Any]]
) -> None:
    assert differ(mixed, pl.DataFrame(rows, schema=TRAIN.schema)) <= 1e-6


def test_unknown_and_missing_are_the_same_and_differ_from_known(
    mixed: tuple[Package, Encoding, TorchModel],
) -> None:
    rows = pl.concat([TRAIN.head(1)] * 4).with_columns(carrier=pl.Series(["UA", "NEW", None, ""]))
    known, unknown, missing, empty = predict(mixed[0], rows)
    assert unknown == missing == empty != known


@pytest.mark.parametrize("names", [["carrier"], ["wind", "rain"], ["wind"], ["carrier", "month"]])
def test_features_of_one_kind_only(names: list[str]) -> None:
    rows = TRAIN.select(names)
    assert differ(packaged(rows, [name for name in ("carrier", "month") if name in names]), rows) <= 1e-6


def test_a_vocabulary_without_values() -> None:
    rows = pl.DataFrame({"carrier": ["a", "b", None], "wind": [1.0, 2.0, 3.0]})
    parts = packaged(rows)
    assert parts[1].vocabularies == {"carrier": ()}
    assert differ(parts, rows) <= 1e-6


WITH_VECTORS = pl.DataFrame(
    {
        "carrier": ["UA", "AA", "UA", "AA"],
        "wind": [1.0, None, 3.0, 5.5],
        "pixels": pl.Series(
            [[1.0, 2.0, 8.0], None, [3.0, math.nan, 8.0], [5.0, 4.0, None]], dtype=pl.List(pl.Float32)
        ),
        "counts": pl.Series([[1, 2], [3, -4], [5, 6], None], dtype=pl.List(pl.Int64)),
    }
)
ELEMENTS = st.one_of(st.none(), st.floats(-10, 10), st.sampled_from([math.nan, math.inf, 1e300, 3.3]))


@pytest.fixture(scope="module")
def with_vectors() -> tuple[Package, Encoding, TorchModel]:
    return packaged(WITH_VECTORS)


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "carrier": st.sampled_from(["UA", "AA", None]),
                "wind": st.one_of(st.none(), st.floats(-10, 10)),
                "pixels": st.one_of(st.none(), st.lists(ELEMENTS, min_size=3, max_size=3)),
                "counts": st.one_of(st.none(), st.lists(st.integers(-9, 9), min_size=2, max_size=2)),
            }
        ),
        max_size=12,
    )
)
@settings(max_examples=60, deadline=None)
def test_rows_with_vectors_get_the_probability_that_torch_computes(
    with_vectors: tuple[Package, Encoding, TorchModel], rows: list[dict[str, Any]]
) -> None:
    schema = dict(WITH_VECTORS.schema) | {"pixels": pl.List(pl.Float64)}
    frame = pl.DataFrame(rows, schema=schema)
    assert differ(with_vectors, frame) <= 1e-6
    # As JSON brings them, lists of lists, they are the same.
    package, _, _ = with_vectors
    assert (package.predict(frame.to_dict(as_series=False)) == predict(package, frame)).all()


@pytest.mark.parametrize(
    "names", [["pixels"], ["pixels", "counts"], ["carrier", "pixels"], ["wind", "counts"], ["wind", "pixels"]]
)
def test_the_graph_encodes_vectors_to_the_same_bits(names: list[str]) -> None:
    import onnxruntime

    rows = WITH_VECTORS.select(names)
    encoding = encoder.fit(rows)
    half = onnxruntime.InferenceSession(_encoder(encoding).SerializeToString())
    feeds = {
        name: rows[name].fill_null("").to_numpy().astype(object)
        if kind == "string"
        else encoder.vectors_of(rows[name], encoding.lengths[name])
        if name in encoding.vectors
        else rows[name].cast(pl.Float32).to_numpy()
        for name, kind in encoding.inputs.items()
    }
    categories, numbers = half.run(["encoder/categories", "encoder/numbers"], feeds)
    arrays = encoder.encode(encoding, rows)
    assert (categories == arrays.categories).all()
    assert numbers.tobytes() == arrays.numbers.tobytes()


def test_vectors_are_matrices_of_their_length(with_vectors: tuple[Package, Encoding, TorchModel]) -> None:
    graph = raw_graph(with_vectors[1], with_vectors[2].graph())
    shapes = {
        one.name: [dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim]
        for one in graph.graph.input
    }
    assert shapes == {"carrier": ["n"], "wind": ["n"], "pixels": ["n", 3], "counts": ["n", 2]}


def test_the_same_model_gives_the_same_bytes_and_names_no_machine() -> None:
    encoding = encoder.fit(TRAIN, ["carrier", "month"])
    torch.manual_seed(3)
    model = TorchModel(Net(encoding.shape).eval(), encoding.shape, [])
    first, second = (
        raw_graph(encoding, model.graph()).SerializeToString(deterministic=True) for _ in range(2)
    )
    assert first == second
    assert b"test_model_graph" not in first
    assert b"site-packages" not in first


def test_any_number_of_rows_at_once(mixed: tuple[Package, Encoding, TorchModel]) -> None:
    many = pl.concat([TRAIN] * 500)
    assert differ(mixed, many) <= 1e-6
    assert differ(mixed, many.head(0)) == 0


def test_a_feature_may_not_be_called_like_the_output() -> None:
    with pytest.raises(TrainingInvalid, match="probability"):
        packaged(TRAIN.rename({"wind": "probability"}), ["carrier", "month"])


def test_a_module_that_branches_on_values_is_refused() -> None:
    class Branching(Net):
        def forward(self, categories: Any, numbers: Any) -> Any:
            return super().forward(categories, numbers) if numbers.sum() > 0 else numbers[:, 0]

    encoding = encoder.fit(TRAIN, ["carrier", "month"])
    model = TorchModel(Branching(encoding.shape).eval(), encoding.shape, [])
    with pytest.raises(TrainingInvalid, match="ONNX"):
        model.graph()


def test_the_graph_passes_the_checker(mixed: tuple[Package, Encoding, TorchModel]) -> None:
    graph = raw_graph(mixed[1], mixed[2].graph())
    onnx.checker.check_model(graph, full_check=True)
    assert [one.name for one in graph.graph.input] == ["carrier", "month", "wind", "rain"]
    assert [one.name for one in graph.graph.output] == ["probability"]


def test_arrays_of_the_probe_row_are_zero(mixed: tuple[Package, Encoding, TorchModel]) -> None:
    nothing = pl.DataFrame({name: pl.Series([None], dtype=kind) for name, kind in TRAIN.schema.items()})
    arrays: Arrays = encoder.encode(mixed[1], nothing)
    assert not arrays.categories.any()
    assert arrays.numbers.tolist() == [[0, 0, 1, 1]]


class Wide(Net):
    """A logit for each of three classes."""

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__(shape)
        self.layers[-1] = torch.nn.Linear(8, 3)

    def forward(self, categories: Any, numbers: Any) -> Any:
        found = [table(categories[:, at]) for at, table in enumerate(self.tables)]
        return self.layers(torch.cat([*found, numbers], dim=1))


@pytest.mark.parametrize(
    ("task", "net", "name"), [("multiclass", Wide, "probabilities"), ("regression", Net, "prediction")]
)
def test_answers_of_other_tasks_are_those_of_the_module(task: Any, net: type[Net], name: str) -> None:
    torch.manual_seed(3)
    encoding = encoder.fit(TRAIN, ["carrier", "month"])
    outputs = 3 if task == "multiclass" else 1
    shape = encoding.shape | {"outputs": outputs}
    model = TorchModel(net(shape).eval(), shape, [], task)
    graph = raw_graph(encoding, model.graph(), task, outputs)
    onnx.checker.check_model(graph, full_check=True)
    assert [one.name for one in graph.graph.output] == [name]
    card = {
        "inputs": encoding.inputs,
        "task": task,
        "classes": ["a", "b", "c"][: outputs if outputs > 1 else 0],
    }
    package = Package(card, graph.SerializeToString(), "", 1)
    theirs, ours = model.probabilities(encoder.encode(encoding, TRAIN)), predict(package, TRAIN)
    assert ours.shape == theirs.shape == ((6, 3) if outputs == 3 else (6,))
    assert ours.dtype == theirs.dtype == np.float32
    assert np.abs(ours - theirs).max() < 1e-6
    if task == "multiclass":
        assert ours.sum(axis=1) == pytest.approx(np.ones(6), abs=1e-6)
    else:
        logits = model.module(*map(torch.from_numpy, vars(encoder.encode(encoding, TRAIN)).values()))
        assert ours == pytest.approx(logits.detach().numpy(), abs=1e-6), "nothing is made of them"


def test_a_feature_may_be_called_like_the_output_of_another_task() -> None:
    encoding = encoder.fit(TRAIN.rename({"wind": "probability"}), ["carrier", "month"])
    module = TorchModel(Net(encoding.shape).eval(), encoding.shape, []).graph()
    assert raw_graph(encoding, module, "regression").graph.output[0].name == "prediction"
    with pytest.raises(TrainingInvalid, match="'probability'"):
        raw_graph(encoding, module)
