"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from manta.app import Platform
from manta.errors import Unavailable
from manta.ledger.runs import State

KEPT_SECONDS = 2.0  # anybody may ask: the ledger is asked no more often than this
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self, platform: Platform) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "manta_http_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "manta_http_request_seconds",
            "From a request to the end of its answer.",
            ("method", "route"),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._registry.register(_Platform(platform))

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """``route`` is its template: what is counted by must not grow with what is asked."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _Platform:
    """Read from the ledger when asked."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._kept: dict[State, int] | None = None
        self._until = 0.0

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        counted = self._counted()
        up = GaugeMetricFamily("manta_ledger_up", "Whether the ledger answers.")
        up.add_metric([], float(counted is not None))
        yield up
        trouble = GaugeMetricFamily("manta_controller_trouble", "Whether the controller's last round failed.")
        trouble.add_metric([], float(bool(self._platform.controller.trouble)))
        yield trouble
        leading = GaugeMetricFamily("manta_controller_leading", "Whether this server's controller acts.")
        leading.add_metric([], float(self._platform.controller.leading))
        yield leading
        if counted is None:
            return
        runs = GaugeMetricFamily("manta_runs", "Runs in the ledger, by state.", labels=("state",))
        for state in State:
            runs.add_metric([state.value], counted.get(state, 0))
        yield runs
        queue = GaugeMetricFamily("manta_queue_length", "Runs that wait to be started.")
        queue.add_metric([], counted.get(State.QUEUED, 0))
        yield queue

    def _counted(self) -> dict[State, int] | None:
        if time.monotonic() >= self._until:
            try:
                self._kept = self._platform.ledger.count()
            except Unavailable:
                self._kept = None
            self._until = time.monotonic() + KEPT_SECONDS
        return self._kept
