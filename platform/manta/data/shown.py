"""A version of a dataset as a notebook shows it: what it is, where it came from, and its profile, drawn."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from manta.data.commits import Commit
from manta.errors import InvalidInput
from manta.words import share, short, size

BLOCKS = "▁▂▃▄▅▆▇█"
TOP_SHOWN = 3


class Picture:
    """A drawing, as PNG. A notebook shows it."""

    def __init__(self, png: bytes) -> None:
        self.png = png

    def save(self, path: str | Path) -> None:
        Path(path).write_bytes(self.png)

    def _repr_png_(self) -> bytes:
        return self.png


class Shown(BaseModel):
    """A version of a dataset.

    Attributes:
        columns: name → Arrow type, and "not null" where it is so.
        commit: how it came to be.
        profile: see :func:`manta.data.profile.finish`.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    version: int
    rows: int
    files: int
    bytes: int
    columns: dict[str, str]
    commit: Commit
    profile: dict[str, Any]

    def title(self) -> str:
        return f"{self.name}@{self.version}"

    def facts(self) -> str:
        """In one line."""
        by = f", by run {self.commit.run}" if self.commit.run is not None else ""
        files = f"{self.files} file{'' if self.files == 1 else 's'}"
        return (
            f"{self.rows:,} rows × {len(self.columns)} columns, {size(self.bytes)} in {files}; "
            f"{self.commit.mode} of {self.commit.at:%Y-%m-%d %H:%M} UTC{by}"
        )

    def lines(self) -> list[dict[str, str]]:
        """Of each column in words: column, type, null, distinct, spread, values."""
        return [
            {
                "column": name,
                "type": figures["type"],
                "null": share(figures["nulls"], self.rows),
                "distinct": distinct(figures),
                "spread": sparkline(figures),
                "values": frequent(figures, self.rows) or span(figures),
            }
            for name, figures in self.profile["columns"].items()
        ]

    def plot(self, path: str | Path | None = None) -> Picture:
        """A panel for each column: how its values are spread, or which are frequent, and how many are null.

        Args:
            path: a .png or .html file to write, too.

        Raises:
            InvalidInput: the path ends otherwise.
        """
        from manta.data.pictures import draw

        kind = Path(path).suffix.lower() if path is not None else ".png"
        if kind not in (".png", ".html"):
            raise InvalidInput(f"{path} is neither a .png nor a .html file", hint="end its name so")
        picture = Picture(draw(self.title(), self.facts(), self.rows, self.profile["columns"]))
        if kind == ".html":
            page = f"<!doctype html><meta charset=utf-8><title>{html.escape(self.title())}</title>"
            Path(str(path)).write_text(page + STYLE + self._repr_html_())
        elif path is not None:
            picture.save(path)
        return picture

    def _repr_html_(self) -> str:
        drawn = [_bars(figures) for figures in self.profile["columns"].values()]
        rows = "".join(map(_row, self.lines(), drawn))
        head = "".join(f"<th>{each}</th>" for each in ("column", "type", "null", "distinct", "", "values"))
        return (
            f"<div><b>{html.escape(self.title())}</b> · {html.escape(self.facts())}"
            f"<table><tr>{head}</tr>{rows}</table></div>"
        )


def _row(line: dict[str, str], drawn: str) -> str:
    cells = {name: html.escape(text) for name, text in line.items()} | {"spread": drawn}
    return "<tr>" + "".join(f'<td style="text-align:left">{each}</td>' for each in cells.values()) + "</tr>"


STYLE = "<style>body{font-family:sans-serif;font-size:14px;margin:2em}td,th{padding:2px 10px}</style>"


# --- in words -----------------------------------------------------------------------------------------


def distinct(figures: dict[str, Any]) -> str:
    if "distinct" not in figures:
        return ""
    told = figures["distinct"]
    return f"{told['count']:,}" if told["exact"] else f"≈ {told['count']:,}"


def span(figures: dict[str, Any]) -> str:
    """From the least to the greatest value; of lists, how long they are."""
    if "lengths" in figures:
        least, most = figures["lengths"]["min"], figures["lengths"]["max"]
        return f"{least:,} long" if least == most else f"{least:,} … {most:,} long"
    return f"{short(figures['min'])} … {short(figures['max'])}" if "min" in figures else ""


def frequent(figures: dict[str, Any], rows: int) -> str:
    """The most frequent values of a column that is no number, with their shares."""
    if "quantiles" in figures:
        return ""
    top = figures.get("top", [])[:TOP_SHOWN]
    return ", ".join(f"{short(each['value'])} {share(each['count'], rows)}" for each in top)


def sparkline(figures: dict[str, Any]) -> str:
    """A histogram in block characters; of what has none, the counts of its frequent values."""
    counts = _counts(figures)
    most = max(counts, default=0)
    if not most:
        return ""
    return "".join(BLOCKS[-(-count * len(BLOCKS) // most) - 1] if count else " " for count in counts)


def _counts(figures: dict[str, Any]) -> list[int]:
    if figures.get("histogram"):
        return list(figures["histogram"]["counts"])
    return [] if "quantiles" in figures else [each["count"] for each in figures.get("top", [])]


def _bars(figures: dict[str, Any]) -> str:
    """The same as a small SVG."""
    counts = _counts(figures)
    most = max(counts, default=0)
    if not most:
        return ""
    width, height = 120, 28
    step = width / len(counts)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{height * (1 - count / most):.1f}" width="{step * 0.9:.1f}" '
        f'height="{height * count / most:.1f}"/>'
        for i, count in enumerate(counts)
    )
    return f'<svg width="{width}" height="{height}" fill="#4878a8">{bars}</svg>'
