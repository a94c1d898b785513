"""A Kafka cluster as a process of its own, for tests and for `make soak-data`.

    python -m tests.brokers            prints its address, and runs until its input ends or it is killed

It is librdkafka's mock cluster: it speaks Kafka's protocol to any client on this machine and keeps messages
in memory. Topics are made when somebody writes to them, with PARTITIONS partitions each; of every partition
about the last 5 MB are kept, so that retention does happen.

What it cannot show, so that no test here is evidence for it:

- transactions: aborted messages are given to everybody, `read_committed` or not, and no control records are
  written (tests/kafka_log.py answers with both);
- compaction, and retention by time (tests/kafka_log.py answers with logs that have holes);
- offsets by time: it never finds any (tests/kafka_log.py does);
- SASL, TLS and access rules (tests/kafka_log.py refuses a password);
- a topic deleted or made anew, partitions added, a broker's restart with its log kept, the high watermark of
  a new leader that lags behind: it has no admin API, and its log ends with its process;
- speed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

PARTITIONS = 4


@contextmanager
def broker() -> Iterator[str]:
    """A cluster of one broker; gives its address."""
    command = [sys.executable, "-c", f"import runpy; runpy.run_path({__file__!r}, run_name='__main__')"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "the mock cluster did not start"
        try:
            yield address
        finally:
            process.kill()


def make(address: str, topic: str) -> None:
    """An empty topic."""
    from confluent_kafka import Producer

    Producer({"bootstrap.servers": address}).list_topics(topic, timeout=30)


def produce(
    address: str,
    topic: str,
    values: Iterable[Any],
    *,
    partition: int | None = None,
    keys: Iterable[Any] | None = None,
    **settings: Any,
) -> None:
    """Write values (bytes, None, or what becomes JSON), round robin unless a partition is named."""
    from confluent_kafka import Producer

    failed: list[Any] = []
    producer = Producer({"bootstrap.servers": address, "linger.ms": 5, **settings})
    given = iter(keys) if keys is not None else None
    for number, value in enumerate(values):
        key = next(given) if given else None
        data = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
        while True:
            try:
                producer.produce(
                    topic,
                    value=data,
                    key=key,
                    partition=number % PARTITIONS if partition is None else partition,
                    on_delivery=lambda error, _: error and failed.append(error),
                )
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(60) == 0, "messages were not taken"
    assert not failed, failed[0]


def ends(address: str, topic: str) -> Mapping[int, tuple[int, int]]:
    """The first offset kept and the next offset of each partition."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": address, "group.id": "ends"})
    try:
        return {
            number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=30)
            for number in range(PARTITIONS)
        }
    finally:
        consumer.close()


def main() -> None:
    from confluent_kafka import Producer

    cluster = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    one = next(iter(cluster.list_topics(timeout=30).brokers.values()))
    print(f"{one.host}:{one.port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
