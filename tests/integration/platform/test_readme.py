"""Every command and code block of the README is run, in a copy of the reference project."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.integration.platform.conftest import BIN, Commands

pytestmark = [pytest.mark.platform, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.M | re.S)
COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if line.strip()]
PYTHON = [block for kind, block in BLOCKS if kind == "python"]
OWN_DATA = next(block for block in PYTHON if "Ingest(" in block)


def here(flights: Commands, text: str) -> str:
    """The README speaks of the reference project under its own name and on the default port."""
    address = f"127.0.0.1:{flights.env['MANTA_PORTS__SERVE']}/{flights.root.name}/"
    return text.replace("127.0.0.1:8000/flights/", address)


@pytest.fixture(scope="module")
def with_own_data(flights: Commands) -> Commands:
    """The project with the README's own ingest in it, and the file that it reads."""
    (flights.root / "jobs/prices.py").write_text(OWN_DATA)
    (flights.root / "data").mkdir(exist_ok=True)
    (flights.root / "data/prices-1.csv").write_text("sku,price\na,1.5\nb,2\n")
    return flights


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_commands_are_targets(command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.M)


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith("make ")])
def test_commands_run(with_own_data: Commands, command: str) -> None:
    words = shlex.split(here(with_own_data, command), comments=True)
    if words[0] == "curl":
        words.insert(1, "--fail-with-body")
    done = with_own_data.shell(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


@pytest.mark.parametrize("block", [block for block in PYTHON if block is not OWN_DATA])
def test_python_blocks_run(flights: Commands, block: str) -> None:
    done = flights.shell(str(BIN / "python"), "-c", block)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_own_data_is_there_after_the_readmes_commands(with_own_data: Commands) -> None:
    assert re.search(r"prices\s+succeeded", with_own_data("runs", "--job", "prices"))


def test_no_command_of_the_readme_is_forgotten() -> None:
    assert {kind for kind, _ in BLOCKS} <= {"bash", "python", "text"}
    assert {command.split()[0] for command in COMMANDS} == {"make", "manta", "curl"}
