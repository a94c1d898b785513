"""Which checkpoint a training goes on from, whatever a kill or a disk has left of the folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from manta.training.checkpoints import SEALS, SNAPSHOT, broken, mend, seal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a run with three checkpoints, as Ray Train leaves it."""
    for number in range(3):
        checkpoint = tmp_path / f"checkpoint_{number}"
        (checkpoint / "more").mkdir(parents=True)
        (checkpoint / "model.pt").write_bytes(bytes([number]) * 1000)
        (checkpoint / "more" / "state").write_text(f"state {number}")
        seal(checkpoint, {"epoch": number + 1})
    listing(tmp_path, ["checkpoint_1", "checkpoint_2"])
    return tmp_path


def listing(folder: Path, names: list[str]) -> None:
    results = [{"version": 0, "checkpoint_dir_name": name, "metrics": {"epoch": 0}} for name in names]
    state = {
        "ray_version": "0",
        "checkpoint_results": results,
        "latest_checkpoint_result": results[-1],
        "checkpoint_report_indices": list(range(len(names))),
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(names),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    (folder / SNAPSHOT).write_text(json.dumps(state))


def listed(folder: Path) -> tuple[list[str], str]:
    state: dict[str, Any] = json.loads((folder / SNAPSHOT).read_text())
    names = [each["checkpoint_dir_name"] for each in state["checkpoint_results"]]
    assert len(state["checkpoint_report_indices"]) == len(names)
    return names, state["latest_checkpoint_result"]["checkpoint_dir_name"]


def test_what_is_whole_is_left_alone(folder: Path) -> None:
    before = (folder / SNAPSHOT).read_bytes()
    mend(folder)
    assert (folder / SNAPSHOT).read_bytes() == before
    assert [broken(folder / f"checkpoint_{number}") for number in range(3)] == ["", "", ""]


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda path: path.write_bytes(b"\x02" * 999), "model.pt has 999 of 1000 bytes"),
        (lambda path: path.write_bytes(b"\x02" * 999 + b"\x03"), "model.pt has been changed"),
        (lambda path: path.unlink(), "model.pt is gone"),
    ],
)
def test_a_broken_newest_one_falls_back_to_the_one_before(
    folder: Path, harm: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    harm(folder / "checkpoint_2" / "model.pt")
    assert broken(folder / "checkpoint_2") == why
    with caplog.at_level(logging.WARNING):
        mend(folder)
    assert listed(folder) == (["checkpoint_0", "checkpoint_1"], "checkpoint_1")
    assert caplog.messages == [f"checkpoint checkpoint_2 is broken ({why}): going on from checkpoint_1"]
    assert not (folder / "checkpoint_2").exists()
    mend(folder)
    assert len(caplog.messages) == 1


def test_a_list_that_was_cut_off_is_made_anew(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / SNAPSHOT).write_text((folder / SNAPSHOT).read_text()[:70])
    (folder / "checkpoint_2" / "model.pt").unlink()
    mend(folder)
    assert listed(folder) == (["checkpoint_0", "checkpoint_1"], "checkpoint_1")
    assert caplog.messages == ["Ray Train's list of checkpoints was cut off: going on from checkpoint_1"]


def test_with_nothing_whole_it_begins_anew(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        (folder / f"checkpoint_{number}" / "model.pt").unlink()
    mend(folder)
    assert not (folder / SNAPSHOT).exists()
    assert caplog.messages[-1].endswith("beginning anew")
    mend(folder)  # of a folder in which nothing has been reported yet


def test_one_that_was_not_sealed_any_more_is_the_newest(folder: Path) -> None:
    """Ray Train lists a checkpoint before its seal is written: a kill may come between."""
    (folder / SEALS / "checkpoint_2.json").unlink()
    (folder / "checkpoint_1" / "model.pt").unlink()
    mend(folder)
    assert listed(folder) == (["checkpoint_0", "checkpoint_2"], "checkpoint_2")


def test_seals_go_with_their_checkpoints(folder: Path) -> None:
    (folder / "checkpoint_0" / "model.pt").unlink()
    (folder / "checkpoint_0" / "more" / "state").unlink()
    (folder / "checkpoint_0" / "more").rmdir()
    (folder / "checkpoint_0").rmdir()
    (folder / "checkpoint_3").mkdir()
    seal(folder / "checkpoint_3", {"epoch": 4})
    assert sorted(path.stem for path in (folder / SEALS).iterdir()) == [
        f"checkpoint_{number}" for number in (1, 2, 3)
    ]
    assert broken(folder / "checkpoint_0") == "it is gone"
