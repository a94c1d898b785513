"""What Feast asks of an offline store, of ours: through Feast's own SDK and its plain configuration, once on
datasets of the lake and once on Parquet files.

What Feast's own suites for offline stores (universal retrieval, entityless range, write, push, logging,
persist, types) assert of every store is asserted here in our words; what they leave open (ties, TTL edges,
order) is held to the oracle in tests/unit/features.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    OnDemandFeatureView,
    RepoConfig,
    RequestSource,
    ValueType,
)
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import FeatureServiceLoggingSource, LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.types import Array, Float32, Float64, Int64, String, UnixTimestamp

from manta.data.lake import Lake
from manta.data.reading import Datasets
from manta.errors import DefinitionInvalid, InvalidInput, NotFound
from manta.features import DatasetDestination, DatasetSource, DatasetStorage, pinned

START = datetime(2024, 3, 1, tzinfo=UTC)
ENTITY = pd.DataFrame(
    {
        "order": [1, 2, 3, 4, 5],
        "driver": [7, 8, 7, 9, 7],
        "event_timestamp": [START + timedelta(hours=h) for h in (5, 5, 1, 5, 50)],
    }
)
ASKED = ["stats:rate", "stats:trips", "city:mood"]


def stats(hours: int = 0) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "driver": [7, 7, 8, 7],
            "at": [START + timedelta(hours=h + hours) for h in (0, 4, 4, 4)],
            "written": [START + timedelta(hours=h + hours) for h in (0, 4, 4, 6)],
            "conversion": [0.5, 0.25, 0.75, 0.125],
            "trips": [1, 2, None, 3],
            "seen": [["a"], [], None, ["b", "c"]],
        }
    )


@dataclass
class Repo:
    """A Feast repository on one kind of source."""

    store: FeatureStore
    folder: Path
    kind: str

    def put(self, name: str, frame: pl.DataFrame) -> None:
        if self.kind == "dataset":
            self.lake.replace(name, frame, run_key=f"{name}-{self.lake.version(name)}-put")
        else:
            frame.write_parquet(self.folder / f"{name}.parquet")

    @property
    def lake(self) -> Lake:
        return Lake(self.folder / "lake")

    def source(self, name: str, time: str, created: str = "", **more: Any) -> Any:
        if self.kind == "dataset":
            return DatasetSource(
                name=name, dataset=name, timestamp_field=time, created_timestamp_column=created, **more
            )
        return FileSource(
            name=name, path=f"{name}.parquet", timestamp_field=time, created_timestamp_column=created, **more
        )

    def get(self, entity: Any, features: Any = ASKED, **more: Any) -> pa.Table:
        return self.store.get_historical_features(entity, features, **more).to_arrow()


IMPORTS = "from __future__ import annotations\nimport pandas as pd\n"


def plus(columns: dict[str, Any]) -> dict[str, Any]:
    return {
        "plus": [None if r is None else r + a for r, a in zip(columns["rate"], columns["add"], strict=True)]
    }


def doubled(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"double": frame["rate"] * 2 + frame["add"]})


@pytest.fixture(params=["dataset", "file"])
def repo(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    config = RepoConfig(
        project="plain",
        registry={"registry_type": "file", "path": str(tmp_path / "registry.db"), "cache_ttl_seconds": 0},
        provider="local",
        offline_store={
            "type": "manta.features.offline.AsofOfflineStore",
            "lake": str(tmp_path / "lake"),
            "staging_location": str(tmp_path / "staging"),
        },
        online_store={"type": "sqlite", "path": str(tmp_path / "online.db")},
        materialization={"pull_latest_features": True},
        entity_key_serialization_version=3,
        repo_path=tmp_path,
    )
    made = Repo(FeatureStore(config=config), tmp_path, request.param)
    made.put("stats", stats())
    made.put("city", pl.DataFrame({"day": [START, START + timedelta(days=1)], "mood": ["calm", "gay"]}))
    driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.INT64)
    source = made.source("stats", "at", "written", field_mapping={"conversion": "rate"})
    views = [
        FeatureView(
            name="stats",
            entities=[driver],
            ttl=timedelta(days=1),
            schema=[
                Field(name="driver", dtype=Int64),
                Field(name="rate", dtype=Float32),
                Field(name="trips", dtype=Int64),
                Field(name="seen", dtype=Array(String)),
            ],
            source=source,
        ),
        FeatureView(
            name="city",
            entities=[],
            ttl=timedelta(0),
            schema=[Field(name="mood", dtype=String)],
            source=made.source("city", "day"),
        ),
    ]
    asked = RequestSource(name="asked", schema=[Field(name="add", dtype=Float64)])
    rate = views[0][["rate"]]
    demands = [
        OnDemandFeatureView(
            name=name,
            sources=[asked, rate],
            schema=[Field(name=feature, dtype=Float64)],
            mode=mode,
            udf=udf,
            udf_string=IMPORTS + inspect.getsource(udf),
        )
        for name, feature, mode, udf in (
            ("adding", "plus", "python", plus),
            ("doubling", "double", "pandas", doubled),
        )
    ]
    made.store.apply([driver, source, *views, *demands])
    return made


# --- retrieval ----------------------------------------------------------------------------------------------


def test_every_entity_row_is_kept_in_order_with_what_it_could_know(repo: Repo) -> None:
    table = repo.get(ENTITY)
    assert table.column_names == [*ENTITY.columns, "rate", "trips", "mood"]
    assert table["order"].to_pylist() == [1, 2, 3, 4, 5]
    assert table["rate"].to_pylist() == [0.125, 0.75, 0.5, None, None]  # 50 h is past the TTL
    assert table["trips"].to_pylist() == [3, None, 1, None, None]
    assert table["mood"].to_pylist() == ["calm"] * 4 + ["gay"]
    assert [str(table.schema.field(n).type) for n in ("rate", "trips", "mood")] == [
        "float",
        "int64",
        "string",
    ]
    late = repo.get(ENTITY, filter_by_created_timestamp=True)
    assert late["rate"].to_pylist() == [0.25, 0.75, 0.5, None, None]
    frame = repo.store.get_historical_features(ENTITY, ASKED).to_df()
    pd.testing.assert_frame_equal(frame, table.to_pandas())


def test_times_may_be_naive_zoned_nanoseconds_or_dates(repo: Repo) -> None:
    expected = repo.get(ENTITY)["rate"].to_pylist()
    times = ENTITY["event_timestamp"]
    for given in (
        times.dt.tz_localize(None),
        times.dt.tz_convert("America/New_York"),
        times.astype("datetime64[ns, UTC]") + pd.Timedelta(999, "ns"),
        times.astype("datetime64[s, UTC]"),
    ):
        assert repo.get(ENTITY.assign(event_timestamp=given))["rate"].to_pylist() == expected
    days = pd.DataFrame({"driver": [7, 7], "event_timestamp": [date(2024, 3, 1), date(2024, 3, 2)]})
    assert repo.get(days)["rate"].to_pylist() == [0.5, 0.125]


def test_the_time_column_is_found_and_a_missing_one_named(repo: Repo) -> None:
    renamed = ENTITY.rename(columns={"event_timestamp": "e_ts"})
    assert repo.get(renamed)["rate"].to_pylist() == repo.get(ENTITY)["rate"].to_pylist()
    with pytest.raises(Exception, match="event_timestamp"):
        repo.get(ENTITY.drop(columns="event_timestamp"))
    with pytest.raises(InvalidInput, match="no column driver"):
        repo.get(ENTITY.rename(columns={"driver": "customer"}))
    with pytest.raises(InvalidInput, match="entity_df is a list"):
        repo.get([1, 2])


def test_full_names_lists_and_services(repo: Repo) -> None:
    service = FeatureService(name="one", features=[repo.store.get_feature_view("stats")[["seen", "rate"]]])
    repo.store.apply(service)
    table = repo.get(ENTITY, service, full_feature_names=True)
    assert table["stats__seen"].to_pylist() == [["b", "c"], None, ["a"], None, None]
    assert table.column_names == [*ENTITY.columns, "stats__seen", "stats__rate"]


@pytest.mark.parametrize("full", [False, True])
def test_on_demand_views_in_either_mode(repo: Repo, full: bool) -> None:
    asked = ["adding:plus", "doubling:double", "stats:rate"]
    table = repo.get(ENTITY.assign(add=1.0), asked, full_feature_names=full)
    one, two = ("adding__plus", "doubling__double") if full else ("plus", "double")
    assert table[one].to_pylist() == [1.125, 1.75, 1.5, None, None]
    assert table[two].to_pandas()[:3].tolist() == [1.25, 2.5, 2.0]
    assert set(table.column_names) - set(ENTITY.columns) - {"add"} == {
        one,
        two,
        "stats__rate" if full else "rate",
    }
    with pytest.raises(Exception, match="add"):
        repo.get(ENTITY, asked)


def test_no_rows_and_no_values(repo: Repo) -> None:
    empty = repo.get(ENTITY.head(0))
    assert empty.num_rows == 0
    assert empty.column_names == [*ENTITY.columns, "rate", "trips", "mood"]
    repo.put("stats", stats().head(0))
    assert repo.get(ENTITY)["rate"].to_pylist() == [None] * 5


def test_a_row_that_is_there_twice_stays_twice(repo: Repo) -> None:
    twice = pd.concat([ENTITY, ENTITY.head(1)], ignore_index=True)
    assert repo.get(twice)["rate"].to_pylist() == [0.125, 0.75, 0.5, None, None, 0.125]


def test_without_an_entity_frame_there_is_a_row_for_each_key_and_time(repo: Repo) -> None:
    between = {"start_date": START + timedelta(hours=1), "end_date": START + timedelta(hours=30)}
    table = repo.get(None, ["stats:rate", "stats:trips"], **between)
    assert table.to_pylist() == [
        {"event_timestamp": START + timedelta(hours=4), "driver": 7, "rate": 0.125, "trips": 3},
        {"event_timestamp": START + timedelta(hours=4), "driver": 8, "rate": 0.75, "trips": None},
    ]
    both = repo.get(None, ASKED, **between)  # a time of the view without keys has no driver
    assert both["driver"].to_pylist() == [7, 8, None]
    assert both["mood"].to_pylist() == ["calm", "calm", "gay"]
    naive = {name: at.replace(tzinfo=None) for name, at in between.items()}
    assert repo.get(None, ASKED, **naive).equals(both)
    assert repo.get(None, ASKED).num_rows == 0  # the newest day only
    with pytest.raises(ValueError, match="both entity_df and"):
        repo.get(ENTITY, **between)


def test_a_query_gives_the_rows(repo: Repo) -> None:
    repo.lake.replace("orders", pl.from_pandas(ENTITY), run_key="orders-put")
    query = "SELECT driver, event_timestamp, 'x' AS tag FROM orders WHERE driver < 9 -- not 9"
    job = repo.store.get_historical_features(query, ASKED)
    table = job.to_arrow()
    assert sorted(table.column_names) == sorted(["driver", "event_timestamp", "tag", "rate", "trips", "mood"])
    assert table["rate"].to_pylist() == [0.125, 0.75, 0.5, None]
    assert job.to_arrow().equals(table)  # as often as it is asked for
    assert (job.metadata.min_event_timestamp, job.metadata.max_event_timestamp) == (
        START + timedelta(hours=1),
        START + timedelta(hours=50),
    )
    repo.lake.replace("orders", pl.from_pandas(ENTITY.head(1)), run_key="orders-again")
    assert repo.get(query).num_rows == 1
    assert repo.get('SELECT * EXCLUDE ("order") FROM orders@0').num_rows == 5
    with pinned({"orders": 0}):
        assert repo.get(query).num_rows == 4
    with pytest.raises(NotFound, match="no dataset 'order'"):
        repo.get('SELECT * FROM "order"')
    with pytest.raises(InvalidInput, match="only one SELECT"):
        repo.get("DROP TABLE orders")


def test_rows_that_do_not_fit_are_joined_on_disk(repo: Repo) -> None:
    expected = repo.get(ENTITY.assign(add=1.0), [*ASKED, "adding:plus", "doubling:double"])
    repo.store.config.offline_store.in_process_rows = 0
    repo.store.config.offline_store.partition_rows = 2
    found = repo.get(ENTITY.assign(add=1.0), [*ASKED, "adding:plus", "doubling:double"])
    assert found.to_pylist() == expected.to_pylist()
    assert found.schema == expected.schema
    assert list((repo.folder / "lake" / ".spill").iterdir()) == []


# --- pulling ------------------------------------------------------------------------------------------------


def test_what_materialization_pulls(repo: Repo) -> None:
    """Feast's own materialization, from this store into SQLite."""
    repo.store.materialize(START, START + timedelta(hours=10))
    online = repo.store.get_online_features(["stats:rate", "stats:trips"], [{"driver": 7}, {"driver": 8}])
    assert online.to_dict()["rate"] == [0.125, 0.75]
    assert online.to_dict()["trips"] == [3, None]


