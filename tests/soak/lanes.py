"""What the soak of ingests reads from: a folder, a PostgreSQL and a Kafka broker, each with its own account
of what was put there."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Protocol

import polars as pl

ROWS = 400  # put there for each run


class Lane(Protocol):
    """A source and its account: ``rows`` is what a dataset that has read all of it must hold."""

    name: str
    rows: dict[int, tuple[int, str]]  # id → (round, text)

    def grow(self, number: int) -> None:
        """Put more there, as round ``number``; done when it returns."""
        ...


def digest(frame: pl.DataFrame) -> str:
    """Of the rows, whatever their order: how many there are, and a hash."""
    types = {"id": pl.Int64, "round": pl.Int64, "text": pl.String}
    plain = frame.select(pl.struct(pl.col(name).cast(kind) for name, kind in types.items()).hash(7))
    return f"{frame.height}-{int(plain.to_series().sum() or 0)}"


def expected(lane: Lane) -> str:
    held = [(key, *row) for key, row in lane.rows.items()]
    schema = {"id": pl.Int64, "round": pl.Int64, "text": pl.String}
    return digest(pl.DataFrame(held, schema=schema, orient="row"))


class _Account:
    def __init__(self, chance: random.Random) -> None:
        self.rows: dict[int, tuple[int, str]] = {}
        self._chance = chance

    def _new(self, number: int) -> dict[int, tuple[int, str]]:
        first = len(self.rows)
        made = {
            key: (number, f"{self._chance.choice(['plain', 'naïve', '日本'])} {number}-{key}")
            for key in range(first, first + self._chance.randint(1, ROWS))
        }
        self.rows |= made
        return made


class Folder(_Account):
    """CSV files in a folder; each round adds one to three."""

    name = "files"

    def __init__(self, chance: random.Random, folder: Path) -> None:
        super().__init__(chance)
        self._folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "empty.csv").write_text("id,round,text\n")  # a project whose files are not there is refused

    def grow(self, number: int) -> None:
        for part in range(self._chance.randint(1, 3)):
            lines = [f"{key},{at},{text}\n" for key, (at, text) in self._new(number).items()]
            partial = self._folder / f".{number:05d}-{part}"
            partial.write_text("id,round,text\n" + "".join(lines))
            partial.rename(self._folder / f"{number:05d}-{part}.csv")


class Table(_Account):
    """A table in PostgreSQL; each round adds rows and changes some that are there, in one transaction."""

    name = "sql"

    def __init__(self, chance: random.Random, url: str) -> None:
        super().__init__(chance)
        import psycopg

        self._db = psycopg.connect(url, autocommit=True)
        self._db.execute(
            "create table rows (id bigint primary key, round bigint not null, text text not null)"
        )

    def grow(self, number: int) -> None:
        old = self._chance.sample(sorted(self.rows), min(len(self.rows), 20))
        changed = {key: (number, f"changed {number}-{key}") for key in old}
        made = self._new(number) | changed
        self.rows |= changed
        with self._db.transaction(), self._db.cursor() as cursor:
            cursor.executemany(
                "insert into rows values (%s, %s, %s) "
                "on conflict (id) do update set round = excluded.round, text = excluded.text",
                [(key, *row) for key, row in made.items()],
            )

    def close(self) -> None:
        self._db.close()


class Topic(_Account):
    """A topic of which three partitions are written to; each round adds messages."""

    name = "kafka"

    def __init__(self, chance: random.Random, servers: str) -> None:
        super().__init__(chance)
        from confluent_kafka import Producer

        from tests.brokers import make

        make(servers, "rows")
        self._producer: Any = Producer({"bootstrap.servers": servers, "enable.idempotence": True})

    def grow(self, number: int) -> None:
        for key, (at, text) in self._new(number).items():
            value = json.dumps({"id": key, "round": at, "text": text})
            self._producer.produce("rows", value=value.encode(), partition=self._chance.randrange(3))
        if self._producer.flush(60):
            raise RuntimeError("the broker did not take what was produced")
