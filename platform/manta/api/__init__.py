"""The server: HTTP over Platform. `python -m manta.api` runs it."""
