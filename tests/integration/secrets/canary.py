"""A project whose job tells its secret in every way it can, and a search for what was told."""

from __future__ import annotations

import base64
import json
import secrets
import urllib.parse
from pathlib import Path
from typing import Any

from sqlalchemy import MetaData, create_engine, select

JOB = """
import base64, json, os, subprocess, sys, threading, time, urllib.parse
from manta import Job, Secret

def tell(context):
    token, pem, url = context.params["token"], context.params["pem"], context.params["url"]
    assert token == os.environ["CANARY"] and url == f"https://me:{token}@example.org/", "not resolved"
    print("the token is", token, flush=True)
    for part in (token[:3], token[3:9], token[9:]):
        os.write(1, part.encode())
        time.sleep(0.05)
    print()
    print(pem, url, urllib.parse.quote(token, safe=""), repr(token), json.dumps(context.params))
    print(base64.b64encode(token.encode()).decode(), base64.b64encode(b"me:" + token.encode()).decode())
    print(token.encode().hex(), dict(os.environ), file=sys.stderr)
    subprocess.run([sys.executable, "-c", "import os; print('child', os.environ['CANARY'])"], check=True)
    context.progress(1, 2, token)
    context.measured(told=token, nested={"deep": [f"x{token}x"]})
    context.produced("dataset", "told", "1", location=f"s3://{token}/x")
    print("last words", flush=True)
    if context.params["fail"]:
        raise RuntimeError(f"cannot log in with {token} at {url}")

leak = Job(
    name="leak",
    fn=tell,
    params={
        "token": Secret("env:CANARY"),
        "pem": Secret("file:PEM"),
        "url": f"https://me:{Secret('env:CANARY')}@example.org/",
        "fail": True,
    },
)
quiet = leak.replace(name="quiet", params=leak.params | {"fail": False})
"""


class Canary:
    """``token`` and ``line`` (of a key in a file) are new in each test, so that a find is this test's."""

    def __init__(self, root: Path) -> None:
        self.token = f"canary/{secrets.token_hex(8)}+ü=ende"
        self.line = f"PEM{secrets.token_hex(16)}"
        self.pem = root / "outside" / "key.pem"
        self.pem.parent.mkdir()
        self.pem.write_text(f"-----BEGIN CANARY-----\n{self.line}\n-----END CANARY-----\n")

    def write_project(self, root: Path) -> None:
        (root / "jobs").mkdir(parents=True)
        (root / "jobs" / "leak.py").write_text(JOB.replace("file:PEM", f"file:{self.pem}"))

    def forms(self) -> dict[str, bytes]:
        """What to search for: what each encoding makes of the middle of the secrets."""
        found: dict[str, bytes] = {}
        for name, value in (("token", self.token), ("line", self.line)):
            middle = value[7:23]
            found[f"{name} as it is"] = middle.encode()
            found[f"{name} url-encoded"] = urllib.parse.quote(value, safe="").encode()
            found[f"{name} in hex"] = middle.encode().hex().encode()
            for shift in range(3):
                encoded = base64.b64encode(b"\0" * shift + middle.encode())
                found[f"{name} in base64, {shift}"] = encoded[4:16]
        return found

    def found_in(self, content: bytes) -> list[str]:
        return [name for name, form in self.forms().items() if form in content]

    def in_files(self, folder: Path) -> list[tuple[str, str]]:
        """``(file, form)`` of every find below ``folder``."""
        return [
            (str(path.relative_to(folder)), form)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.is_symlink()
            for form in self.found_in(path.read_bytes())
        ]

    def in_ledger(self, url: str) -> list[tuple[str, str]]:
        """``(table, form)`` of every find in any row."""
        engine = create_engine(url)
        known = MetaData()
        known.reflect(engine)
        with engine.connect() as db:
            tables: dict[str, list[Any]] = {
                name: [tuple(row) for row in db.execute(select(table))]
                for name, table in known.tables.items()
            }
        engine.dispose()
        assert tables["runs"]
        return [
            (name, form)
            for name, rows in tables.items()
            for form in self.found_in(json.dumps(rows, default=str, ensure_ascii=False).encode())
        ]
