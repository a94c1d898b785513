"""What every verb of the command line needs: the platform to speak to, and how to print for scripts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from manta.client import Client, connect
from manta.settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def platform() -> Client:
    """The server at MANTA_URL, or else that of the project in this folder.

    Raises:
        PlatformDown: it does not answer.
    """
    return connect(os.environ.get("MANTA_URL") or Settings.load().server_url)


def print_json(found: BaseModel | dict[str, Any] | Iterable[BaseModel | dict[str, Any]]) -> None:
    """One JSON value on standard output: an object, or a list of them."""
    if isinstance(found, BaseModel | dict):
        print(json.dumps(_plain(found), indent=1, default=str))
    else:
        print(json.dumps([_plain(each) for each in found], indent=1, default=str))


def _plain(each: BaseModel | dict[str, Any]) -> dict[str, Any]:
    return each.model_dump(mode="json") if isinstance(each, BaseModel) else each
