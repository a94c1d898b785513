"""Gates at a terminal: what failed is readable there, slice by slice."""

from __future__ import annotations

import io

from rich.console import Console

from manta.cli.display import gates_table

WHY = "0.6100 in HA [b](523 rows), of 2; 1 not judged"
PIECES = [
    {"name": "UA", "rows": 6_000, "value": 0.77, "bound": 0.7, "passed": True, "reason": ""},
    {"name": "HA [b]", "rows": 523, "value": 0.61, "bound": 0.7, "passed": False, "reason": ""},
    {"name": "OO", "rows": 12, "value": None, "bound": 0.7, "passed": None, "reason": "fewer than 500 rows"},
]
GATES = [
    {"gate": "ece <= 0.1", "metric": "ece", "value": 0.02, "bound": 0.1, "passed": True, "reason": ""},
    {
        "gate": "roc_auc >= 0.7 in each carrier",
        "metric": "roc_auc",
        "value": 0.61,
        "bound": 0.7,
        "passed": False,
        "reason": WHY,
        "pieces": PIECES,
    },
    {"gate": "memory", "metric": "memory", "value": None, "bound": None, "passed": False, "reason": ""},
]


def test_each_gate_and_the_slices_that_failed() -> None:
    drawn = io.StringIO()
    Console(file=drawn, width=120).print(gates_table(GATES))
    assert [" ".join(line.split()) for line in drawn.getvalue().splitlines()] == [
        "gate passed ece <= 0.1: ece is 0.0200, 0.1000 was asked",
        f"gate failed roc_auc >= 0.7 in each carrier: {WHY}",
        "HA [b]: 0.6100 (523 rows)",
        "gate failed memory: memory is not a number",
    ]
