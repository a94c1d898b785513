"""What the project's tests share: the package's data, as the ingests land it, and the feature tables."""

from __future__ import annotations

import importlib
import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from manta import FeatureTable, Ingest  # noqa: E402
from manta.data.contract import Checked, check  # noqa: E402
from manta.definitions import load_function  # noqa: E402

Frames = dict[str, pl.DataFrame]


def _defined(kind: type) -> list:
    """All definitions of a kind in the project's jobs that `manta apply` runs."""
    names = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))
    modules = [importlib.import_module(f"jobs.{name}") for name in names]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, kind)]
    return list({each.name: each for each in found if each.on_apply}.values())


def _source(ingest: Ingest) -> pl.DataFrame:
    """The source's columns, as texts."""
    [path] = ingest.source.resolve(ROOT)
    content = path.read_bytes()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            content = archive.read(archive.namelist()[0])
    return pl.read_csv(io.BytesIO(content), infer_schema=False, null_values=list(ingest.source.null_values))


@pytest.fixture(scope="session")
def ingests() -> dict[str, Ingest]:
    return {each.dataset: each for each in _defined(Ingest)}


@pytest.fixture(scope="session")
def sources(ingests: dict[str, Ingest]) -> Frames:
    return {name: _source(ingest) for name, ingest in ingests.items()}


@pytest.fixture(scope="session")
def checked(ingests: dict[str, Ingest], sources: Frames) -> dict[str, Checked]:
    def held(name: str) -> Checked:
        rows = sources[name]
        positions = rows.select(file=pl.lit(name), row=pl.int_range(1, pl.len() + 1))
        return check(rows, ingests[name].contract, positions)

    return {name: held(name) for name in ingests}


@pytest.fixture(scope="session")
def inputs(checked: dict[str, Checked]) -> Frames:
    """The five datasets: what the contracts let pass."""
    return {name: each.good for name, each in checked.items()}


@pytest.fixture(scope="session")
def feature_tables() -> list[FeatureTable]:
    """In an order in which each comes after what it reads."""
    waiting, ordered = _defined(FeatureTable), []
    while waiting:
        made_later = {each.dataset for each in waiting}
        ready = [each for each in waiting if not made_later & set(each.inputs_from)]
        assert ready, f"{sorted(made_later)} read one another"
        ordered += ready
        waiting = [each for each in waiting if each not in ready]
    return ordered


@pytest.fixture(scope="session")
def compute(feature_tables: list[FeatureTable]) -> Callable[[Frames], Frames]:
    """All feature tables from the five datasets."""

    def run(inputs: Frames) -> Frames:
        frames = dict(inputs)
        for table in feature_tables:
            given = {name: frames[name] for name in table.inputs_from}
            frames[table.dataset] = load_function(table.fn)(given)
        return {table.dataset: frames[table.dataset] for table in feature_tables}

    return run


@pytest.fixture(scope="session")
def departures(inputs: Frames) -> pl.DataFrame:
    """The whole year's flights, in the order of the flights dataset."""
    from jobs.departures import departures_of

    return departures_of(inputs)


@pytest.fixture(scope="session")
def days(inputs: Frames) -> Callable[[str, str], Frames]:
    """The datasets with only the flights and the weather of some days: from, up to and without."""

    def cut(first: str, last: str) -> Frames:
        day = pl.date("year", "month", "day")
        return inputs | {
            "flights": inputs["flights"].filter(day.is_between(*_dates(first, last), closed="left")),
            "weather": inputs["weather"].filter(
                pl.col("time_hour").dt.date().is_between(*_dates(first, last), closed="left")
            ),
        }

    return cut


def _dates(*texts: str) -> list[pl.Expr]:
    return [pl.lit(text).str.to_date() for text in texts]
