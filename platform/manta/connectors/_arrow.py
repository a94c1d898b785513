"""Arrow's columns as Polars', also those of types that Polars does not have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from manta.definitions.sources import Rows
from manta.errors import SourceUnreadable

BATCH_ROWS = 250_000
DIGITS = 38  # of a decimal, at most
UUID_PARTS = ((0, 8), (8, 4), (12, 4), (16, 4), (20, 12))


def rows_of(table: pa.Table, wanted: Sequence[str], where: str) -> Iterator[Rows]:
    """The rows in batches, with those of the ``wanted`` columns that are there."""
    columns = [name for name in wanted if name in table.column_names]
    for start in range(0, table.num_rows, BATCH_ROWS):
        batch = table.slice(start, BATCH_ROWS)
        yield Rows(batch.num_rows, frame(batch, columns, where), [], table.column_names)


def frame(table: pa.Table, columns: Sequence[str], where: str) -> pl.DataFrame:
    """Those columns of the table. Tensors become lists, UUIDs text, decimals of more than 38 digits text.

    Raises:
        SourceUnreadable: a column has a type that has no meaning in a dataset: Python's objects, a union,
            an interval of months.
    """
    return pl.DataFrame([_series(name, table.column(name), where) for name in columns])


def _series(name: str, column: pa.ChunkedArray, where: str) -> pl.Series:
    kind = column.type
    if isinstance(kind, pa.UuidType):
        return _uuids(name, column)
    try:
        plain = pa.chunked_array([_plain(chunk) for chunk in column.chunks], type=_plain(_none(kind)).type)
        found = pl.from_arrow(plain)
    except (pl.exceptions.PolarsError, pa.ArrowException, TypeError) as error:
        raise SourceUnreadable(
            f"column {name!r} of {where} is of type {kind}, which a dataset cannot hold",
            hint="turn it into another type where it is read or made, or leave it out of the contract",
        ) from error
    return cast(pl.Series, found).alias(name)


def _none(kind: pa.DataType) -> pa.Array:
    return pa.chunked_array([], kind).combine_chunks()


def _plain(values: pa.Array) -> pa.Array:
    kind: Any = values.type
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "ray.data.arrow_pickled_object":
            raise TypeError("values of any Python type")
        shape = getattr(kind, "shape", ()) or ()
        return _shaped(_plain(values.storage), tuple(shape))
    if pa.types.is_dictionary(kind):
        return values.dictionary_decode()
    if pa.types.is_run_end_encoded(kind):
        return pc.run_end_decode(values)
    if pa.types.is_decimal256(kind):
        return values.cast(
            pa.decimal128(kind.precision, kind.scale) if kind.precision <= DIGITS else pa.string()
        )
    return values


def _shaped(flat: pa.Array, shape: tuple[int, ...]) -> pa.Array:
    """Lists that hold the values of a tensor one after the other, as lists of lists."""
    if len(shape) < 2 or not all(shape):
        return flat
    values = flat.flatten()
    for length in reversed(shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, length)
    if flat.null_count:
        raise TypeError("tensors, of which some are missing")
    return pa.FixedSizeListArray.from_arrays(values, shape[0])


def _uuids(name: str, column: pa.ChunkedArray) -> pl.Series:
    hexadecimal = pl.col(name).bin.encode("hex")
    parts = [hexadecimal.str.slice(start, length) for start, length in UUID_PARTS]
    stored = pa.table({name: pa.chunked_array([chunk.storage for chunk in column.chunks], pa.binary(16))})
    return cast(pl.DataFrame, pl.from_arrow(stored)).select(pl.concat_str(parts, separator="-").alias(name))[
        name
    ]
