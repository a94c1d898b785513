"""Turns a column as a source gives it into the type that a contract asks for; what does not fit becomes null.

Text is trimmed first, except for string columns.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import cast

import polars as pl
import pyarrow as pa

from manta.data import nested
from manta.definitions.contracts import Contract
from manta.definitions.types import FLOATS, WHOLE, ColumnType, Kind, parse

_PLAIN: dict[str, tuple[pl.DataType, pa.DataType]] = {
    "string": (pl.String(), pa.large_string()),
    "bool": (pl.Boolean(), pa.bool_()),
    "binary": (pl.Binary(), pa.large_binary()),
    "date": (pl.Date(), pa.date32()),
    "timestamp": (pl.Datetime("us", "UTC"), pa.timestamp("us", "UTC")),
    "datetime": (pl.Datetime("us"), pa.timestamp("us")),
    "int8": (pl.Int8(), pa.int8()),
    "int16": (pl.Int16(), pa.int16()),
    "int32": (pl.Int32(), pa.int32()),
    "int64": (pl.Int64(), pa.int64()),
    "float32": (pl.Float32(), pa.float32()),
    "float64": (pl.Float64(), pa.float64()),
}

_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]"
_SECONDS = r":[0-5][0-9](\.[0-9]{1,9})?"
# Each with the format of what is left once "T" stands between date and clock and the offset is +hh:mm.
_MOMENTS = [
    (rf"^{_DATE}T{_CLOCK}{_SECONDS}[+-]{_CLOCK}$", "%Y-%m-%dT%H:%M:%S%.f%:z"),
    (rf"^{_DATE}T{_CLOCK}{_SECONDS}$", "%Y-%m-%dT%H:%M:%S%.f"),
    (rf"^{_DATE}T{_CLOCK}[+-]{_CLOCK}$", "%Y-%m-%dT%H:%M%:z"),
    (rf"^{_DATE}T{_CLOCK}$", "%Y-%m-%dT%H:%M"),
]
USUAL = 100  # values that are looked at to find how most are written
_SHAPES = [
    (rf"^{_DATE}{between}{_CLOCK}:[0-5][0-9]{end}$", f"%Y-%m-%d{between}%H:%M:%S{end}")
    for between in "T "
    for end in ("Z", "")
]
# Four digits of a year name no others, though an offset might lead there.
_CALENDAR = (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC))


def schema(contract: Contract) -> dict[str, pl.DataType]:
    """The types of a dataset held to the contract."""
    return {name: polars_type(parse(column.type)) for name, column in contract.columns.items()}


def arrow_schema(contract: Contract) -> pa.Schema:
    """The same for Delta, which also keeps what may be null."""
    return pa.schema(
        [
            pa.field(name, arrow_type(parse(column.type)), nullable=column.nullable)
            for name, column in contract.columns.items()
        ]
    )


def polars_type(kind: Kind) -> pl.DataType:
    if kind.item is not None:
        return pl.List(polars_type(kind.item))
    if kind.fields:
        return pl.Struct({name: polars_type(field) for name, field in kind.fields})
    if kind.name == "decimal":
        return pl.Decimal(kind.precision, kind.scale)
    return _PLAIN[kind.name][0]


def arrow_type(kind: Kind) -> pa.DataType:
    if kind.item is not None:
        return pa.list_(pa.field("element", arrow_type(kind.item)))
    if kind.fields:
        return pa.struct([pa.field(name, arrow_type(field)) for name, field in kind.fields])
    if kind.name == "decimal":
        return pa.decimal128(kind.precision, kind.scale)
    return _PLAIN[kind.name][1]


def as_type(values: pl.Series, wanted: ColumnType) -> pl.Series | None:
    """The values as ``wanted``, null where one does not fit; None when values of this type never do.

    - Text: integers may end in ``.0``; booleans are true, false, 1 or 0; moments and dates are ISO 8601. A
      timestamp without an offset is UTC; a datetime has none. Decimals may have an exponent. Binary is
      base64, or hexadecimal behind ``\\x``. Lists and structs are JSON.
    - Numbers: a float fits an integer when it has no fraction, and a decimal when the shortest text that
      names it does. No digit of a decimal is ever rounded away, unless into a float: a float column holds the
      closest one there is, but never an infinity for a finite number.
    - Moments are cut to microseconds.
    - A list fits when all its elements do, a struct when all its fields do. NaN in them stays NaN.
    """
    return as_kind(values, parse(wanted))


def as_kind(values: pl.Series, kind: Kind) -> pl.Series | None:
    source, wanted = values.dtype, polars_type(kind)
    if source == wanted:
        return values
    if source == pl.Null():
        return values.cast(wanted)
    if isinstance(source, (pl.Categorical, pl.Enum)):
        return as_kind(values.cast(pl.String), kind)
    if source == pl.String():
        return _from_text(values, kind)
    if source.is_decimal():
        return _from_decimal(values, kind)
    if source.is_integer():
        return _from_integer(values, kind)
    if source.is_float():
        return _from_float(values, kind)
    if isinstance(source, (pl.Datetime, pl.Date)):
        return _from_moment(values, kind)
    if isinstance(source, (pl.Boolean, pl.Time)) and kind.name == "string":
        return values.cast(pl.String)
    if isinstance(source, pl.Array):
        return as_kind(values.arr.to_list(), kind)
    if isinstance(source, pl.List) and kind.item is not None:
        return nested.lists(values, kind.item, as_kind)
    if isinstance(source, pl.Struct) and kind.fields:
        return nested.structs(values, kind.fields, as_kind)
    return None


def _from_decimal(values: pl.Series, kind: Kind) -> pl.Series | None:
    source = values.dtype
    if kind.name == "decimal" and isinstance(source, pl.Decimal):
        more = kind.scale - source.scale
        if more >= 0 and source.precision is not None and source.precision + more <= kind.precision:
            return values.cast(polars_type(kind))
    return _from_text(values.cast(pl.String), kind) if kind.is_number or kind.name == "string" else None


def _from_integer(values: pl.Series, kind: Kind) -> pl.Series | None:
    if kind.is_number or kind.name == "string":
        return values.cast(polars_type(kind), strict=False)
    if kind.name == "bool":
        return values.replace_strict({0: False, 1: True}, default=None, return_dtype=pl.Boolean)
    return None


def _from_float(values: pl.Series, kind: Kind) -> pl.Series | None:
    if kind.name in FLOATS:
        return _finite(values.cast(polars_type(kind)), values.is_finite())
    if kind.name in WHOLE:
        whole = values.is_finite() & (values == values.floor())
        return values.set(~whole.fill_null(False), None).cast(polars_type(kind), strict=False)
    if kind.name == "decimal":
        return _decimals(values.cast(pl.String), kind)
    return None


def _finite(found: pl.Series, meant: pl.Series) -> pl.Series:
    """Infinity is no value for what is ``meant`` to be finite."""
    overflown = found.is_infinite() & meant
    return found.set(overflown, None) if overflown.any() else found


def _from_moment(values: pl.Series, kind: Kind) -> pl.Series | None:
    if kind.name not in ("timestamp", "datetime"):
        return None
    if isinstance(values.dtype, pl.Datetime):
        zone = values.dtype.time_zone
        if kind.name == "datetime" and zone:
            return None
        if values.dtype.time_unit == "ms":
            furthest = (2**63 - 1) // 1000
            too_far = ~values.to_physical().is_between(-furthest, furthest)
            values = values.set(too_far, None) if too_far.any() else values
        values = values.dt.convert_time_zone("UTC") if zone else values
        values = values.dt.cast_time_unit("us")
    else:
        zone, values = None, values.cast(pl.Datetime("us"))
    return values if zone or kind.name == "datetime" else values.dt.replace_time_zone("UTC")


def _from_text(values: pl.Series, kind: Kind) -> pl.Series | None:
    if kind.name == "string":
        return values
    if kind.is_nested:
        return nested.from_json(values, kind, as_kind)
    plain = _from_plain_text(values, kind)
    if plain is not None and plain.null_count() == values.null_count():
        return plain
    text = values.str.strip_chars()
    if kind.name in WHOLE:
        return text.str.replace(r"^([+-]?[0-9]+)\.0*$", "${1}").cast(polars_type(kind), strict=False)
    if kind.name in FLOATS:
        return _float(text, kind)
    if kind.name == "decimal":
        return _decimals(text, kind)
    if kind.name == "bool":
        words = {"true": True, "false": False, "1": True, "0": False}
        return text.str.to_lowercase().replace_strict(words, default=None, return_dtype=pl.Boolean)
    if kind.name == "binary":
        return _bytes(text)
    plain = _plain_moments(text, kind)
    if plain is not None:
        return plain
    if kind.name == "date":
        return _parsed(text, rf"^{_DATE}$", "%Y-%m-%d", pl.Date())
    return _moments(text, zoned=kind.name == "timestamp")


def _from_plain_text(values: pl.Series, kind: Kind) -> pl.Series | None:
    """Numbers and booleans as most sources write them, without the cost of all other ways."""
    if kind.name in WHOLE:
        return values.cast(polars_type(kind), strict=False)
    if kind.name in FLOATS:
        return _float(values, kind)
    if kind.name == "bool":
        true = values == "true"
        return true if (true | (values == "false")).all() else None
    return None


def _float(text: pl.Series, kind: Kind) -> pl.Series:
    numbers = text.cast(polars_type(kind), strict=False)
    return _finite(numbers, text.str.contains("[0-9]")) if numbers.is_infinite().any() else numbers


def _decimals(text: pl.Series, kind: Kind) -> pl.Series:
    wanted, whole = polars_type(kind), kind.precision - kind.scale
    behind = rf"(\.[0-9]{{0,{kind.scale}}})?" if kind.scale else r"\.?"
    simple = text.str.contains(rf"^[+-]?[0-9]{{1,{whole}}}{behind}$" if whole else "^$").fill_null(False)
    if simple.all():
        return text.cast(wanted, strict=False)
    # Polars would round what has more digits; of the rest Python knows what fits.
    rest = (~simple & text.is_not_null()).arg_true()
    found = pl.Series([_decimal(value, kind) for value in text.gather(rest)], dtype=pl.String)
    return text.scatter(rest, found).cast(wanted, strict=False)


_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def _decimal(text: str, kind: Kind) -> str | None:
    """The same number with as many digits behind the point as ``kind`` has; None if it has others."""
    if not _NUMBER.fullmatch(text):
        return None
    try:
        sign, digits, exponent = Decimal(text).as_tuple()
    except InvalidOperation:  # an exponent beyond all measure
        return None
    held = "".join(map(str, digits)).lstrip("0")
    kept = held.rstrip("0")
    if not kept:
        return "0"
    exponent = int(exponent) + len(held) - len(kept) + kind.scale
    if exponent < 0 or len(kept) + exponent > kind.precision:
        return None
    whole = (kept + "0" * exponent).rjust(kind.scale + 1, "0")
    point = len(whole) - kind.scale
    return f"{'-' if sign else ''}{whole[:point]}" + (f".{whole[point:]}" if kind.scale else "")


_BASE64 = r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"


def _bytes(text: pl.Series) -> pl.Series:
    base64 = text.set(~text.str.contains(_BASE64).fill_null(False), None)
    found = base64.str.decode("base64", strict=False)
    if found.null_count() > text.null_count():
        hexadecimal = text.set(~text.str.contains(r"^\\x(?:[0-9A-Fa-f]{2})*$").fill_null(False), None)
        found = found.zip_with(found.is_not_null(), hexadecimal.str.slice(2).str.decode("hex", strict=False))
    return found


def _plain_moments(text: pl.Series, kind: Kind) -> pl.Series | None:
    """Dates or moments by Arrow's parser, twenty times as fast; None unless all are of one shape, and one of
    which it has the same opinion: it also takes hours without minutes, which have other lengths.
    """
    wanted, lengths = polars_type(kind), text.str.len_bytes()
    low, high = cast(tuple[int | None, int | None], (lengths.min(), lengths.max()))
    if low is None or high is None:
        return text.cast(wanted)
    shapes: list[pa.DataType] = []
    if low == high == len("2013-01-01"):
        shapes = [pa.date32()]
    elif kind.name != "date" and low >= len("2013-01-01T05:00"):
        # With an offset in each, or with one in none.
        zoned = kind.name == "timestamp" and low >= len("2013-01-01T05:00:00Z")
        shapes = [pa.timestamp("us", "UTC"), pa.timestamp("us")] if zoned else [pa.timestamp("us")]
    for shape in shapes:
        try:
            found = cast(pl.Series, pl.from_arrow(text.to_arrow().cast(shape)))
        except pa.ArrowInvalid:
            continue
        if kind.name != "date":
            found = _utc(found.cast(pl.Datetime("us")) if found.dtype == pl.Date() else found)
        first, last = _CALENDAR if kind.name != "date" else (moment.date() for moment in _CALENDAR)
        if not found.is_between(first, last).all():
            return None
        return (found.dt.replace_time_zone(None) if kind.name == "datetime" else found).alias(text.name)
    return None


def _moments(text: pl.Series, zoned: bool) -> pl.Series:
    """Timestamps when ``zoned``, else datetimes, which have no offset."""
    shape, form = _usual(text, zoned)
    usual = text.str.contains(shape).fill_null(False)
    moments = text if usual.all() else text.set(~usual, None)
    moments = _utc(moments.str.strptime(pl.Datetime("us"), form, strict=False, cache=False))
    rest = (~usual & text.is_not_null()).arg_true()
    if len(rest):
        moments = moments.scatter(rest, _unusual(text.gather(rest), zoned))
    outside = ~moments.is_between(*_CALENDAR)
    moments = moments.set(outside, None) if outside.any() else moments
    return moments if zoned else moments.dt.replace_time_zone(None)


def _usual(text: pl.Series, zoned: bool) -> tuple[str, str]:
    """The first of the _SHAPES that a value has; to parse one alone is ten times as fast as all ways."""
    shapes = [each for each in _SHAPES if zoned or not each[0].endswith("Z$")]
    for value in text.head(USUAL):
        for shape, form in shapes:
            if value is not None and re.match(shape, value):
                return shape, form
    return shapes[0]


def _unusual(text: pl.Series, zoned: bool) -> pl.Series:
    """In UTC, of all ways to write a moment."""
    text = (
        text.str.replace(r"(?i)z$", "+00:00")
        .str.replace(rf"^({_DATE})[ t]", "${1}T")
        .str.replace(r"(T.*)([+-]\d{2}):?(\d{2})?$", "${1}${2}:${3}")
        .str.replace(r"(T.*[+-]\d{2}):$", "${1}:00")
    )
    found = _parsed(text, rf"^{_DATE}$", "%Y-%m-%d", pl.Date())
    moments = _utc(found.cast(pl.Datetime("us")))
    for pattern, form in _MOMENTS:
        if moments.null_count() == text.null_count():
            break
        if form.endswith("z") and not zoned:
            continue
        some = _parsed(text, pattern, form, pl.Datetime("us"))
        if some.null_count() < len(some):
            moments = moments.zip_with(moments.is_not_null(), _utc(some))
    return moments


def _utc(moments: pl.Series) -> pl.Series:
    known = isinstance(moments.dtype, pl.Datetime) and moments.dtype.time_zone is not None
    return moments if known else moments.dt.replace_time_zone("UTC")


def _parsed(text: pl.Series, pattern: str, form: str, kind: pl.Date | pl.Datetime) -> pl.Series:
    # The parser alone would also take years of five digits and months of one.
    shaped = text.str.contains(pattern).fill_null(False)
    if not shaped.any():
        return pl.Series(text.name, [None], dtype=kind).new_from_index(0, len(text))
    # Nor is there a year 0.
    return text.set(~shaped | text.str.starts_with("0000"), None).str.strptime(kind, form, strict=False)
