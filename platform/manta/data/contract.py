"""Holds the rows of a source to a contract: good ones get its types, the others are refused with a reason.

Pure: frames in, frames out. Refused rows keep where they came from and what they held, so that whoever
looks after the source can find and correct them.
"""

from __future__ import annotations

import base64
import difflib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import polars as pl

from manta.data.values import as_type, schema
from manta.definitions.datasets import Column, Contract
from manta.errors import ContractBroken, DefinitionInvalid

# What the quarantine tells of a row. `file`, `row`: where it came from, 1 being the first row of data;
# `reason`: all that is wrong with it; `rules`: the same without the values, to count by; `source`: the row.
REFUSED: dict[str, pl.DataType] = {
    "file": pl.String(),
    "row": pl.Int64(),
    "reason": pl.String(),
    "rules": pl.List(pl.String()),
    "source": pl.String(),
}
SHOWN_CHARACTERS = 60
SHOWN_CHOICES = 8


class Checked(NamedTuple):
    """``good`` has the contract's columns, order and types; ``refused`` has the columns of REFUSED."""

    good: pl.DataFrame
    refused: pl.DataFrame


class _Fault(NamedTuple):
    rule: str
    rows: pl.Series  # true where the rule is broken
    reason: pl.Expr  # over the text of the source's columns


def check(values: pl.DataFrame, contract: Contract, positions: pl.DataFrame) -> Checked:
    """Split the rows of ``values`` into good and refused ones, each in the order they came in.

    NaN counts as a missing value. Keys are not looked at: they are a matter of the whole dataset.

    Args:
        values: source columns; columns that the contract does not name are dropped.
        positions: ``file`` and ``row`` of each row.

    Raises:
        ContractBroken: a column of the contract is missing, or holds what can never be of its type.
        DefinitionInvalid: the contract asks for a check that its column's type does not have.
    """
    where = str(positions["file"].first() or "the source")
    require_columns(contract, values.columns, where)
    typed: dict[str, pl.Series] = {}
    faults: list[_Fault] = []
    for name, column in contract.columns.items():
        raw = values[name]
        found = as_type(raw, column.type)
        if found is None:
            raise ContractBroken(
                f"column {name!r} of {where} holds {raw.dtype}, which cannot be the contract's {column.type}",
                hint=f"correct the type of {name!r} in the contract",
            )
        typed[name] = found.fill_nan(None) if found.dtype.is_float() else found
        faults += [fault for fault in _faults(name, column, raw, found, typed[name]) if fault.rows.any()]
    good = pl.DataFrame(typed, schema=schema(contract))
    if not faults:
        return Checked(good, pl.DataFrame(schema=REFUSED))
    bad = faults[0].rows
    for fault in faults[1:]:
        bad = bad | fault.rows
    return Checked(good.filter(~bad), _refused(values.select(list(contract.columns)), positions, faults, bad))


def require_columns(contract: Contract, found: Iterable[str], where: str) -> None:
    """Raises:
    ContractBroken: a column of the contract is not among those ``found``; names the closest one.
    """
    found = list(found)
    missing = [name for name in contract.columns if name not in found]
    if not missing:
        return
    spare = {name.strip().lower(): name for name in found if name not in contract.columns}
    parts = []
    for name in missing:
        close = difflib.get_close_matches(name.lower(), spare, n=1, cutoff=0.5)
        parts.append(f"{name!r}" + (f" (the closest is {spare[close[0]]!r}: renamed?)" if close else ""))
    raise ContractBroken(
        f"{where} has no column {', '.join(parts)}",
        hint="correct the source, or name its columns in the contract as they are now",
        missing=missing,
        found=found,
    )


