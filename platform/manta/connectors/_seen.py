"""Which files an ingest has read: the cursor of ``Files(new_only=True)``.

Of each file eight bytes: five of a hash of its path, three of a hash of its size and tag. Sorted, each less
the one before, and deflated that is about six bytes a file: 0.77 MB of JSON for a hundred thousand. Of so
many files a new path is taken for a known one once in ten million times: the run then fails, as the tag is
another. It is passed over only if all eight bytes are alike, once in 10 ** 14.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from manta.connectors._stores import Found
from manta.errors import SourceUnreadable

if TYPE_CHECKING:
    import numpy as np

TAG_BITS = 24


def only_new(
    path: str, found: Sequence[Found], cursor: Any, *, changed: bool
) -> tuple[dict[str, Any], list[Found]]:
    """The cursor behind all of ``found``, and those of them that the one before does not know; with
    ``changed`` also those that it knows by another tag. Files that are gone are forgotten.

    Raises:
        SourceUnreadable: one has changed, and without ``changed``.
    """
    import numpy as np

    before = _unpack(cursor)
    now = np.fromiter((_mark(each) for each in found), dtype=np.uint64, count=len(found))
    known = np.isin(now, before)
    altered = ~known & np.isin(now >> TAG_BITS, before >> TAG_BITS)
    if altered.any() and not changed:
        names = [each.path for each, odd in zip(found, altered, strict=True) if odd]
        raise SourceUnreadable(
            f"{len(names)} files of {path!r} have changed since they were read: {', '.join(names[:3])}",
            hint="write new files under new names; or say changed='read', with mode='upsert' and a key",
        )
    wanted = [each for each, old in zip(found, known, strict=True) if not old]
    return _pack(now), wanted


def _mark(file: Found) -> int:
    name = hashlib.sha256(file.path.encode(errors="surrogatepass")).digest()[:5]
    tag = hashlib.sha256(repr((file.size, file.tag)).encode()).digest()[:3]
    return int.from_bytes(name + tag, "big")


def _pack(marks: np.ndarray) -> dict[str, Any]:
    import numpy as np

    steps = np.diff(np.unique(marks), prepend=np.uint64(0))
    # Byte by byte: the high ones are nearly all zero, and deflate to nothing.
    planes = steps.astype(">u8").view(np.uint8).reshape(-1, 8).T
    return {"files": len(steps), "marks": base64.b85encode(zlib.compress(planes.tobytes(), 6)).decode()}


def _unpack(cursor: Any) -> np.ndarray:
    import numpy as np

    if cursor is None:
        return np.zeros(0, dtype=np.uint64)
    planes = np.frombuffer(zlib.decompress(base64.b85decode(cursor["marks"])), dtype=np.uint8)
    steps = np.ascontiguousarray(planes.reshape(8, -1).T).view(">u8").ravel().astype(np.uint64)
    return np.cumsum(steps, dtype=np.uint64)
