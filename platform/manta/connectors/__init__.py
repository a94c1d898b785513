"""Connectors: how an ingest reads a kind of source. One file each; the module's name is the kind.

What a connector offers is said in :class:`manta.definitions.sources.Source`. Importing one of these modules
imports no driver: definitions are parsed where nothing is read.
"""

from manta.definitions.sources import Ask, Broken, Piece, Reading, Rows, Source, driver

__all__ = ["Ask", "Broken", "Piece", "Reading", "Rows", "Source", "driver"]
