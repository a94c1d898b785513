"""The connector for GeoJSON."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from manta.connectors.geojson import GeoJson
from manta.definitions.sources import Ask
from manta.errors import SourceUnreadable
from manta.testing.connectors import ConnectorConformance, texts

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


class TestGeoJson(ConnectorConformance):
    def put(self, rows: pl.DataFrame, place: Path) -> GeoJson:
        features = [{"type": "Feature", "geometry": None, "properties": row} for row in _dicts(rows)]
        (place / "rows.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        return GeoJson(path=str(place / "*.geojson"))

    def broken(self, place: Path) -> GeoJson:
        return GeoJson(path=str(place / "nowhere"))


def _dicts(rows: pl.DataFrame) -> list[dict[str, object]]:
    return list(json.loads(texts(rows, "blob").write_json()))


def test_a_feature_that_is_none_is_broken_and_the_others_are_read(tmp_path: Path) -> None:
    point = '{"type": "Point", "coordinates": [13.4,\n 52.5]}'
    good = f'{{"type": "Feature", "id": 7, "geometry": {point}, "properties": {{"id": "x", "n": 1.10}}}}'
    (tmp_path / "a.json").write_text(
        f'{{"type": "FeatureCollection", "features": [{good}, 5, {{}}, {good}]}}'
    )
    source, ask = GeoJson(path="*.json"), Ask(tmp_path, ("id", "n", "geometry"))
    with source.opened(ask) as reading:
        (rows,) = source.read(reading.pieces[0], ask)
    assert [broken.row for broken in rows.broken] == [1, 2]
    assert rows.values["id"].to_list() == ["7", "7"]
    assert json.loads(rows.values["geometry"][0])["coordinates"] == [13.4, 52.5]
    (tmp_path / "a.json").write_text('{"type": "Feature"}')
    with source.opened(ask) as reading, pytest.raises(SourceUnreadable, match="cannot be read as GeoJSON"):
        list(source.read(reading.pieces[0], ask))
