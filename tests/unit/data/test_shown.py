"""How a version is drawn: every type and every odd column has a panel, a line and a bar."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import polars as pl
import pytest

from manta.data import pictures
from manta.data.reading import Datasets
from manta.data.shown import sparkline
from tests.unit.data.test_profile import ALL_TYPES

Put = Callable[..., int]
KEPT = ALL_TYPES.select(
    "int8", "float32", "far apart", "all nan", "bool", "string", "decimal", "binary", "date", "utc", "list",
    "struct",
)  # fmt: skip
ODD = pl.DataFrame(
    {
        "$x$ <b>&amp;": ["<script>alert(1)</script>", "$\\frac{1}{2}$", None],
        "long" * 40: ["y" * 500] * 3,
        "new\nline": ["a\nb", "\t", ""],
        "nothing": pl.Series([None] * 3, dtype=pl.String),
    }
)


def pixels(png: bytes) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(png))


@pytest.mark.parametrize(
    "frame", [KEPT, KEPT.head(0), ODD, KEPT.select("int8")], ids=["all", "empty", "odd", "one"]
)
def test_all_columns_are_drawn(datasets: Datasets, put: Put, tmp_path: Path, frame: pl.DataFrame) -> None:
    put("d", frame)
    shown = datasets.show("d")
    picture = shown.plot(tmp_path / "d.png")
    assert (tmp_path / "d.png").read_bytes() == picture.png == picture._repr_png_()
    drawn = pixels(picture.png)
    assert drawn.std() > 0.01  # not a blank
    across = min(4, max(frame.width, 2))
    assert drawn.shape[1] == pytest.approx(across * 3.4 * 110, abs=2)
    assert [line["column"] for line in shown.lines()] == frame.columns


class Text(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_what_the_data_says_is_no_html(datasets: Datasets, put: Put, tmp_path: Path) -> None:
    put("d", ODD)
    shown = datasets.show("d")
    shown.plot(tmp_path / "d.html")
    for page in (shown._repr_html_(), (tmp_path / "d.html").read_text()):
        found = Text(page)
        assert "script" not in found.tags
        assert "b" in found.tags  # the title's own
        assert found.tags.count("b") == 1
        assert "$x$ <b>&amp;" in found.texts
        assert found.tags.count("tr") == 5


def test_a_wide_table_is_drawn_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST", 3)
    columns = {f"c{i}": {"type": "int64", "nulls": 0} for i in range(5)}
    few = pixels(pictures.draw("t", "f", 1, dict(list(columns.items())[:3])))
    assert pixels(pictures.draw("t", "f", 1, columns)).shape == few.shape


def test_bars_in_a_line() -> None:
    counts = [0, 1, 50, 100, 800]
    assert sparkline({"histogram": {"counts": counts}}) == " ▁▁▁█"
    assert sparkline({"top": [{"count": 8}, {"count": 4}]}) == "█▄"
    assert sparkline({"histogram": None, "quantiles": {}, "top": [{"count": 8}]}) == ""
    assert sparkline({}) == ""


def test_bins_of_whole_numbers_hold_as_many_each(datasets: Datasets, put: Put) -> None:
    """Of 31 days in 20 bins some would hold two and look twice as frequent."""
    put("d", pl.DataFrame({"day": [n % 30 + 1 for n in range(3000)]}))
    histogram = datasets.show("d").profile["columns"]["day"]["histogram"]
    assert set(histogram["counts"]) == {200}
    assert histogram["edges"][0] == 0.5
    assert re.fullmatch("█+", sparkline({"histogram": histogram}))
