"""Repeated keys, against a plain-Python oracle: the first row of a key stays, wherever the others are."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.data.keys import Part, refuse_repeated
from manta.data.lake import write_part

keys = st.tuples(st.sampled_from(["UA", "AA", None]), st.integers(0, 3))
rows_of_part = st.lists(
    st.tuples(keys, st.booleans()), max_size=8
)  # a row, and whether it was refused before


@settings(deadline=None)
@given(staged=st.lists(rows_of_part, max_size=5))
def test_the_first_row_of_a_key_stays(staged: list[list[Any]], tmp_path_factory: Any) -> None:
    folder = str(tmp_path_factory.mktemp("parts"))
    parts, wanted, repeated = [], [], []
    firsts: dict[Any, tuple[str, int]] = {}
    for number, rows in enumerate(staged):
        good = [key for key, refused in rows if not refused]
        if not good:
            continue
        path = f"{folder}/{number:06d}.parquet"
        schema = {"carrier": pl.String, "flight": pl.Int64}
        write_part(pl.DataFrame(good, schema=schema, orient="row"), path)
        left_out = np.array([at for at, (_, refused) in enumerate(rows) if refused], dtype=np.int64)
        parts.append(Part(path, f"{number}.csv", len(good), first=100, left_out=left_out))
        for at, (key, refused) in enumerate(rows):
            if refused:
                continue
            if key in firsts:
                repeated.append(
                    (
                        f"{number}.csv",
                        100 + at,
                        "key (carrier, flight) is that of {} row {}".format(*firsts[key]),
                    )
                )
            else:
                firsts[key] = (f"{number}.csv", 100 + at)
                wanted.append((f"{number}.csv", 100 + at, key))
    kept, refused = refuse_repeated(parts, ["carrier", "flight"], folder)
    found = [
        (part.file, int(row), key)
        for part in kept
        for row, key in zip(
            part.source_rows(), pl.read_parquet(part.path, glob=False).iter_rows(), strict=True
        )
    ]
    assert found == wanted
    assert [row for frame in refused for row in frame.select("file", "row", "reason").iter_rows()] == repeated
    assert [part.path for part in kept] == sorted(part.path for part in kept)
