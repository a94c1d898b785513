"""The manifest of a run: one id for all that decides what it makes."""

from __future__ import annotations

from typing import Any

import pytest

from manta.definitions import AtLeast, Examples, Retry, TimeSplit, Training, XGBoost
from manta.ledger.actor import OWNER
from manta.ledger.manifest import Manifest, differences, manifest_of
from manta.ledger.runs import Run, State, Version
from manta.ledger.store import Ledger

READ = (
    Version(kind="dataset", name="flights", version="3"),
    Version(kind="features", name="delay_v1", version="ab"),
)
RAN_IN = {
    "python": "3.11.7",
    "manta": "0.1.0",
    "platform": "linux-x86_64",
    "lock": "a1",
    "machine": "a processor, 2 cores",
}
TRAINING = Training(
    model="delay",
    trainer=XGBoost(),
    examples=Examples(dataset="flights", label="late", time="at"),
    features="delay_v1",
    split=TimeSplit(test_from="2013-11-01"),  # type: ignore[arg-type]
    gates=(AtLeast("roc_auc", 0.7),),
    params={"rounds": 10},
)


class Case:
    """Submits, starts and lets read; ``n`` makes the runs of one ledger different submissions."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.n = 0

    def manifest(
        self,
        training: Training = TRAINING,
        *,
        read: tuple[Version, ...] = READ,
        ran_in: dict[str, Any] = RAN_IN,
        **submitted: Any,
    ) -> Manifest:
        self.n += 1
        told = {"package": "p1", "fingerprint": "f1", "params": {}, "commit": "c1"} | submitted
        run: Run = self.ledger.submit(
            key=str(self.n),
            project="flights",
            job="delay",
            kind="training",
            definition=training.to_json(),
            by=OWNER,
            **told,
        )
        run = self.ledger.move(self.ledger.start(run, f"{run.id}-1"), State.RUNNING)
        self.ledger.ran_in(run, ran_in)
        for version in read:
            self.ledger.versions.read_by(run.id, version)
        return self.ledger.manifest(run.id)


@pytest.fixture
def case(ledger: Ledger) -> Case:
    return Case(ledger)


def test_the_same_again_has_the_same_id(case: Case) -> None:
    first, again = case.manifest(), case.manifest(read=READ[::-1])
    assert first.id == again.id
    assert differences(first, again) == []
    assert (first.run, again.run) == (1, 2)
    assert first.params == {"rounds": 10}
    assert first.seed == TRAINING.seed
    assert first.reads == {"dataset:flights": "3", "features:delay_v1": "ab"}
    assert first.code == {"package": "p1", "fingerprint": "f1", "commit": "c1"}
    assert first.environment == RAN_IN


def test_how_a_run_is_treated_is_not_part_of_it(case: Case) -> None:
    patient = TRAINING.replace(retry=Retry(lost=9), timeout=60.0, priority=3)
    assert case.manifest().id == case.manifest(patient).id


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"package": "p2"}, "code.package was p1, is p2"),
        ({"fingerprint": "f2"}, "code.fingerprint was f1, is f2"),
        ({"commit": "c2+changes"}, "code.commit was c1, is c2+changes"),
        ({"commit": ""}, "code.commit was c1, is null"),
        ({"params": {"rounds": 11}}, "params.rounds was 10, is 11"),
        ({"params": {"eta": 0.1}}, "params.eta was null, is 0.1"),
        ({"training": TRAINING.replace(seed=8)}, "seed was 7, is 8"),
        ({"training": TRAINING.replace(trainer=XGBoost(cpus=2))}, "definition.trainer.cpus was 1.0, is 2.0"),
        ({"read": READ[1:]}, "reads.dataset:flights was 3, is null"),
        (
            {"read": (Version(kind="dataset", name="flights", version="4"), READ[1])},
            "reads.dataset:flights was 3, is 4",
        ),
        ({"ran_in": RAN_IN | {"lock": "a2"}}, "environment.lock was a1, is a2"),
        (
            {"ran_in": RAN_IN | {"machine": "a processor, 4 cores"}},
            "environment.machine was a processor, 2 cores, is a processor, 4 cores",
        ),
        ({"ran_in": RAN_IN | {"python": "3.12.1"}}, "environment.python was 3.11.7, is 3.12.1"),
    ],
)
def test_each_change_gives_another_id_and_is_named(case: Case, change: dict[str, Any], told: str) -> None:
    first, other = case.manifest(), case.manifest(**change)
    assert first.id != other.id
    assert differences(first, other) == [told]


def test_a_run_that_has_not_begun_has_one_too(ledger: Ledger) -> None:
    run = ledger.submit(
        key="k", project="p", job="j", kind="job", definition={}, fingerprint="f", package="z", by=OWNER
    )
    found = ledger.manifest(run.id)
    assert (found.reads, found.environment, found.seed) == ({}, {}, None)
    assert found == manifest_of(run, (), ())
