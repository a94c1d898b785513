"""The command line: `manta VERB`. One module per noun; each verb is a call of the client."""

from __future__ import annotations


def main() -> None:
    """The entry point of the `manta` command."""
    from manta.cli.root import run

    run()
