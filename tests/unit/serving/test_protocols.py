"""The protocols of an endpoint over one core: what each is asked and answers, and what each refuses."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from manta.serving import core
from manta.serving.door import BYTES_ON_THE_LOOP, Door
from manta.serving.http import MOST_BYTES, Answer, Asked, too_large
from tests.unit.serving import tiny
from tests.unit.serving.tiny import ENDPOINT, KEYS, probability

BIAS = 0.25
ROW = {"rating": 5.0, "city": "Ulm", "far": 1.0}
INFER = "v2/models/trips/infer"
OCTETS = "application/octet-stream"


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with tiny.opened(tmp_path_factory.mktemp("trips"), BIAS, "3") as made:
        yield made


def ask(
    door: Door, path: str, body: Any = None, method: str = "", headers: dict[str, str] | None = None
) -> Answer:
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    sent = {"content-type": "application/json"} | (headers or {})

    async def read() -> bytes:
        if len(content) > MOST_BYTES:
            raise too_large()
        return content

    asked = Asked(method or ("GET" if body is None else "POST"), f"/{path}", sent, "", read)
    return asyncio.run(door.answer(asked))


def right(answer: Answer) -> Any:
    assert answer.status == 200, answer.content
    return json.loads(answer.content)


def refused(answer: Answer, status: int = 400) -> dict[str, Any]:
    assert answer.status == status, answer.content
    assert answer.media_type == "application/problem+json"
    problem: dict[str, Any] = json.loads(answer.content)
    assert problem["error"] == problem["detail"]
    assert problem["request_id"]
    return problem


def tensors(**columns: list[Any]) -> list[dict[str, Any]]:
    kinds = {str: "BYTES", bool: "BOOL", int: "INT64", float: "FP64"}
    return [
        {"name": name, "shape": [len(values)], "datatype": kinds[type(values[0])], "data": values}
        for name, values in columns.items()
    ]


def features(*ratings: float) -> list[dict[str, Any]]:
    count = len(ratings)
    return tensors(rating=list(ratings), city=["Ulm"] * count, far=[1.0] * count)


# --- the Open Inference Protocol -------------------------------------------------------------------------


def test_it_says_what_it_is(door: Door) -> None:
    assert right(ask(door, "v2"))["extensions"] == ["binary_tensor_data"]
    assert right(ask(door, "v2/health/live")) == {"live": True}
    assert right(ask(door, "v2/health/ready")) == {"ready": True}
    assert right(ask(door, "v2/models/trips/ready")) == {"name": "trips", "ready": True}
    told = right(ask(door, "v2/models/trips"))
    assert told == right(ask(door, "v2/models/trips/versions/3"))
    assert (told["name"], told["versions"]) == ("trips", ["3"])
    assert {each["name"]: each["datatype"] for each in told["inputs"]} == {
        "rating": "FP32",
        "city": "BYTES",
        "far": "FP32",
    }
    assert {each["name"]: each["datatype"] for each in told["outputs"]} == {
        "probability": "FP32",
        "prediction": "BOOL",
    }
    assert told["parameters"]["keys"]["zone"] == "INT64"


def test_features_as_tensors(door: Door) -> None:
    answer = right(ask(door, INFER, {"id": "mine", "inputs": features(5.0, -40.0)}))
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("trips", "3", "mine")
    shown = {each["name"]: each for each in answer["outputs"]}
    wanted = [probability(BIAS, rating, 1.0) for rating in (5.0, -40.0)]
    assert shown["probability"]["data"] == pytest.approx(wanted, abs=1e-6)
    assert shown["probability"]["shape"] == [2]
    assert shown["prediction"] == {
        "name": "prediction",
        "shape": [2],
        "datatype": "BOOL",
        "data": [True, False],
    }


def test_keys_as_tensors_are_looked_up(door: Door) -> None:
    inputs = tensors(**{name: [value, value] for name, value in KEYS.items()})
    answer = right(ask(door, INFER, {"inputs": inputs}))
    by_keys = right(ask(door, "predict", {"keys": [KEYS, KEYS]}))["predictions"]
    assert answer["outputs"][0]["data"] == pytest.approx([each["probability"] for each in by_keys], abs=1e-7)
    assert answer["outputs"][0]["data"][0] == pytest.approx(probability(BIAS, 5.0, 0.0), abs=1e-6)


def test_missing_is_null(door: Door) -> None:
    inputs = features(5.0)
    inputs[0]["data"], inputs[1]["data"] = [None], [None]
    answer = right(ask(door, INFER, {"inputs": inputs}))
    assert answer["outputs"][0]["data"] == pytest.approx([probability(BIAS, 0.0, 1.0)], abs=1e-6)


def test_at_the_threshold_all_protocols_agree(door: Door) -> None:
    probability = right(ask(door, "predict", {"rows": ROW}))["predictions"][0]["probability"]
    assert probability == float(np.float32(probability))
    for threshold in (
        probability,
        np.nextafter(probability, 1),
    ):  # the second is the first, in single precision
        strict = Door(ENDPOINT.replace(threshold=float(threshold)), "test")
        strict.loaded = door.loaded
        (asked,) = right(ask(strict, "predict", {"rows": ROW}))["predictions"]
        inferred = right(ask(strict, INFER, {"inputs": features(5.0)}))["outputs"][1]
        assert inferred["data"] == [asked["prediction"]] == [threshold == probability]


def test_only_the_outputs_that_are_asked_for(door: Door) -> None:
    body = {"inputs": features(5.0), "outputs": [{"name": "prediction"}]}
    assert [each["name"] for each in right(ask(door, INFER, body))["outputs"]] == ["prediction"]
    body["outputs"] = [{"name": "class"}]
    assert "no output 'class'" in refused(ask(door, INFER, body))["detail"]


def binary(ratings: list[float], cities: list[str]) -> tuple[bytes, dict[str, str]]:
    texts = b"".join(struct.pack("<I", len(each.encode())) + each.encode() for each in cities)
    numbers = struct.pack(f"<{len(ratings)}f", *ratings)
    parts = [numbers, texts, struct.pack(f"<{len(ratings)}d", *[1.0] * len(ratings))]
    kinds = zip(("rating", "city", "far"), ("FP32", "BYTES", "FP64"), parts, strict=True)
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "shape": [len(ratings), 1],
                    "datatype": kind,
                    "parameters": {"binary_data_size": len(part)},
                }
                for name, kind, part in kinds
            ],
            "outputs": [{"name": "probability", "parameters": {"binary_data": True}}, {"name": "prediction"}],
        }
    ).encode()
    sent = {"inference-header-content-length": str(len(header)), "content-type": OCTETS}
    return header + b"".join(parts), sent


def test_binary_tensors_both_ways(door: Door) -> None:
    content, sent = binary([5.0, float("nan")], ["Ulm", "Köln"])
    answer = ask(door, INFER, content, headers=sent)
    assert answer.status == 200, answer.content
    length = int(dict(answer.headers)["inference-header-content-length"])
    told = json.loads(answer.content[:length])
    assert told["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert told["outputs"][1]["data"] == [True, True]
    found = np.frombuffer(answer.content[length:], "<f4")
    assert found == pytest.approx([probability(BIAS, 5.0, 1.0), probability(BIAS, 0.0, 1.0)], abs=1e-6)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_compressed(door: Door, pack: Any) -> None:
    encoding = "gzip" if pack is gzip.compress else "deflate"
    body = json.dumps({"inputs": features(5.0)}).encode()
    assert right(ask(door, INFER, pack(body), headers={"content-encoding": encoding}))
    cut = ask(door, INFER, pack(body)[:-9], headers={"content-encoding": encoding})
    assert encoding in refused(cut)["detail"]
    bomb = pack(b" " * (MOST_BYTES + 1))
    assert len(bomb) < MOST_BYTES / 100
    refused(ask(door, INFER, bomb, headers={"content-encoding": encoding}), 413)
    refused(ask(door, INFER, body, headers={"content-encoding": "br"}), 415)


def test_a_model_of_numbers_alone_takes_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    config = tiny.write_all(tmp_path)
    names = {"rating": "float32", "far": "float32"}
    config["location"], config["digest"] = tiny.write_package(tmp_path / "models" / "numbers", 0.0, names)
    numbers = Door(ENDPOINT, "test")
    numbers.loaded = core.load(ENDPOINT, config)
    told = [each["name"] for each in right(ask(numbers, "v2/models/trips"))["inputs"]]
    assert told == list(names), "in the model's own order"
    one = {"name": "input-0", "shape": [2, 2], "datatype": "FP32", "data": [[5.0, 1.0], [0.0, 0.0]]}
    answer = right(ask(numbers, INFER, {"inputs": [one]}))
    assert answer["outputs"][0]["data"] == pytest.approx([probability(0, 5.0, 1.0), 0.5], abs=1e-6)
    flat = {**one, "data": [5.0, 1.0, 0.0, 0.0]}
    assert right(ask(numbers, INFER, {"inputs": [flat]}))["outputs"] == answer["outputs"]
    listed = right(ask(numbers, "invocations", {"instances": [[5.0, 1.0], [0.0, 0.0]]}))
    assert listed["predictions"] == answer["outputs"][0]["data"]
    wide = {**one, "shape": [1, 4]}
    assert "[n, 2]" in refused(ask(numbers, INFER, {"inputs": [wide]}))["hint"]


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"datatype": "FP31"}, "no datatype"),
    ({"datatype": "BYTES", "data": ["5"]}, "must be BOOL or UINT8"),
    ({"shape": [2]}, "1 values in data, and 2 by its shape"),
    ({"shape": [-1]}, "negative shape"),
    ({"shape": [1, 1, 1]}, r"\[n\] or \[n, 1\]"),
    ({"data": [[5.0], [6.0]]}, "by its shape"),
    ({"data": ["5"]}, "holds '5' where it says FP64"),
    ({"data": [True]}, "holds True where it says FP64"),
    ({"data": None}, "no list"),
    ({"name": "ratings"}, "did you mean 'rating'"),
    ({"name": "far"}, "sent twice"),
    ({"parameters": {"binary_data_size": 4}}, "says 4 binary bytes, and 0 are left"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=lambda value: str(value)[:30])
def test_a_tensor_that_does_not_fit_is_named(door: Door, change: dict[str, Any], said: str) -> None:
    import re

    inputs = features(5.0)
    inputs[0] |= change
    problem = refused(ask(door, INFER, {"inputs": inputs}))
    assert re.search(said, problem["detail"])
    assert problem["errors"]["fields"] == [change.get("name", "rating")]


def test_binary_that_does_not_fit_is_refused(door: Door) -> None:
    content, sent = binary([5.0], ["Ulm"])
    short = refused(ask(door, INFER, content[:-1], headers=sent))
    assert "'far' says 8 binary bytes, and 7 are left" in short["detail"]
    assert "belong to no tensor" in refused(ask(door, INFER, content + b"x", headers=sent))["detail"]
    for length in ("-1", "x", str(len(content) + 1)):
        lied = sent | {"inference-header-content-length": length}
        assert "is not within" in refused(ask(door, INFER, content, headers=lied))["detail"]
    latin, sent = binary([5.0], ["Ulm"])
    refused(ask(door, INFER, latin.replace(b"Ulm", b"\xffUm"), headers=sent))


def test_too_many_rows_are_refused_everywhere(door: Door) -> None:
    many = ENDPOINT.max_rows + 1
    body = {"inputs": features(*[1.0] * many)}
    assert f"{many} rows" in refused(ask(door, INFER, body))["detail"]
    records = {"dataframe_records": [ROW] * many}
    assert f"{many} rows" in refused(ask(door, "invocations", records))["detail"]
    assert len(json.dumps(records)) > BYTES_ON_THE_LOOP
    assert (
        len(right(ask(door, "invocations", {"dataframe_records": [ROW] * (many - 1)}))["predictions"]) == 1000
    )


def test_what_is_not_there(door: Door) -> None:
    assert "this endpoint is trips" in refused(ask(door, "v2/models/cars"), 404)["hint"]
    assert "version 3 is" in refused(ask(door, "v2/models/trips/versions/2"), 404)["hint"]
    refused(ask(door, "v2/repository"), 404)
    refused(ask(door, "v2/models/trips/explain"), 404)
    refused(ask(door, "else"), 404)
    refused(ask(door, INFER, method="GET"), 405)
    refused(ask(door, "v2", {}), 405)
    refused(ask(door, INFER, b"{}", headers={"content-type": "text/plain"}), 415)
    assert right(ask(door, INFER, {"inputs": features(5.0)}, headers={"content-type": ""}))
    empty = Door(ENDPOINT, "test")
    refused(ask(empty, "v2/health/ready"), 503)


# --- MLflow's scoring ------------------------------------------------------------------------------------

NAMES = ["rating", "city", "far"]
FORMS: list[Any] = [
    {"dataframe_split": {"columns": NAMES, "data": [[5.0, "Ulm", 1.0], [None, None, 0]], "index": [0, 1]}},
    {"dataframe_records": [ROW, {"rating": None, "city": None, "far": 0}]},
    {"instances": [ROW, {"rating": None, "city": None, "far": 0}]},
    {"inputs": {"rating": [5.0, None], "city": ["Ulm", None], "far": [1.0, 0]}},
    b'{"inputs": {"rating": [5.0, NaN], "city": ["Ulm", null], "far": [1.0, 0]}}',
    {"instances": {"rating": [5.0, None], "city": ["Ulm", None], "far": [1.0, 0]}, "params": {}},
    b"rating,city,far\n5.0,Ulm,1\n,,0\n",
]


@pytest.mark.parametrize("body", FORMS, ids=lambda body: str(body)[:20])
def test_every_form_gives_the_same(door: Door, body: Any) -> None:
    csv = isinstance(body, bytes) and not body.startswith(b"{")
    sent = {"content-type": "text/csv; charset=utf-8"} if csv else {}
    found = right(ask(door, "invocations", body, headers=sent))
    wanted = [probability(BIAS, 5.0, 1.0), probability(BIAS)]
    assert found == {"predictions": pytest.approx(wanted, abs=1e-6)}


def test_keys_in_every_form(door: Door) -> None:
    wanted = {"predictions": pytest.approx([probability(BIAS, 5.0)], abs=1e-6)}
    assert right(ask(door, "invocations", {"dataframe_records": [KEYS]})) == wanted
    assert right(ask(door, "invocations", {"inputs": KEYS})) == wanted
    text = f"{','.join(KEYS)}\nann,7,2026-01-02T12:30:00Z,2.0,false\n".encode()
    assert right(ask(door, "invocations", text, headers={"content-type": "text/csv"})) == wanted


def test_it_is_alive(door: Door) -> None:
    for path in ("ping", "health"):
        assert ask(door, path)[0::2] == (200, b"\n")
    assert ask(door, "version").content.startswith(b"manta ")


BROKEN: list[tuple[Any, str]] = [
    ([ROW], "must be an object"),
    ({}, "nothing"),
    ({"dataframe_split": {}, "inputs": {}}, "'dataframe_split', 'inputs'"),
    ({"inputs": 5}, "list of rows"),
    ({"inputs": ROW, "params": {"t": 1}}, "no params"),
    ({"dataframe_split": {"columns": NAMES, "data": [[1.0]]}}, "row 0 has 1 values for 3 columns"),
    ({"dataframe_split": {"columns": ["far", "far", "city"], "data": []}}, "named twice"),
    ({"dataframe_split": {"columns": 5, "data": []}}, "must have columns"),
    ({"dataframe_records": [ROW, {"rating": 1.0}]}, "row 1 of dataframe_records has other names"),
    ({"dataframe_records": [[5.0, "Ulm", 1.0]]}, "list of objects"),
    ({"inputs": {"rating": [1.0], "city": ["a", "b"], "far": [1.0]}}, "different lengths"),
    ({"dataframe_records": [ROW | {"rating": "much"}]}, "expected a number"),
    ({"dataframe_records": [{"rating": 5.0}]}, "'city' is missing"),
    (b"{", "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b"\xff", "not JSON"),
]


@pytest.mark.parametrize(("body", "said"), BROKEN, ids=lambda value: str(value)[:30])
def test_what_does_not_fit_is_the_callers_error(door: Door, body: Any, said: str) -> None:
    assert said in refused(ask(door, "invocations", body))["detail"]


def test_the_page_and_the_description(door: Door) -> None:
    page = ask(door, "docs")
    assert (page.status, page.media_type) == (200, "text/html; charset=utf-8")
    assert b"http" not in page.content.replace(b"${here}", b""), "it needs nothing from elsewhere"
    described = right(ask(door, "openapi.json"))
    schemas = described["components"]["schemas"]
    assert schemas["Keys"]["required"] == list(KEYS)
    assert schemas["Features"]["properties"]["rating"] == {"type": ["number", "null"], "format": "float"}
    assert described["info"]["version"] == "3"
    example = described["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert right(ask(door, "predict", example))["predictions"]
    refused(ask(door, "docs/x"), 404)
    refused(ask(door, "docs", {}), 405)


def test_csv_that_does_not_fit(door: Door) -> None:
    sent = {"content-type": "text/csv"}
    assert (
        "no float32"
        in refused(ask(door, "invocations", b"rating,city,far\nx,Ulm,1\n", headers=sent))["detail"]
    )
    assert "empty" in refused(ask(door, "invocations", b"", headers=sent))["detail"]
    assert "UTF-8" in refused(ask(door, "invocations", b"\xff\xfe\x00", headers=sent))["detail"]
    refused(ask(door, "invocations", b"x", headers={"content-type": "image/png"}), 415)


# --- models that answer something else -------------------------------------------------------------------


def of_task(folder: Path, task: str) -> Door:
    made = Door(ENDPOINT, "test")
    made.loaded = core.load(ENDPOINT, tiny.config(folder, 0.5, "4", task))
    return made


def test_classes_in_every_protocol(door: Door, tmp_path: Path) -> None:
    tiny.write_store(tmp_path / "online.db")
    several = of_task(tmp_path, "multiclass")
    rows = [ROW, ROW | {"rating": -50.0, "far": 0.0}]
    asked = right(ask(several, "predict", {"rows": rows}))["predictions"]
    assert [each["prediction"] for each in asked] == ["far", "nowhere"]
    shown = [list(each["probabilities"].values()) for each in asked]
    columns = {name: [row[name] for row in rows] for name in ROW}
    answer = right(ask(several, INFER, {"inputs": tensors(**columns)}))["outputs"]
    assert answer == [
        {"name": "probabilities", "shape": [2, 3], "datatype": "FP32", "data": [*shown[0], *shown[1]]},
        {"name": "prediction", "shape": [2], "datatype": "BYTES", "data": ["far", "nowhere"]},
    ]
    told = right(ask(several, "v2/models/trips"))["outputs"]
    assert [(each["name"], each["shape"]) for each in told] == [
        ("probabilities", [-1, 3]),
        ("prediction", [-1]),
    ]
    as_bytes = {"inputs": tensors(**columns), "outputs": [{"name": "prediction"}]}
    as_bytes["outputs"][0]["parameters"] = {"binary_data": True}
    assert ask(several, INFER, as_bytes).content.endswith(b"\x03\0\0\0far\x07\0\0\0nowhere")
    records = right(ask(several, "invocations", {"dataframe_records": rows}))["predictions"]
    assert records == [each["probabilities"] for each in asked]
    described = right(ask(several, "openapi.json"))["components"]["schemas"]["Predictions"]
    of_each = described["properties"]["predictions"]["items"]["properties"]
    assert of_each["prediction"] == {"enum": list(tiny.CLASSES)}


def test_a_number_in_every_protocol(door: Door, tmp_path: Path) -> None:
    tiny.write_store(tmp_path / "online.db")
    number = of_task(tmp_path, "regression")
    assert right(ask(number, "predict", {"rows": ROW}))["predictions"] == [{"prediction": 2.0}]
    assert right(ask(number, "invocations", {"dataframe_records": [ROW]})) == {"predictions": [2.0]}
    assert right(ask(number, "invocations", {"dataframe_records": [KEYS]})) == {"predictions": [1.0]}
    answer = right(ask(number, INFER, {"inputs": features(5.0)}))["outputs"]
    assert answer == [{"name": "prediction", "shape": [1], "datatype": "FP32", "data": [2.0]}]


# --- never a 500 -----------------------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TENSOR = st.fixed_dictionaries(
    {
        "name": st.sampled_from([*NAMES, *KEYS, "other"]),
        "shape": st.lists(st.integers(-1, 3), max_size=3),
        "datatype": st.sampled_from(["FP32", "INT64", "BOOL", "BYTES", "X"]),
        "data": ANYTHING,
    }
)


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    path=st.sampled_from([INFER, "invocations", "predict"]),
    body=ANYTHING
    | st.fixed_dictionaries({"inputs": st.lists(TENSOR, max_size=5) | ANYTHING})
    | st.fixed_dictionaries({"dataframe_records": ANYTHING})
    | st.fixed_dictionaries({"rows": ANYTHING}),
)
def test_whatever_is_sent_is_answered_or_refused(door: Door, path: str, body: Any) -> None:
    answer = ask(door, path, body if body is not None else [])
    assert answer.status < 500, answer.content
    json.loads(answer.content)
