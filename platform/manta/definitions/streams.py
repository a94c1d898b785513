"""Definitions of what goes on and on: an ingest that keeps features fresh while it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, model_validator

from manta.definitions.base import Ref
from manta.definitions.datasets import Ingest
from manta.errors import DefinitionInvalid

WHOLE_RUN = ("min_rows", "max_rows", "max_change")  # what a contract asks of all that a run brings
WHOLE_COLUMN = ("max_null", "fresh_within")


class StreamFeatures(Ingest):
    """Reads a source on and on: each batch becomes a version of the dataset, in one commit with where the
    next one begins, and then the newest row of each of its keys is written online.

    Whoever dies, and whenever, the dataset has each message once, and what is online is made again from it:
    each run first writes the newest row of every key. The newest event time wins online. ``online`` is not
    among the outputs: that names all views of a service, as its :class:`Materialize` left them.

    Attributes:
        features: the feature service that is kept fresh. Its views of this dataset must be pushed views
            (``source=PushSource(…)``): a materialization takes nothing newer away from those. Other pushed
            views of the dataset are written too.
        poll_seconds: between the beginnings of two batches, at least; each batch with rows is a commit.
        seconds: how long a run lasts before it ends well and its versions are recorded; then it may be run
            anew. 0: for one batch. So does a run that is the first, or the first after a change of its
            definition or of the service: what is downstream waits for it.
    """

    kind: ClassVar[str] = "stream-features"
    features: str
    poll_seconds: float = Field(default=1.0, gt=0)
    seconds: float = Field(default=3600.0, ge=0)

    @model_validator(mode="after")
    def _reads_on(self) -> StreamFeatures:
        if not self.source.incremental:
            raise ValueError("a stream reads on from where it stopped, and this source reads all each time")
        columns = self.contract.columns.items()
        whole = [name for name in WHOLE_RUN if getattr(self.contract, name) is not None]
        whole += [f"{name} of {c}" for c, column in columns for name in WHOLE_COLUMN if getattr(column, name)]
        if whole:
            raise ValueError(f"{', '.join(whole)}: a batch may be one row, and is not held to that")
        return self

    def inputs(self) -> tuple[Ref, ...]:
        return (*super().inputs(), Ref("features", self.features))

    def require(self, views: Mapping[str, bool]) -> None:
        """``views`` are those of the service that read the dataset: name → whether they are pushed views.

        Raises:
            DefinitionInvalid: there is none, or one is not.
        """
        if not views:
            raise DefinitionInvalid(
                f"{self.name!r} keeps {self.features!r} fresh, no view of which reads {self.dataset!r}",
                hint=f"name a feature service with a view of DatasetSource(dataset={self.dataset!r}, …)",
            )
        others = ", ".join(name for name, pushed in views.items() if not pushed)
        if others:
            raise DefinitionInvalid(
                f"{self.name!r} writes {others} online as rows come, and it is not pushed to: the next "
                "materialization would take newer values away",
                hint="give it source=PushSource(name=…, batch_source=DatasetSource(…))",
            )

    def fingerprinted(self) -> dict[str, Any]:
        treated = ("poll_seconds", "seconds")  # as a policy: how it is run, not what it makes
        return {name: value for name, value in super().fingerprinted().items() if name not in treated}
