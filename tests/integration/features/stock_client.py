"""A program that knows Feast only: `python stock_client.py FOLDER ROWS AT`, its key in MANTA_API_KEY.

It reads through `online_store: remote` in every way that a Feast SDK has, pushes a row, and prints what it
got as JSON.
"""

from __future__ import annotations

import json
import sys

import pandas as pd
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.data_source import PushMode
from feast.types import Bool, Int32, Int64


def main() -> None:
    folder, rows, at = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
    store = FeatureStore(repo_path=folder)
    found = {}
    sales = ["sales:sold", "sales:buyers", "sales:best", "sales:open", "sales:recent", "facts:built"]
    keys = [{"shop": row["shop"], "city": row["city"]} for row in rows]
    found["list"] = store.get_online_features(sales, keys).to_dict()
    found["full"] = store.get_online_features(sales, keys, full_feature_names=True).to_dict()
    plain = FeatureService(name="plain", features=[])
    found["service"] = store.get_online_features(plain, rows).to_dict()

    # A client that pushes knows what it pushes to.
    shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.INT64)
    batch = FileSource(name="tills", path=f"{folder}/none.parquet", timestamp_field="at")
    queue = FeatureView(
        name="queue",
        entities=[shop],
        schema=[
            Field(name="shop", dtype=Int64),
            Field(name="waiting", dtype=Int32),
            Field(name="calm", dtype=Bool),
        ],
        source=PushSource(name="tills_push", batch_source=batch),
    )
    store.apply([shop, queue])
    frame = pd.DataFrame({"shop": [1], "waiting": [6], "calm": [True], "at": [pd.Timestamp(at)]})
    store.push("tills_push", frame, to=PushMode.ONLINE)
    found["pushed"] = store.get_online_features(["queue:waiting", "queue:calm"], [{"shop": 1}]).to_dict()
    try:
        store.get_online_features(["sales:nothing"], keys)
    except Exception as error:
        found["refused"] = str(error)
    found["manta"] = [name for name in sys.modules if name.partition(".")[0] == "manta"]
    print(json.dumps(found))


main()
