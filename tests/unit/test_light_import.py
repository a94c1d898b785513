"""`import manta` must stay light: a CLI call or a notebook's first cell must not pay for the engines."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ["ray", "feast", "mlflow", "torch", "keras", "jax"]


def loaded_by(code: str) -> set[str]:
    script = f"import sys, json\n{code}\nprint(json.dumps([name for name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import manta",
        "import manta; [getattr(manta, name) for name in manta.__all__]",
        "import manta.cli.root",
        "import manta.api.server",
        "import manta.features.online",
    ],
)
def test_loads_none_of_the_engines(code: str) -> None:
    assert not loaded_by(code).intersection(HEAVY)


def test_the_command_line_speaks_no_sql() -> None:
    """It shows what others tell, and each command pays for its imports."""
    assert not loaded_by("import manta.cli.root").intersection({"sqlalchemy", "fastapi", "psutil", "polars"})


def test_the_standard_platform_module_is_left_alone() -> None:
    assert "platform.manta" not in loaded_by("import platform; platform.python_version()")
