"""Handwritten digits as image files, and what is made of them: scikit-learn's 1,797 pictures of 8 × 8 pixels.

A second reference, beside the flights: a feature that is a vector, and more than two answers. `manta apply`
leaves it alone; `manta run digit --wait` writes the files, ingests them and trains (jobs/digits.py).

The pictures bear no date. They are taken as one a minute, in their order, from 1 July 1998, when the UCI
repository was given them; the last ones are held out.
"""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from manta import Column, Contract, FeatureTable, Files, Ingest, Job, Materialize, RunContext

FOLDER = "data/digits"
COUNT, SIDE = 1797, 8
BRIGHTER = 15  # scikit-learn's pixels reach from 0 to 16, those of a file to 255
FIRST = datetime(1998, 7, 1, tzinfo=UTC)


def write_files(context: RunContext) -> None:
    """Write ``data/digits/<digit>/<number>.png``; a file that is there already, and the same, stays."""
    from sklearn.datasets import load_digits

    held = load_digits()
    written = 0
    for number, (image, digit) in enumerate(zip(held.images, held.target, strict=True)):
        path = context.settings.root / FOLDER / str(digit) / f"{number:04}.png"
        written += _put(path, _png((image * BRIGHTER).astype(np.uint8)))
    context.measured(files=len(held.images), written=written)


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


def _put(path: Path, content: bytes) -> bool:
    """Whether the file was written: whole, or not at all."""
    if path.exists() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)
    return True


def digits_of(inputs: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """One row per image: its number, the ``digit`` that it shows, when it was ``written_at``, and ``pixels``,
    64 shares of brightness, row by row from above."""
    images = inputs["digit_images"]
    number = pl.col("path").str.extract(r"([0-9]+)\.png$", 1).cast(pl.Int64)
    return images.select(
        image=number,
        digit=pl.col("label").cast(pl.Int64),
        written_at=pl.lit(FIRST) + pl.duration(minutes=number),
        pixels=pl.Series([_pixels(content) for content in images["bytes"]], dtype=pl.List(pl.Float32)),
    )


def _pixels(content: bytes) -> list[float]:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        shares = np.asarray(image, dtype=np.float32) / 255
    return list(shares.ravel().tolist())


digit_files = Job(name="digit_files", fn=write_files, on_apply=False)

digit_images = Ingest(
    dataset="digit_images",
    source=Files(path=f"{FOLDER}/*/*.png", format="image"),
    contract=Contract(
        columns={
            "path": Column(type="string", pattern=r"[0-9]/[0-9]{4}\.png"),
            # The folder's name.
            "label": Column(type="string", pattern="[0-9]"),
            "bytes": Column(type="binary"),
            "width": Column(type="int64", min=SIDE, max=SIDE),
            "height": Column(type="int64", min=SIDE, max=SIDE),
            "mode": Column(type="string", one_of=("L",)),
        },
        key=("path",),
        min_rows=COUNT,
    ),
    needs=("digit_files",),
    on_apply=False,
)

digits = FeatureTable(
    dataset="digits",
    inputs_from=("digit_images",),
    fn=digits_of,
    key=("image",),
    time="written_at",
    needs=("digit_images",),
    on_apply=False,
)

online = Materialize(
    name="digits_online", features="digits_v1", parity=200, needs=("digits", "features"), on_apply=False
)
