"""The module that is trained: its contract with the platform, and that it can learn at all."""

from __future__ import annotations

import pytest
import torch

from jobs.delay import Net, delay

SHAPE = {"categories": [17, 4, 96], "numbers": 20}


def rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    categories = [torch.randint(0, size, (count,), generator=source) for size in SHAPE["categories"]]
    return torch.stack(categories, dim=1), torch.randn(count, SHAPE["numbers"], generator=source)


@pytest.fixture
def net() -> Net:
    torch.set_num_threads(1)  # more only wait for one another here
    torch.manual_seed(delay.seed)
    return Net(SHAPE).eval()


def test_one_logit_per_row_whatever_the_others_are(net: Net) -> None:
    categories, numbers = rows(50)
    with torch.inference_mode():
        together = net(categories, numbers)
        alone = torch.cat([net(categories[at : at + 1], numbers[at : at + 1]) for at in range(50)])
    assert together.shape == (50,)
    torch.testing.assert_close(together, alone)


def test_every_category_may_be_unknown_and_no_number_throws_the_sum(net: Net) -> None:
    unknown = torch.zeros(4, 3, dtype=torch.int64)
    numbers = torch.tensor([0.0, 50.0, 1e30, -1e30]).unsqueeze(1).expand(4, 20)
    with torch.inference_mode():
        usual, much, absurd, negative = net(unknown, numbers).tolist()
    assert much == absurd
    assert max(map(abs, (usual, much, negative))) < 20


def test_it_learns_a_rule_of_a_category_and_a_number(net: Net) -> None:
    categories, numbers = rows(1_000)
    labels = ((numbers[:, 3] > 0) ^ (categories[:, 1] == 2)).float()
    optimizer = torch.optim.AdamW(net.train().parameters(), lr=0.02)
    for _ in range(40):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net(categories, numbers), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = ((net.eval()(categories, numbers) > 0) == (labels > 0.5)).float().mean()
    assert right > 0.95
