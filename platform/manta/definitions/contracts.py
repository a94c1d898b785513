"""What the rows of a dataset are held to: types, and rules for a value, for a row and for all rows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation, localcontext
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from manta.definitions.base import Frozen, FunctionPath
from manta.definitions.types import MAX_DIGITS, WHOLE, ColumnType, Kind, parse

TIMES = ("timestamp", "datetime", "date")
SIZED = ("string", "binary", "list")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _to_bound(value: Any) -> Any:
    return (
        value.isoformat() if isinstance(value, date) else str(value) if isinstance(value, Decimal) else value
    )


def _to_duration(value: Any) -> Any:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smhdw])", value) if isinstance(value, str) else None
    return timedelta(**{_UNITS[found[2]]: float(found[1])}) if found else value


Bound = Annotated[int | float | str, BeforeValidator(_to_bound)]
"""A number, date, moment or Decimal; the last three are kept as text."""

Duration = Annotated[timedelta, BeforeValidator(_to_duration)]
"""As ``"90s"``, ``"5m"``, ``"2h"``, ``"1d"`` or ``"1w"``, or a timedelta."""


class Column(Frozen):
    """What a column must hold. A rule says nothing of a missing value, which ``nullable`` allows or not.

    Attributes:
        type: see :mod:`manta.definitions.types`; a ``timestamp`` without a zone is read as UTC.
        nullable: whether a value may be missing.
        null_values: texts that a source writes where a value is missing, such as ``"NA"``.
        min, max: inclusive bounds of numbers, dates, datetimes and timestamps.
        one_of, not_one_of: the only values allowed, or values that are not; of strings and integers.
        pattern: a regular expression that the whole string must match.
        min_length, max_length: inclusive, in characters, bytes or elements, of strings, binary and lists.
        max_null: the share of values, 0 to 1, that may be missing among the rows of a run; above it the run
            fails.
        fresh_within: the age that the newest value of the dataset may have when the run commits; above it
            the run fails. Of dates and times; a datetime is read as UTC, a date as its beginning.
    """

    type: ColumnType
    nullable: bool = False
    null_values: tuple[str, ...] = ()
    min: Bound | None = None
    max: Bound | None = None
    one_of: tuple[int | str, ...] | None = None
    not_one_of: tuple[int | str, ...] | None = None
    pattern: str | None = None
    min_length: int | None = Field(default=None, ge=0)
    max_length: int | None = Field(default=None, ge=0)
    max_null: float | None = Field(default=None, ge=0.0, le=1.0)
    fresh_within: Duration | None = None

    @model_validator(mode="after")
    def _checks_fit_the_type(self) -> Column:
        kind = parse(self.type)
        bounds = [_comparable(bound, kind) for bound in (self.min, self.max) if bound is not None]
        if len(bounds) == 2 and bounds[0] > bounds[1]:
            raise ValueError(f"min={self.min} is above max={self.max}")
        for choices in (self.one_of, self.not_one_of):
            if choices is not None:
                _require_choices(choices, kind)
        if self.pattern and kind.name != "string":
            raise ValueError(f"pattern holds for strings, not {kind}")
        if self.pattern and re.search(r"\(\?(?:[=!]|<[=!])", self.pattern):
            raise ValueError("the pattern looks around, which the engine that checks it cannot do")
        if (self.min_length is not None or self.max_length is not None) and kind.name not in SIZED:
            raise ValueError(f"min_length and max_length hold for strings, binary and lists, not {kind}")
        if self.fresh_within is not None and kind.name not in TIMES:
            raise ValueError(f"fresh_within holds for dates and times, not {kind}")
        if self.max_null is not None and not self.nullable:
            raise ValueError("max_null goes with nullable=True: no value may be missing")
        return self


def _comparable(bound: int | float | str, kind: Kind) -> Any:
    """What bounds are compared as.

    Raises:
        ValueError: it bounds no values of this type.
    """
    if not kind.is_number and kind.name not in TIMES:
        raise ValueError(f"min and max bound numbers, dates and times, not {kind}")
    try:
        if kind.name == "date":
            return date.fromisoformat(str(bound))
        if kind.name in TIMES:
            moment = datetime.fromisoformat(str(bound))
            if kind.name == "datetime" and moment.tzinfo:
                raise ValueError
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        if kind.name == "decimal":
            value = Decimal(str(bound))
            with localcontext(prec=4 * MAX_DIGITS):
                if value != round(value, kind.scale) or abs(value) >= 10 ** (kind.precision - kind.scale):
                    raise ValueError
            return value
    except (ValueError, InvalidOperation):
        raise ValueError(f"{bound!r} is no {kind}, so it cannot bound one") from None
    if isinstance(bound, str) or math.isnan(bound):
        raise ValueError(f"{bound!r} is no number, so it cannot bound {kind}")
    return bound


def _require_choices(choices: tuple[int | str, ...], kind: Kind) -> None:
    if kind.name not in ("string", *WHOLE):
        raise ValueError(f"one_of and not_one_of hold for strings and integers, not {kind}")
    wanted = str if kind.name == "string" else int
    wrong = [choice for choice in choices if type(choice) is not wanted]
    if wanted is int and not wrong:
        most = 2 ** (int(kind.name[3:]) - 1)
        wrong = [choice for choice in choices if not -most <= int(choice) < most]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no {kind}, so it cannot be one of its values")


class Check(Frozen):
    """A rule for a whole row, or for a function of the project.

        Check("arrives after it leaves", "arrived > departed")
        Check("on the map", inside_the_country)

    It sees the rows whose columns are in order. A row for which its answer is null passes.

    Attributes:
        name: what is wrong with a row that breaks it is told in these words.
        sql: an expression in Polars' SQL over the contract's columns.
        fn: ``fn(rows: polars.DataFrame) -> polars.Series`` of booleans, true for a good row. It gets any
            part of the rows, so it can only judge each by itself.
    """

    name: str = Field(min_length=1)
    sql: str | None = None
    fn: FunctionPath | None = None

    def __init__(
        self, name: str | None = None, rule: str | Callable[..., Any] | None = None, /, **fields: Any
    ) -> None:
        given = {"name": name, "sql" if isinstance(rule, str) else "fn": rule}
        super().__init__(**fields, **{field: value for field, value in given.items() if value is not None})

    @model_validator(mode="after")
    def _has_one_rule(self) -> Check:
        if (self.sql is None) == (self.fn is None):
            raise ValueError(f"check {self.name!r} needs an expression or a function, and not both")
        return self


class Contract(Frozen):
    """A dataset's schema and checks.

    Attributes:
        columns: by name, in the dataset's order. A source column that is not named here is dropped.
        key: columns that together name a row; a later row with the same key is refused.
        checks: rules for a row; one that breaks them is refused.
        max_refused: the share of rows, 0 to 1, that may go to quarantine; above it the run fails and
            nothing is committed.
        min_rows, max_rows: how many good rows a run must bring, inclusive; otherwise it fails.
        max_change: by what share the good rows that a run brings may be more or fewer than those that the
            version before was made with; 0.5 allows half as many to half as many again.
    """

    columns: dict[str, Column]
    key: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    max_refused: float = Field(default=0.0, ge=0.0, le=1.0)
    min_rows: int | None = Field(default=None, ge=0)
    max_rows: int | None = Field(default=None, ge=0)
    max_change: float | None = Field(default=None, ge=0.0)

    @model_validator(mode="after")
    def _key_is_known(self) -> Contract:
        unknown = [name for name in self.key if name not in self.columns]
        if unknown:
            raise ValueError(f"key names columns that the contract does not have: {', '.join(unknown)}")
        nested = [name for name in self.key if parse(self.columns[name].type).is_nested]
        if nested:
            raise ValueError(f"a list or a struct cannot be a key: {', '.join(nested)}")
        return self

    @model_validator(mode="after")
    def _rules_agree(self) -> Contract:
        if self.min_rows is not None and self.max_rows is not None and self.min_rows > self.max_rows:
            raise ValueError(f"min_rows={self.min_rows} is above max_rows={self.max_rows}")
        names = [check.name for check in self.checks]
        if len(set(names)) < len(names):
            raise ValueError("two checks have one name")
        return self

    def code(self) -> tuple[str, ...]:
        """The functions of its checks."""
        return tuple(check.fn for check in self.checks if check.fn is not None)