# --- writing ------------------------------------------------------------------------------------------------


def written(hours: float = 5, **more: Any) -> pd.DataFrame:
    at = pd.Timestamp(START + timedelta(hours=hours))
    row = {"trips": [9], "driver": [9], "seen": [["z"]], "written": [at], "conversion": [0.9], "at": [at]}
    return pd.DataFrame(row | more)


def test_batches_are_added_to_what_a_view_reads(repo: Repo) -> None:
    repo.store.write_to_offline_store("stats", written())
    repo.store.write_to_offline_store("stats", written(4.5, trips=[8.0]))
    table = repo.get(ENTITY)
    assert table["rate"].to_pylist() == [0.125, 0.75, 0.5, pytest.approx(0.9), None]
    assert table["trips"].to_pylist() == [3, None, 1, 9, None]
    if repo.kind == "dataset":
        assert [each.mode for each in Datasets(repo.lake.folder).history("stats")] == ["append"] * 2 + [
            "replace"
        ]
    with pytest.raises(ValueError, match="missing_expected_columns"):
        repo.store.write_to_offline_store("stats", written().drop(columns="trips"))
    before = repo.get(ENTITY)
    with pytest.raises(InvalidInput, match=r"cannot hold these rows|has 'trips' as Int64"):
        repo.store.write_to_offline_store("stats", written(trips=["many"]))
    if repo.kind == "dataset":
        with pytest.raises(InvalidInput, match="has 'trips' as Int64, and the rows as Float64"):
            repo.store.write_to_offline_store("stats", written(trips=[1.5]))
    assert repo.get(ENTITY).equals(before)


