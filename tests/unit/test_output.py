"""What a process prints, without what it must not tell: also when it is killed, and what its errors say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from manta.secrets import redacted, redactor

SCRIPT = """
import logging, os, signal, subprocess, sys, time
from threading import enumerate as threads
from manta import output
from manta.secrets import remember
remember(["${{env:TOKEN}}"])
output.{guard}()
token = os.environ["TOKEN"]
print("one", token, flush=True)
os.write(2, token[:5].encode()); time.sleep(0.05); os.write(2, token[5:].encode() + b"\\n")
subprocess.run([sys.executable, "-c", "import os; print('child', os.environ['TOKEN'])"])
logging.basicConfig(filename=os.environ["LOG"])
try:
    raise ValueError(token)
except ValueError:
    logging.exception("with %s", token)
print("last words", token, flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("guard", "end"),
    [
        ("guard", "output.finish(); os._exit(0)"),
        ("guard", "os.kill(os.getpid(), signal.SIGKILL)"),
        ("guard_thread", "os.close(1); os.close(2); [t.join() for t in threads() if t.name == 'output']"),
    ],
)
def test_nothing_that_is_printed_holds_the_secret(guard: str, end: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(guard=guard, end=end)],
        env={"TOKEN": "hunter2secret", "LOG": str(tmp_path / "log"), "PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    shown = "[secret env:TOKEN]"
    assert done.stdout == f"one {shown}\n{shown}\nchild {shown}\nlast words {shown}\n"
    logged = (tmp_path / "log").read_text()
    assert logged.startswith(f"ERROR:root:with {shown}\nTraceback ")
    assert logged.endswith(f"ValueError: {shown}\n")


class Odd(Exception):
    def __init__(self, token: str) -> None:
        super().__init__()
        self.token = token

    def __str__(self) -> str:
        return f"odd {self.token}"


def test_an_error_is_told_without_the_secret() -> None:
    redactor.add("env:OF_AN_ERROR", "hunter2of-an-error")
    error = ValueError("no log-in with hunter2of-an-error")
    error.__cause__ = KeyError("hunter2of-an-error")
    assert redacted(error) is error
    assert str(error) == "no log-in with [secret env:OF_AN_ERROR]"
    assert repr(error.__cause__) == "KeyError('[secret env:OF_AN_ERROR]')"
    other = redacted(Odd("hunter2of-an-error"))
    assert str(other) == "Odd: odd [secret env:OF_AN_ERROR]"
