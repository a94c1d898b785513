"""Turns a column as a source gives it into the type that a contract asks for; what does not fit becomes null.

Text is trimmed first, except for string columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl
import pyarrow as pa

from manta.definitions.datasets import ColumnType, Contract

TYPES: Mapping[ColumnType, pl.DataType] = {
    "string": pl.String(),
    "int64": pl.Int64(),
    "float64": pl.Float64(),
    "bool": pl.Boolean(),
    "timestamp": pl.Datetime("us", "UTC"),
    "date": pl.Date(),
}

_DATE = r"\d{4}-\d{2}-\d{2}"
_CLOCK = r"([01]\d|2[0-3]):[0-5]\d"
_SECONDS = r":[0-5]\d(\.\d{1,9})?"
# Each with the format of what is left once "T" stands between date and clock and the offset is +hh:mm.
_MOMENTS = [
    (rf"^{_DATE}T{_CLOCK}{_SECONDS}[+-]{_CLOCK}$", "%Y-%m-%dT%H:%M:%S%.f%:z"),
    (rf"^{_DATE}T{_CLOCK}{_SECONDS}$", "%Y-%m-%dT%H:%M:%S%.f"),
    (rf"^{_DATE}T{_CLOCK}[+-]{_CLOCK}$", "%Y-%m-%dT%H:%M%:z"),
    (rf"^{_DATE}T{_CLOCK}$", "%Y-%m-%dT%H:%M"),
]


def schema(contract: Contract) -> dict[str, pl.DataType]:
    """The types of a dataset held to the contract."""
    return {name: TYPES[column.type] for name, column in contract.columns.items()}


def arrow_schema(contract: Contract) -> pa.Schema:
    """The same for Delta, which also keeps what may be null."""
    types = pl.DataFrame(schema=schema(contract)).to_arrow().schema
    return pa.schema(
        [field.with_nullable(contract.columns[field.name].nullable) for field in types], metadata=None
    )


def as_type(values: pl.Series, wanted: ColumnType) -> pl.Series | None:
    """The values as ``wanted``, null where one does not fit; None when values of this type never do.

    Text: integers may end in ``.0``; booleans are true, false, 1 or 0; moments and dates are ISO 8601, a
    moment without an offset is UTC. Numbers: a float fits an integer when it has no fraction. Moments are
    cut to microseconds.
    """
    source = values.dtype
    if source == TYPES[wanted] or source == pl.Null():
        return values.cast(TYPES[wanted])
    if isinstance(source, (pl.Categorical, pl.Enum, pl.Decimal)):
        return as_type(values.cast(pl.String), wanted)
    if source == pl.String():
        return _from_text(values, wanted)
    if source.is_integer():
        if wanted in ("int64", "float64", "string"):
            return values.cast(TYPES[wanted], strict=False)
        if wanted == "bool":
            return values.replace_strict({0: False, 1: True}, default=None, return_dtype=pl.Boolean)
    if source.is_float():
        if wanted == "float64":
            return values.cast(pl.Float64)
        if wanted == "int64":
            whole = values.is_finite() & (values == values.floor())
            return values.set(~whole.fill_null(False), None).cast(pl.Int64, strict=False)
    if source == pl.Boolean() and wanted == "string":
        return values.cast(pl.String)
    if isinstance(source, pl.Datetime) and wanted == "timestamp":
        utc = values.dt.convert_time_zone("UTC") if source.time_zone else values.dt.replace_time_zone("UTC")
        return utc.dt.cast_time_unit("us")
    if source == pl.Date() and wanted == "timestamp":
        return values.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return None


def _from_text(values: pl.Series, wanted: ColumnType) -> pl.Series:
    text = values.str.strip_chars()
    if wanted == "int64":
        numbers = text.cast(pl.Int64, strict=False)
        if numbers.null_count() == text.null_count():
            return numbers
        return text.str.replace(r"^([+-]?\d+)\.0*$", "${1}").cast(pl.Int64, strict=False)
    if wanted == "float64":
        return text.cast(pl.Float64, strict=False)
    if wanted == "bool":
        words = {"true": True, "false": False, "1": True, "0": False}
        return text.str.to_lowercase().replace_strict(words, default=None, return_dtype=pl.Boolean)
    if wanted == "date":
        return _parsed(text, rf"^{_DATE}$", "%Y-%m-%d", pl.Date())
    return _moments(text)


def _moments(text: pl.Series) -> pl.Series:
    text = (
        text.str.replace(r"(?i)z$", "+00:00")
        .str.replace(rf"^({_DATE})[ t]", "${1}T")
        .str.replace(r"(T.*)([+-]\d{2}):?(\d{2})?$", "${1}${2}:${3}")
        .str.replace(r"(T.*[+-]\d{2}):$", "${1}:00")
    )
    found = _parsed(text, rf"^{_DATE}$", "%Y-%m-%d", pl.Date())
    moments = found.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    for pattern, form in _MOMENTS:
        if moments.null_count() == text.null_count():
            break
        some = _parsed(text, pattern, form, pl.Datetime("us"))
        if some.null_count() < len(some):
            utc = some if some.dtype == TYPES["timestamp"] else some.dt.replace_time_zone("UTC")
            moments = moments.zip_with(moments.is_not_null(), utc)
    return moments


def _parsed(text: pl.Series, pattern: str, form: str, kind: pl.Date | pl.Datetime) -> pl.Series:
    # The parser alone would also take years of five digits and months of one.
    shaped = text.str.contains(pattern).fill_null(False)
    if not shaped.any():
        return pl.Series(text.name, [None], dtype=kind).new_from_index(0, len(text))
    return text.set(~shaped, None).str.strptime(kind, form, strict=False)