@pytest.mark.parametrize("as_path", [False, True])
def test_logs_are_added_and_read_again(repo: Repo, as_path: bool) -> None:
    destination: Any = (
        DatasetDestination("served")
        if repo.kind == "dataset"
        else FileLoggingDestination(path=str(repo.folder / "served"), partition_by=["__log_date"])
    )
    view = repo.store.get_feature_view("stats")[["rate", "trips"]]
    repo.store.apply(
        FeatureService(name="logged", features=[view], logging_config=LoggingConfig(destination=destination))
    )
    service = repo.store.get_feature_service("logged")  # as the registry gives it back
    schema = FeatureServiceLoggingSource(service, "plain").get_schema(repo.store.registry)
    for number in range(2):
        at = START + timedelta(hours=number)
        row: dict[str, Any] = dict.fromkeys(schema.names) | {
            "driver": 7,
            "stats__rate": 0.5,
            "stats__rate__timestamp": at,
            "stats__rate__status": 1,
            "__log_timestamp": at,
            "__log_date": at.date(),
            "__request_id": f"r{number}",
        }
        logs: Any = pa.Table.from_pylist([row], schema)
        if as_path:
            pq.write_to_dataset(logs, repo.folder / f"logs{number}")
            logs = repo.folder / f"logs{number}"
        repo.store.write_logged_features(logs, service)
    job = repo.store._get_provider().retrieve_feature_service_logs(
        service, START, START + timedelta(days=1), repo.store.config, repo.store.registry
    )
    found = job.to_df().sort_values("__request_id")
    assert found["__request_id"].tolist() == ["r0", "r1"]
    assert found["stats__rate"].tolist() == [0.5, 0.5]
    assert set(found.columns) == set(schema.names)


