"""The digits: their files, their table, and the net that is trained on them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.datasets import load_digits

from jobs import digit_images
from jobs.digit_images import FIRST, digits_of, write_files
from jobs.digits import Net, digit
from manta.data.contract import check

SHAPE = {"categories": [], "numbers": 65, "vectors": {"pixels": [0, 64]}, "outputs": 10}
DEFINITIONS = (
    digit_images.digit_files,
    digit_images.digit_images,
    digit_images.digits,
    digit_images.online,
    digit,
)


class Told:
    """What a run is told by the function, and a place to write."""

    def __init__(self, root: Path) -> None:
        self.settings = SimpleNamespace(root=root)
        self.metrics: dict[str, Any] = {}

    def measured(self, **metrics: Any) -> None:
        self.metrics = metrics


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Told:
    told = Told(tmp_path_factory.mktemp("digits"))
    write_files(told)  # type: ignore[arg-type]
    return told


def _images(root: Path) -> pl.DataFrame:
    """As the connector gives them."""
    paths = sorted((root / digit_images.FOLDER).glob("*/*.png"))
    return pl.DataFrame(
        {
            "path": [f"{path.parent.name}/{path.name}" for path in paths],
            "label": [path.parent.name for path in paths],
            "bytes": [path.read_bytes() for path in paths],
            "width": [8] * len(paths),
            "height": [8] * len(paths),
            "mode": ["L"] * len(paths),
        }
    )


def test_each_runs_only_when_asked_and_after_what_it_reads() -> None:
    names = [each.name for each in DEFINITIONS]
    assert len(set(names)) == len(names)
    for before, each in pairwise(DEFINITIONS):
        assert not each.on_apply
        assert before.name in each.needs


def test_files_are_written_once_and_mended_where_they_are_broken(written: Told) -> None:
    assert written.metrics == {"files": 1797, "written": 1797}
    root = written.settings.root
    spoilt = root / digit_images.FOLDER / "0/0000.png"
    spoilt.write_bytes(b"cut short")
    again = Told(root)
    write_files(again)  # type: ignore[arg-type]
    assert again.metrics == {"files": 1797, "written": 1}
    assert {path.suffix for path in (root / digit_images.FOLDER).glob("*/*")} == {".png"}


def test_the_table_has_the_pixels_of_scikit_learn(written: Told) -> None:
    images = _images(written.settings.root)
    positions = pl.DataFrame({"file": ["x"] * images.height, "row": list(range(images.height))})
    held = check(images, digit_images.digit_images.contract, positions)
    assert (held.good.height, held.refused.height) == (1797, 0)
    table = digits_of({"digit_images": held.good}).sort("image")
    digits = load_digits()
    assert table["digit"].to_list() == digits.target.tolist()
    assert table["image"].to_list() == list(range(1797))
    assert table["written_at"][61] - FIRST == (table["written_at"][1] - table["written_at"][0]) * 61
    pixels = np.array(table["pixels"].to_list())
    assert np.abs(pixels * 255 / digit_images.BRIGHTER - digits.data).max() < 1e-5


def test_an_image_of_another_size_is_refused(written: Told) -> None:
    images = _images(written.settings.root).head(2).with_columns(width=pl.Series([8, 9]))
    positions = pl.DataFrame({"file": ["x"] * 2, "row": [0, 1]})
    held = check(images, digit_images.digit_images.contract, positions)
    assert held.refused["reason"].to_list() == ["width: 9 is above 8"]


def test_ten_logits_per_row_whatever_the_others_are() -> None:
    torch.manual_seed(1)
    net = Net(SHAPE).eval()
    numbers = torch.randn(20, 65)
    nothing = torch.empty((20, 0), dtype=torch.int64)
    with torch.inference_mode():
        together = net(nothing, numbers)
        alone = torch.cat([net(nothing[:1], numbers[at : at + 1]) for at in range(20)])
    assert together.shape == (20, 10)
    torch.testing.assert_close(together, alone)
