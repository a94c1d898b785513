"""The shape of API keys."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from manta.api.identity import KEY, credentials, prefix_of
from manta.errors import Unauthenticated
from manta.ledger.actor import OWNER
from manta.ledger.store import Ledger
from manta.settings import Settings

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"


@given(
    st.text(alphabet="0123456789abcdef", min_size=12, max_size=12),
    st.text(ALPHABET, min_size=43, max_size=43),
)
def test_what_is_made_is_read(prefix: str, secret: str) -> None:
    key = f"manta_{prefix}_{secret}"
    assert prefix_of(key) == prefix
    assert credentials(f"Bearer {key}") == (key, prefix)


@given(st.one_of(st.text(), st.from_regex(r"manta_[0-9a-f_]{8,16}_[\w-]{40,46}\s*")))
def test_what_is_read_is_an_exact_key(text: str) -> None:
    prefix = prefix_of(text)
    if prefix is not None:
        assert len(text) == 6 + 12 + 1 + 43
        assert text.isascii()
        assert KEY.fullmatch(text)
        assert not re.search(r"\s", text)


@given(st.text())
def test_a_header_gives_credentials_or_is_refused(header: str) -> None:
    try:
        shown = credentials(header)
    except Unauthenticated:
        return
    assert shown.text
    assert shown.prefix == (prefix_of(shown.text) or "")


def test_keys_hold_256_bits_and_are_kept_as_a_digest(settings: Settings) -> None:
    from manta.api.identity import Identity

    ledger = Ledger(f"sqlite:///{settings.root}/ledger.db")
    ledger.create()
    identity = Identity(settings, ledger)
    identity.prepare()
    keys = {identity.make_key("user:ada", by=OWNER)[1] for _ in range(50)}
    assert len({key.split("_", 2)[2] for key in keys}) == 50
    kept = ledger.access.keys()
    assert all(len(key.digest) == 64 for key in kept)
    content = (settings.root / "ledger.db").read_bytes() + (settings.root / "ledger.db-wal").read_bytes()
    assert not any(key.split("_", 2)[2].encode() in content for key in keys)
    ledger.close()
