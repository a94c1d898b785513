"""How fast a packaged model answers, and in how much memory: seen in a process that loads nothing else.

`python -m manta.training.probe` is that process. It reads from standard input, as JSON, ``location`` and
``digest`` of the package and ``requests``, each a mapping of feature to values, and writes what
:class:`Footprint` holds.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WARM_UP = 20  # requests that are not counted
ROUNDS = 3
REQUESTS = 200  # of a round; fewer when they take long
LEAST_REQUESTS = 20
ROUND_SECONDS = 5.0
TIMEOUT_SECONDS = 120.0
MEBIBYTE = 2**20
Request = Mapping[str, Sequence[Any]]
# One thread, whatever the machine has.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Footprint:
    """What the process saw.

    Attributes:
        p50_ms, p95_ms: of single requests, in the fastest of :data:`ROUNDS` rounds: what the machine does
            besides makes a round slower, and none faster.
        requests: that were counted.
        memory_mb: the most that the process held. before_mb: before it opened the package.
    """

    p50_ms: float
    p95_ms: float
    requests: int
    memory_mb: float
    before_mb: float


def measure(
    location: Path,
    digest: str,
    requests: Sequence[Mapping[str, Sequence[Any]]],
    timeout: float = TIMEOUT_SECONDS,
) -> Footprint | str:
    """Of one package, asked ``requests`` in turn; in words why, where nothing could be measured."""
    import manta

    asked = {"location": str(location), "digest": digest, "requests": list(requests)}
    found = str(Path(manta.__file__).parents[1])
    path = os.pathsep.join([found, *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "manta.training.probe"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        return f"it had not answered {WARM_UP + ROUNDS * LEAST_REQUESTS} requests after {timeout:g} s"
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return f"its process ended with status {done.returncode}: {last}"
    return Footprint(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    from manta.models import package

    asked = json.load(sys.stdin)
    before = _most_memory()
    model = package.load(asked["location"], asked["digest"], threads=1)
    requests = asked["requests"]
    for at in range(WARM_UP):
        model.predict(requests[at % len(requests)])
    rounds = [_round(model, requests) for _ in range(ROUNDS)]
    fastest = min(rounds, key=lambda taken: _quantile(taken, 0.95))
    found = Footprint(
        p50_ms=_quantile(fastest, 0.5) * 1e3,
        p95_ms=_quantile(fastest, 0.95) * 1e3,
        requests=sum(map(len, rounds)),
        memory_mb=_most_memory() / MEBIBYTE,
        before_mb=before / MEBIBYTE,
    )
    print(json.dumps(asdict(found)))


def _round(model: Any, requests: Sequence[Request]) -> list[float]:
    taken: list[float] = []
    until = time.perf_counter() + ROUND_SECONDS
    while len(taken) < REQUESTS and (len(taken) < LEAST_REQUESTS or time.perf_counter() < until):
        request = requests[len(taken) % len(requests)]
        started = time.perf_counter()
        model.predict(request)
        taken.append(time.perf_counter() - started)
    return taken


def _quantile(values: Sequence[float], share: float) -> float:
    """The smallest of them that ``share`` of them do not exceed."""
    return sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]


def _most_memory() -> int:
    """Bytes that this process has held at most."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says there counts the process that it was forked from
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    main()
