"""The suites that a plug-in is held to, for whoever writes one: :mod:`manta.testing.doors` for a door to the
platform, :mod:`manta.testing.connectors` for a connector. They need pytest."""
