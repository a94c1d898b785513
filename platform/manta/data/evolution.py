"""What a contract may change in a dataset that has versions: pure, schemas in, an error out."""

from __future__ import annotations

import pyarrow as pa

from manta.data.values import arrow_schema
from manta.definitions import Ingest
from manta.errors import SchemaChanged


def require(ingest: Ingest, held: pa.Schema) -> None:
    """Compare the contract with the columns of the newest version.

    Raises:
        SchemaChanged: the ingest's ``evolve`` does not allow the difference; the message has all of it.
    """
    if ingest.evolve == "any":
        return
    replacing = ingest.mode == "replace"
    wanted = arrow_schema(ingest.contract)
    before, after = {field.name: field for field in held}, {field.name: field for field in wanted}
    wrong = []
    for name, field in after.items():
        old = before.get(name)
        if old is None:
            if ingest.evolve == "refuse":
                wrong.append(f"{name!r} is added")
            elif not field.nullable and not replacing:
                wrong.append(f"{name!r} is added and may not be null, which it is in the rows there are")
        elif _plain(old.type) != _plain(field.type):
            wrong.append(f"{name!r} is {_plain(old.type)} and would become {_plain(field.type)}")
        elif field.nullable and not old.nullable and not replacing:
            wrong.append(f"{name!r} may not be null, and would be allowed to")
    wrong += [f"{name!r} is dropped" for name in before if name not in after]
    if wrong:
        raise SchemaChanged(
            f"the contract of {ingest.dataset!r} is not that of its versions: {'; '.join(wrong)}; "
            "nothing was committed",
            hint="give it a dataset of its own, or with mode='replace' say evolve='any'",
        )


def _plain(kind: pa.DataType) -> str:
    """Arrow has several layouts of one type; Delta keeps them apart as little as a reader does."""
    return str(kind).replace("large_", "").replace("_view", "").replace("timestamp[us, tz=UTC]", "timestamp")