# --- saved datasets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["dataset", "file", "folder"])
def test_saved_datasets(repo: Repo, form: str) -> None:
    place: Any = {
        "dataset": DatasetStorage("saved"),
        "file": SavedDatasetFileStorage(path=str(repo.folder / "saved.parquet")),
        "folder": SavedDatasetFileStorage(path=str(repo.folder / "saved")),
    }[form]
    repo.store.config.offline_store.in_process_rows = 0  # block after block
    repo.store.config.offline_store.partition_rows = 2
    job = repo.store.get_historical_features(ENTITY, ASKED, full_feature_names=True)
    repo.store.create_saved_dataset(job, "kept", place)
    again = repo.store.get_saved_dataset("kept").to_df().sort_values("event_timestamp", kind="stable")
    expected = job.to_df().sort_values("event_timestamp", kind="stable")
    assert again["stats__rate"].fillna(-1).tolist() == expected["stats__rate"].fillna(-1).tolist()
    assert again["driver"].tolist() == expected["driver"].tolist()
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        repo.store.create_saved_dataset(job, "kept", place)
    few = repo.store.get_historical_features(ENTITY.head(2), ASKED, full_feature_names=True)
    repo.store.create_saved_dataset(few, "kept", place, allow_overwrite=True)
    assert len(repo.store.get_saved_dataset("kept").to_df()) == 2
    if form == "dataset":
        assert repo.lake.read("saved", 0).height == 5