def _faults(
    name: str, column: Column, raw: pl.Series, parsed: pl.Series, typed: pl.Series
) -> Iterator[_Fault]:
    shown = _shown(name)
    yield _Fault(
        f"{name} is not {column.type}",
        raw.is_not_null() & parsed.is_null(),
        pl.format("{}: '{}' is not {}", pl.lit(name), shown, pl.lit(column.type)),
    )
    if not column.nullable:
        # What does not parse is not missing.
        yield _Fault(
            f"{name} is missing",
            raw.is_null() | (parsed.is_not_null() & typed.is_null()),
            pl.lit(f"{name}: is missing"),
        )
    if column.min is not None:
        bound = _text(column.min)
        yield _Fault(
            f"{name} is below {bound}",
            (typed < _bound(typed, column.min, math.ceil)).fill_null(False),
            pl.format("{}: {} is below {}", pl.lit(name), shown, pl.lit(bound)),
        )
    if column.max is not None:
        bound = _text(column.max)
        yield _Fault(
            f"{name} is above {bound}",
            (typed > _bound(typed, column.max, math.floor)).fill_null(False),
            pl.format("{}: {} is above {}", pl.lit(name), shown, pl.lit(bound)),
        )
    if column.one_of is not None:
        choices = ", ".join(column.one_of[:SHOWN_CHOICES])
        choices += ", …" if len(column.one_of) > SHOWN_CHOICES else ""
        yield _Fault(
            f"{name} is not one of {choices}",
            (~typed.is_in(column.one_of)).fill_null(False),
            pl.format("{}: '{}' is not one of {}", pl.lit(name), shown, pl.lit(choices)),
        )
    if column.pattern is not None:
        try:
            matches = typed.str.contains(rf"\A(?:{column.pattern})\z")
        except pl.exceptions.ComputeError as error:
            raise DefinitionInvalid(
                f"the pattern of column {name!r} cannot be used: {error}",
                hint="patterns are regular expressions without look-around and back-references",
            ) from error
        yield _Fault(
            f"{name} does not match {column.pattern}",
            (~matches).fill_null(False),
            pl.format("{}: '{}' does not match {}", pl.lit(name), shown, pl.lit(column.pattern)),
        )


def _bound(typed: pl.Series, bound: float, whole: Callable[[float], int]) -> float | int:
    """For integers an integer bound that means the same: a float would lose the last digits of large ones."""
    if typed.dtype.is_integer() and abs(bound) < 2**63:
        return whole(bound)
    return bound


def _text(bound: float) -> str:
    return str(int(bound)) if math.isfinite(bound) and bound == int(bound) else str(bound)


def _shown(name: str) -> pl.Expr:
    text = pl.col(name)
    cut = text.str.slice(0, SHOWN_CHARACTERS) + "…"
    return pl.when(text.str.len_chars() > SHOWN_CHARACTERS).then(cut).otherwise(text).fill_null("")


def _as_text(values: pl.Series) -> pl.Series:
    if values.dtype.is_nested():
        texts = [None if value is None else json.dumps(value, default=_json) for value in values.to_list()]
        return pl.Series(values.name, texts, dtype=pl.String)
    if values.dtype == pl.Binary():
        return values.bin.encode("base64")
    return values.cast(pl.String)


def _json(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _refused(
    values: pl.DataFrame, positions: pl.DataFrame, faults: list[_Fault], bad: pl.Series
) -> pl.DataFrame:
    text = pl.DataFrame([_as_text(column) for column in values.filter(bad)])
    broken = [pl.lit(fault.rows.filter(bad)) for fault in faults]
    reasons = [pl.when(rows).then(fault.reason) for rows, fault in zip(broken, faults, strict=True)]
    rules = [pl.when(rows).then(pl.lit(fault.rule)) for rows, fault in zip(broken, faults, strict=True)]
    return text.select(
        reason=pl.concat_str(reasons, separator="; ", ignore_nulls=True),
        rules=pl.concat_list(rules).list.drop_nulls(),
        source=pl.struct(pl.all()).struct.json_encode(),
    ).select(
        positions["file"].filter(bad).cast(pl.String),
        positions["row"].filter(bad).cast(pl.Int64),
        "reason",
        "rules",
        "source",
    )
