"""Every command and code block of the README and of docs/ is run, in a copy of the reference project."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
import yaml
from onnx import TensorProto, helper

from manta.settings import Settings
from tests.integration.platform.conftest import BIN, Commands

pytestmark = [pytest.mark.platform, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    (page.name, kind, block)
    for page in PAGES
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.M | re.S)
]
COMMANDS = [
    pytest.param(line, id=f"{page}: {line[:50]}")
    for page, kind, block in BLOCKS
    if kind == "bash"
    for line in block.splitlines()
    if line.strip()
]
# What defines something is put into the project's jobs/; the rest is a program.
DEFINING = {
    re.search(r"^(\w+) = (?:Ingest|Job)\(", block, flags=re.M)[1]: block  # type: ignore[index]
    for _, kind, block in BLOCKS
    if kind == "python" and re.search(r"^(\w+) = (?:Ingest|Job)\(", block, flags=re.M)
}
PROGRAMS = [block for _, kind, block in BLOCKS if kind == "python" and block not in DEFINING.values()]
YAML = [(page, block) for page, kind, block in BLOCKS if kind == "yaml"]

TRIPS = """\
{"id": 1, "departed": "2013-01-01T10:00:00Z", "arrived": "2013-01-01 12:00", "fare": 12.5, "class": "Y", \
"route": ["EWR", "ORD"], "seat": {"row": 12, "letter": "A"}}
{"id": 2, "departed": "2013-01-01T10:00:00Z", "arrived": "-", "fare": "120.00", "class": "C", \
"route": ["JFK", "BOS", "MIA"]}
{"id": 3, "departed": "2013-01-01T10:00:00Z", "arrived": "2013-01-01T09:00:00Z", "fare": 1, "class": "Y", \
"route": ["JFK", "JFK"]}
"""


def here(flights: Commands, text: str) -> str:
    """The pages speak of the reference project under its own name and on the default port."""
    address = f"127.0.0.1:{flights.env['MANTA_PORTS__SERVE']}/{flights.root.name}/"
    return text.replace("127.0.0.1:8000/flights/", address)


@pytest.fixture(scope="module")
def with_own(flights: Commands) -> Commands:
    """The project with the pages' own definitions in it, and the file that one of them reads."""
    for name, block in DEFINING.items():
        (flights.root / f"jobs/{name}.py").write_text(block)
    (flights.root / "data").mkdir(exist_ok=True)
    (flights.root / "data/prices-1.csv").write_text("sku,price\na,1.5\nb,2\n")
    (flights.root / "data/trips.jsonl").write_text(TRIPS)
    (flights.root / "data/rule.onnx").write_bytes(_rule())
    return flights


def _rule() -> bytes:
    """A model that was made elsewhere: what came late leaves late."""
    graph = helper.make_graph(
        [helper.make_node("Sigmoid", ["plane_arrival_delay"], ["probability"])],
        "rule",
        [helper.make_tensor_value_info("plane_arrival_delay", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n"])],
    )
    opsets = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def _commands(first: str) -> list[object]:
    return [each for each in COMMANDS if str(each.values[0]).split()[0] in first.split()]


@pytest.mark.parametrize("command", _commands("make"))
def test_make_commands_are_targets(command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.M)


@pytest.mark.parametrize("command", _commands("manta curl ray"))
def test_commands_run(with_own: Commands, command: str) -> None:
    words = shlex.split(here(with_own, command), comments=True)
    if words[0] == "curl":
        words.insert(1, "--fail-with-body")
    if words[0] == "ray":
        with_own.env["RAY_ADDRESS"] = f"http://127.0.0.1:{with_own.env['MANTA_PORTS__DASHBOARD']}"
    try:
        done = with_own.shell(*words)
    finally:
        with_own.env.pop("RAY_ADDRESS", None)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


@pytest.mark.parametrize("block", PROGRAMS)
def test_programs_run(with_own: Commands, block: str) -> None:
    done = with_own.shell(str(BIN / "python"), "-c", here(with_own, block))
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_own_data_is_there_after_the_readmes_commands(with_own: Commands) -> None:
    assert re.search(r"prices\s+succeeded", with_own("runs", "--job", "prices"))


@pytest.mark.parametrize(("page", "block"), YAML)
def test_settings_are_settings(page: str, block: str, tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster/prod.yaml").write_text(block)
    settings = Settings.load(tmp_path, profile="prod")
    given = yaml.safe_load(block)
    assert set(given) <= settings.model_fields_set, os.fspath(page)


def test_no_command_of_the_pages_is_forgotten() -> None:
    assert {kind for _, kind, _ in BLOCKS} <= {"bash", "python", "text", "yaml"}
    assert {str(each.values[0]).split()[0] for each in COMMANDS} == {"make", "manta", "curl", "ray"}
