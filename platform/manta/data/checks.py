"""The checks of a contract that look at a whole row: expressions in SQL and functions of the project."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl

from manta.data.values import schema
from manta.definitions.base import load_function
from manta.definitions.contracts import Check, Contract
from manta.errors import DefinitionInvalid


def require(contract: Contract) -> None:
    """Try the expressions of the contract's checks on no rows.

    Raises:
        DefinitionInvalid: one cannot be understood, names a column that the contract does not have, does not
            answer with true or false, or not for each row by itself.
    """
    nothing = pl.DataFrame(schema=schema(contract))
    for check in contract.checks:
        if check.sql is not None:
            answer = _asked(check, check.sql, nothing)
            if answer.dtype not in (pl.Boolean(), pl.Null()):
                raise _invalid(check, f"it gives {answer.dtype}, not true or false")
            if len(answer):
                raise _invalid(check, "it gives one answer for all rows")


def answers(rows: pl.DataFrame, contract: Contract) -> Iterator[tuple[Check, pl.Series, Sequence[str]]]:
    """For each check: true where a row breaks it, and the columns that it is known to look at.

    Raises:
        DefinitionInvalid: a check cannot be made, or does not give a boolean for each row.
    """
    for check in contract.checks:
        if check.sql is not None:
            good, columns = _asked(check, check.sql, rows), pl.sql_expr(check.sql).meta.root_names()
        else:
            good, columns = _judged(check, rows), []
        if good.dtype not in (pl.Boolean(), pl.Null()) or len(good) != rows.height:
            raise _invalid(
                check,
                f"it gives {len(good):,} × {good.dtype} for {rows.height:,} rows, not a boolean for each",
            )
        yield check, (~good.cast(pl.Boolean)).fill_null(False), list(dict.fromkeys(columns))


def _asked(check: Check, sql: str, rows: pl.DataFrame) -> pl.Series:
    try:
        return rows.select(pl.sql_expr(sql).alias("answer")).to_series()
    except pl.exceptions.PolarsError as error:
        raise _invalid(check, str(error).splitlines()[0]) from error


def _judged(check: Check, rows: pl.DataFrame) -> pl.Series:
    try:
        good = load_function(str(check.fn))(rows)
    except Exception as error:
        raise _invalid(check, f"{type(error).__name__}: {error}") from error
    if not isinstance(good, pl.Series):
        raise _invalid(check, f"it gives a {type(good).__name__}, not a polars.Series")
    return good


def _invalid(check: Check, problem: str) -> DefinitionInvalid:
    return DefinitionInvalid(
        f"check {check.name!r} ({check.sql or check.fn}) cannot be made: {problem}",
        hint="a check is an SQL expression over the contract's columns, or a function from rows to booleans",
    )
