"""Work spread over Ray tasks: each result once, errors as they were raised, no hanging on a dying process."""

from __future__ import annotations

import os

import pytest

from manta.data.parallel import each
from manta.errors import ContractBroken, Unavailable

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.parametrize(("count", "tasks"), [(0, None), (1, None), (40, None), (7, 1), (7, 3)])
def test_each_item_once(count: int, tasks: int | None) -> None:
    found = dict(each(lambda item: {"doubled": item * 2}, range(count), tasks=tasks))
    assert found == {index: {"doubled": index * 2} for index in range(count)}


def test_an_error_comes_back_as_it_was_raised() -> None:
    def fail(item: int) -> int:
        if item == 2:
            error = ContractBroken("no", hint="do this", missing=["x"])
            error.add_note("where it was")
            raise error
        return item

    with pytest.raises(ContractBroken, match=r"^no") as failed:
        list(each(fail, range(5), tasks=2))
    assert failed.value.hint == "do this"
    assert failed.value.detail == {"missing": ["x"]}
    assert failed.value.__notes__ == ["where it was"]


def test_an_error_that_nobody_expected_is_not_swallowed() -> None:
    with pytest.raises(Exception, match="ZeroDivisionError"):
        list(each(lambda item: item // 0, [1]))


def test_a_process_that_dies_again_and_again_is_an_error() -> None:
    with pytest.raises(Unavailable, match="a process at work on the cluster died, 3 times"):
        list(each(lambda item: os._exit(1), [1]))
