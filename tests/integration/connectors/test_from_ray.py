"""A Ray Dataset as a source: its order, its types, its function's errors, and who holds its rows."""

from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from manta.connectors.from_ray import FromRay
from manta.data.parallel import each
from manta.definitions import Column, Contract, Ingest
from manta.definitions.sources import Ask
from manta.errors import DefinitionInvalid, SourceUnreadable

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

MODULE = """
import datetime, decimal, random, time, uuid
import numpy as np, pandas as pd, pyarrow as pa, ray.data

def late():
    def wait(batch):
        time.sleep(1.0 if batch["id"][0] == 0 else 0.0)
        return batch
    return ray.data.range(800, override_num_blocks=8).map_batches(wait, batch_size=None)

def cut():
    return ray.data.range(800, override_num_blocks=8).limit(250)

def typed():
    n = 3
    return ray.data.from_arrow(pa.table({
        "word": pa.array(["a", "b", None]).dictionary_encode(),
        "wide": pa.array([decimal.Decimal("1.23")] * n, pa.decimal256(50, 2)),
        "uuid": pa.array([uuid.UUID(int=7).bytes, None, uuid.UUID(int=2**128 - 1).bytes], pa.uuid()),
        "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a":1}'] * n)),
        "none": pa.nulls(n),
    }))

def tensors():
    return ray.data.from_numpy(np.arange(12).reshape(2, 3, 2))

def objects():
    return ray.data.from_items([{"what": {1: "a"}}, {"what": 3 + 4j}])

def pandas():
    return ray.data.from_pandas(pd.DataFrame({"id": [1, 2], "word": ["x", None]}, index=[7, 8]))

def nothing():
    return ray.data.from_items([])

def here():
    raise ValueError("no such bucket")

def there():
    def share(row):
        return {"share": 1 / row["id"]}
    return ray.data.range(4, override_num_blocks=1).map(share)

def rows():
    return ray.data.range(3).take_all()
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "datasets_of_ray.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "datasets_of_ray", raising=False)
    return tmp_path


def read(project: Path, name: str, *columns: str) -> pl.DataFrame:
    source, ask = FromRay(fn=f"datasets_of_ray:{name}"), Ask(project, columns)
    with source.opened(ask) as reading:
        return pl.concat(batch.values for piece in reading.pieces for batch in source.read(piece, ask))


def test_rows_are_in_the_order_of_the_dataset(project: Path) -> None:
    assert read(project, "late", "id")["id"].to_list() == list(range(800))
    assert read(project, "cut", "id")["id"].to_list() == list(range(250))


def test_types_that_polars_does_not_have(project: Path) -> None:
    found = read(project, "typed", "word", "wide", "uuid", "json", "none")
    assert found.with_columns(pl.col("wide").cast(pl.String)).to_dict(as_series=False) == {
        "word": ["a", "b", None],
        "wide": ["1.23"] * 3,
        "uuid": ["00000000-0000-0000-0000-000000000007", None, "ffffffff-ffff-ffff-ffff-ffffffffffff"],
        "json": ['{"a":1}'] * 3,
        "none": [None] * 3,
    }
    assert read(project, "tensors", "data")["data"].to_list() == [
        [[0, 1], [2, 3], [4, 5]],
        [[6, 7], [8, 9], [10, 11]],
    ]
    assert read(project, "pandas", "id", "word").rows() == [(1, "x"), (2, None)]
    with pytest.raises(SourceUnreadable, match="column 'what' of datasets_of_ray:objects is of type"):
        read(project, "objects", "what")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("here", r"here failed: ValueError: no such bucket at datasets_of_ray.py:\d+$"),
        ("there", r"there failed: ZeroDivisionError: division by zero at datasets_of_ray.py:\d+$"),
        ("rows", r"rows gave list, not a ray.data.Dataset"),
    ],
)
def test_errors_of_the_function_name_its_line(project: Path, name: str, told: str) -> None:
    with pytest.raises(SourceUnreadable) as failed:
        read(project, name, "id")
    assert re.search(told, failed.value.message)
    line = failed.value.message.rpartition(":")[2]
    if line.isdigit():
        assert {"here": "no such bucket", "there": "1 / row"}[name] in MODULE.splitlines()[int(line) - 1]


def test_a_function_that_is_gone(project: Path) -> None:
    with pytest.raises(DefinitionInvalid, match="cannot be imported"):
        read(project, "gone", "id")


def test_pieces_hold_no_rows_and_can_be_read_anywhere(project: Path) -> None:
    source, ask = FromRay(fn="datasets_of_ray:late"), Ask(project, ("id",))
    with source.opened(ask) as reading:
        assert sum(piece.rows for piece in reading.pieces) == 800
        assert reading.token
        found = dict(each(_Sum(source, ask), list(reading.pieces)))
        assert found == {index: sum(range(index * 100, index * 100 + 100)) for index in range(8)}
        again = pickle.loads(pickle.dumps(reading.pieces[3]))
        assert next(source.read(again, ask)).values["id"][0] == 300
    empty = FromRay(fn="datasets_of_ray:nothing")
    with empty.opened(ask) as reading:
        assert list(reading.pieces) == []


class _Sum:
    def __init__(self, source: FromRay, ask: Ask) -> None:
        self.source, self.root, self.columns = source, ask.root, ask.columns

    def __call__(self, piece: Any) -> int:
        return sum(
            int(batch.values["id"].sum()) for batch in self.source.read(piece, Ask(self.root, self.columns))
        )


def test_its_code_is_the_function(project: Path) -> None:
    job = Ingest(
        dataset="d",
        source=FromRay(fn="datasets_of_ray:late"),
        contract=Contract(columns={"id": Column(type="int64")}),
    )
    assert job.code() == ("datasets_of_ray:late",)
