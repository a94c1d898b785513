"""Compaction: fewer files, the same rows in the same order, and nothing that was there is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from manta.data.compaction import compact
from manta.data.lake import Change
from manta.data.reading import Datasets

Put = Callable[..., int]


def numbers(start: int, end: int) -> pl.DataFrame:
    return pl.DataFrame({"n": range(start, end), "text": [f"t{n % 7}" for n in range(start, end)]})


def test_rows_keep_their_order_and_versions_what_they_hold(datasets: Datasets, put: Put) -> None:
    # Larger than a batch, so that files read side by side would mix.
    files = [numbers(start, start + 20_000) for start in range(0, 400_000, 20_000)]
    put("d", *files[:10], mode="append", cursors={"d": 7}, total=200_000, rows=200_000, refused=1)
    put("d", *files[10:], mode="append", cursors={"d": 9}, total=400_000, source="s")
    before = datasets.read("d").polars()
    done = datasets.compact("d")
    assert (done.version, done.before, done.after) == (2, 20, 1)
    assert datasets.read("d").files != datasets.read("d", 1).files
    assert datasets.read("d").polars().equals(before)
    assert datasets.read("d").polars().equals(pl.concat(files))
    assert datasets.read("d", 1).polars().equals(before)
    assert datasets.read("d", 0).polars().equals(pl.concat(files[:10]))
    kept, was = datasets.lake.metadata("d", 2), datasets.lake.metadata("d", 1)
    assert kept == {**was, "mode": "compact", "run_key": kept["run_key"]}
    assert kept["cursors"] == {"d": 9}
    newest, *older = datasets.history("d")
    assert (newest.mode, newest.run, newest.rows, newest.total) == ("compact", None, 0, 400_000)
    assert [each.run for each in older] == [2, 1]
    assert datasets.lake.committed("d", "test-d-2") == 1


def test_what_is_compact_stays_as_it_is(datasets: Datasets, put: Put) -> None:
    put("d", numbers(0, 10), numbers(10, 20))
    assert datasets.compact("d").version == 1
    again = datasets.compact("d")
    assert (again.version, again.before, again.after) == (1, 1, 1)
    put("one", numbers(0, 10))
    assert datasets.compact("one").version == 0
    datasets.lake.commit("bare", [], run_key="r-1", schema=numbers(0, 0).to_arrow().schema)
    assert datasets.compact("bare").version == 0


def test_rows_committed_after_go_behind_and_are_compacted_again(datasets: Datasets, put: Put) -> None:
    """As often as one likes: names of files do not grow with it."""
    wanted = [numbers(0, 5)]
    put("d", wanted[0], mode="append")
    for i in range(1, 15):
        wanted.append(numbers(5 * i, 5 * i + 5))
        put("d", wanted[-1], mode="append")
        datasets.compact("d")
        assert len(datasets.read("d").files) == 1
        assert sorted(datasets.read("d").polars()["n"]) == list(range(5 * i + 5))
    assert max(len(Path(path).name) for path in datasets.read("d").files) < 60


def test_only_small_files_are_written_anew(datasets: Datasets, put: Put) -> None:
    small, large = [numbers(0, 10), numbers(10, 20)], numbers(20, 100_020)
    put("d", *small, large, *(numbers(n, n + 5) for n in range(100_020, 100_050, 5)))
    before = datasets.read("d")
    size = Path(before.files[2]).stat().st_size
    done = compact(datasets.lake, "d", target_bytes=size * 3 // 2)
    assert (done.before, done.after) == (9, 3)
    assert before.files[2] in datasets.read("d").files
    assert datasets.read("d").polars().equals(before.polars())
    # Of many small ones, each new file is at most as large as it should be.
    put("e", *(numbers(n, n + 1000) for n in range(0, 20_000, 1000)))
    target = 5 * Path(datasets.read("e").files[0]).stat().st_size
    done = compact(datasets.lake, "e", target_bytes=target)
    assert 4 <= done.after <= 7
    assert datasets.read("e").polars().equals(datasets.read("e", 0).polars())


def test_files_from_before_a_column_was_added(datasets: Datasets, put: Put) -> None:
    put("d", numbers(0, 3), mode="append")
    put("d", numbers(3, 5).with_columns(word=pl.lit("x")), mode="append")
    before = datasets.read("d").polars()
    assert datasets.compact("d").after == 1
    assert datasets.read("d").polars().equals(before)
    assert datasets.read("d", 0).columns == ["n", "text"]


def test_what_others_commit_meanwhile_is_kept(
    datasets: Datasets, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others commit between the reading of the files and the commit: an append, and a removal of a file that
    was merged. Neither is undone, and no file that nobody names is left."""
    put("d", numbers(0, 5), numbers(5, 10), mode="append")
    change = datasets.lake.change
    once = iter([True])

    def others_first(*args: object, **kwargs: object) -> int:
        if next(once, False):
            put("d", numbers(10, 15), mode="append")
        return change(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(datasets.lake, "change", others_first)
    done = datasets.compact("d")
    assert (done.version, done.after) == (2, 2)
    assert datasets.read("d").polars()["n"].to_list() == list(range(15))

    def replaced_first(*args: object, **kwargs: object) -> int:
        if kwargs["run_key"] != "r-9":
            gone = datasets.lake.files("d")[0]
            schema = numbers(0, 0).to_arrow().schema
            datasets.lake.change("d", lambda _: Change((), [gone], {}), run_key="r-9", schema=schema)
        return change(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(datasets.lake, "change", replaced_first)
    left = datasets.read("d").polars()["n"].to_list()[10:]
    done = datasets.compact("d")
    monkeypatch.undo()
    assert (done.version, done.before, done.after) == (2, 2, 2)  # nothing was left to do
    assert datasets.read("d").version == 3
    assert datasets.read("d").polars()["n"].to_list() == left
    named = {file for version in range(4) for file in datasets.read("d", version).files}
    assert {str(path) for path in Path(datasets.lake.path("d")).rglob("*.parquet")} == named


def test_writers_and_compactions_at_once_lose_nothing(datasets: Datasets, put: Put) -> None:
    put("d", numbers(0, 10), mode="append")
    failed: list[BaseException] = []

    def guarded(act: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                for _ in range(8):
                    act()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    lock, at = threading.Lock(), iter(range(10, 10_000, 10))

    def write() -> None:
        with lock:
            start = next(at)
        put("d", numbers(start, start + 10), mode="append")

    threads = [guarded(write), guarded(lambda: datasets.compact("d"))]
    for thread in threads:
        thread.join()
    assert not failed
    datasets.compact("d")
    assert sorted(datasets.read("d").polars()["n"]) == list(range(90))
    assert len(datasets.read("d").files) == 1


def test_a_compaction_that_dies_leaves_the_dataset_as_it_was(
    datasets: Datasets, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("d", numbers(0, 5), numbers(5, 10))

    def killed(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets.lake, "change", killed)
    with pytest.raises(KeyboardInterrupt):
        datasets.compact("d")
    assert datasets.read("d").version == 0
    assert len(list(Path(datasets.lake.path("d")).rglob("*.parquet"))) == 2


def test_a_compaction_that_is_interrupted_after_its_commit_keeps_its_files(
    datasets: Datasets, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("d", numbers(0, 5), numbers(5, 10))
    change = datasets.lake.change

    def interrupted(*args: object, **kwargs: object) -> int:
        change(*args, **kwargs)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets.lake, "change", interrupted)
    with pytest.raises(KeyboardInterrupt):
        datasets.compact("d")
    assert datasets.read("d").version == 1
    assert datasets.read("d").polars().equals(numbers(0, 10))
