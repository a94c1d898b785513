"""`python -m manta.worker.training_set`: the joined examples of a training, as Parquet.

Reads from standard input a JSON object: ``definition`` of the training, the ``versions`` that it shall read,
and where to write, ``parquet`` or else ``problem``. Changes nothing else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from manta.data.lake import Lake
from manta.definitions import Ref, Training, from_json
from manta.errors import MantaError
from manta.features.compiled import read_manifest, service_of
from manta.features.training_set import training_set
from manta.ledger.runs import Version
from manta.settings import Settings
from manta.training.examples import PARTS, labelled, split


def joined(
    root: Path, settings: Settings, training: Training, versions: Mapping[Ref, Version]
) -> pl.DataFrame:
    """The example's time and keys, its features, its label, and the part that it falls into, by time.

    Raises:
        TrainingInvalid: the examples cannot be trained with.
        NotFound: a dataset or a version of it is not in the lake.
    """
    dataset = training.examples.dataset
    version = int(versions[Ref("dataset", dataset)].version)
    examples = labelled(Lake(settings.datasets).read(dataset, version), training.examples)
    time = training.examples.time
    part = np.empty(examples.rows.height, dtype=object)
    for name, rows in split(examples.rows[time], examples.labels, training.split).items():
        part[rows] = name
    manifest = read_manifest(versions[Ref("features", training.features)].detail["manifest"])
    service = service_of(manifest, training.features)
    asked = {time, *service.join_keys, *service.request}
    entities = examples.rows.select(column for column in examples.rows.columns if column in asked)
    read = {ref.name: int(each.version) for ref, each in versions.items() if ref.kind == "dataset"}
    table = training_set(root, settings, training.features, entities.to_arrow(), time, read, manifest)
    frame = pl.DataFrame(pl.from_arrow(table))
    return frame.with_columns(
        pl.Series(training.examples.label, examples.labels.astype(bool)),
        pl.Series("part", part.tolist(), dtype=pl.Enum(PARTS)).cast(pl.String),
    ).sort(time)


def main(asked: dict[str, Any]) -> None:
    root = Path.cwd()
    sys.path.insert(0, str(root))
    training = from_json(asked["definition"])
    assert isinstance(training, Training)
    versions = {version.ref: version for version in (Version(**each) for each in asked["versions"])}
    try:
        joined(root, Settings.load(root), training, versions).write_parquet(asked["parquet"])
    except MantaError as error:
        Path(asked["problem"]).write_text(json.dumps(error.problem()))


if __name__ == "__main__":
    main(json.load(sys.stdin))