def test_exported_files_hold_the_rows_in_order(repo: Repo) -> None:
    repo.store.config.offline_store.in_process_rows = 0
    repo.store.config.offline_store.partition_rows = 2
    job = repo.store.get_historical_features(ENTITY, ASKED)
    assert job.supports_remote_storage_export()
    files = job.to_remote_storage()
    assert len(files) == 3
    assert pl.read_parquet(files)["order"].to_list() == [1, 2, 3, 4, 5]


# --- Ray ----------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_as_a_ray_dataset_no_row_passes_through_this_process(repo: Repo, ray_cluster: None) -> None:
    repo.store.config.offline_store.partition_rows = 2
    job = repo.store.get_historical_features(ENTITY, ASKED)
    expected = job.to_arrow().to_pylist()
    dataset = job.to_ray_dataset()
    assert dataset.materialize().num_blocks() == 3
    assert sorted(dataset.take_all(), key=lambda row: row["order"]) == expected


# --- refusals -----------------------------------------------------------------------------------------------


def test_what_cannot_be_read_says_so(repo: Repo) -> None:
    repo.put("stats", stats().drop("conversion"))
    with pytest.raises(DefinitionInvalid, match="'stats', read by view 'stats', has no column conversion"):
        repo.get(ENTITY)
    if repo.kind == "file":
        (repo.folder / "stats.parquet").unlink()
        with pytest.raises(NotFound, match="file source 'stats': there is no"):
            repo.get(ENTITY)


def test_a_type_that_would_lose_something_is_refused(repo: Repo) -> None:
    repo.put("stats", stats().with_columns(pl.col("trips").cast(pl.Float64) + 0.5))
    with pytest.raises(DefinitionInvalid, match="'trips' as Float64"):
        repo.get(ENTITY)


def test_times_as_features_and_strings_as_keys(repo: Repo) -> None:
    shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.STRING)
    seen = START - timedelta(hours=1)
    repo.put("shops", pl.DataFrame({"shop": ["é", ""], "at": [START] * 2, "seen": [seen, None]}))
    view = FeatureView(
        name="shops",
        entities=[shop],
        schema=[Field(name="shop", dtype=String), Field(name="seen", dtype=UnixTimestamp)],
        source=repo.source("shops", "at"),
    )
    # Named both: Feast cannot sort a view and another use of it in one service.
    uses = [view.with_name("shop_one"), view.with_name("shop_two").with_join_key_map({"shop": "other"})]
    repo.store.apply([shop, view, FeatureService(name="two", features=uses)])
    rows = pd.DataFrame({"shop": ["é", "x"], "other": ["", "é"], "event_timestamp": [START] * 2})
    table = repo.get(rows, repo.store.get_feature_service("two"), full_feature_names=True)
    assert table["shop_one__seen"].to_pylist() == [seen, None]
    assert table["shop_two__seen"].to_pylist() == [None, seen]
