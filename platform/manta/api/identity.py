"""Who asks: API keys and OIDC tokens, and what lets one in on a laptop."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import threading
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from manta.api.oidc import Tokens
from manta.errors import MantaError, Unauthenticated
from manta.ledger.actor import OWNER, Actor
from manta.ledger.records import ApiKey
from manta.ledger.roles import EVERY_PROJECT, Role
from manta.ledger.store import Ledger
from manta.settings import Settings

KEY = re.compile(r"manta_([0-9a-f]{12})_([A-Za-z0-9_-]{43})", re.ASCII)
SECRET_BYTES = 32
KEY_HINT = (
    "make a key with `manta keys create`; a client sends MANTA_API_KEY, or the key in MANTA_API_KEY_FILE"
)


@dataclass(frozen=True)
class Principal:
    """Who was let in, and the roles held: project, or "*" for all → role."""

    name: str
    roles: Mapping[str, Role]

    def sees(self, project: str) -> bool:
        return EVERY_PROJECT in self.roles or project in self.roles


class BadCredentials(Unauthenticated):
    """Credentials that open nothing. ``guess``: they may be a guess, rather than what was valid once."""

    def __init__(self, message: str, *, guess: bool) -> None:
        super().__init__(message, hint=KEY_HINT)
        self.guess = guess


class Credentials(NamedTuple):
    """What a request shows. ``prefix`` is that of an API key, empty for a token or what is neither."""

    text: str
    prefix: str


def credentials(header: str | None) -> Credentials:
    """Those in an Authorization header.

    Raises:
        Unauthenticated: there is none, or it is not ``Bearer …``.
    """
    if not header:
        raise Unauthenticated("this needs an API key or a token", hint=KEY_HINT)
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise Unauthenticated("the Authorization header is not `Bearer KEY`", hint=KEY_HINT)
    text = text.strip()
    return Credentials(text, prefix_of(text) or "")


def prefix_of(key: str) -> str | None:
    """The prefix of what has the shape of an API key, else None."""
    shape = KEY.fullmatch(key)
    return shape[1] if shape else None


class Identity:
    """Tells who shows credentials. Nothing is remembered from one request to the next: what was revoked, or
    taken away, is refused from the next request on."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._tokens = Tokens(settings.oidc) if settings.oidc else None
        self._pepper = b""
        self._used: set[str] = set()
        self._lock = threading.Lock()

    def prepare(self) -> str:
        """Make the pepper and the owner's key where they are not. Called once the ledger has its tables.
        Returns the owner's key."""
        self._pepper = pepper(self._settings)
        return self._owner_key()

    def of(self, shown: Credentials) -> Principal:
        """Raises:
        BadCredentials: they open nothing.
        Unavailable: the ledger, or the issuer of tokens, does not answer.
        """
        if shown.prefix:
            return self._of_key(shown)
        if self._tokens is None or shown.text.count(".") != 2:
            raise BadCredentials("that is not an API key", guess=True)
        token = self._tokens.check(shown.text)
        held = {project: Role(role) for project, role in self._ledger.access.roles(token.principal).items()}
        for project, role in token.roles:
            if project not in held or role.covers(held[project]):
                held[project] = role
        return Principal(token.principal, held)

    def _of_key(self, shown: Credentials) -> Principal:
        found = self._ledger.access.open(shown.prefix)
        digest = self._digest(shown.text)
        # Compared even when there is no such key: an answer takes as long either way.
        kept = found[0].digest if found else "0" * 64
        if not hmac.compare_digest(kept, digest) or found is None:
            raise BadCredentials("there is no such API key", guess=True)
        key, roles = found
        if key.revoked_at is not None:
            raise BadCredentials(f"the API key {key.prefix} was revoked", guess=False)
        if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
            raise BadCredentials(f"the API key {key.prefix} has expired", guess=False)
        with self._lock:
            self._used.add(key.prefix)
        return Principal(key.principal, {project: Role(role) for project, role in roles.items()})

    def make_key(
        self, principal: str, *, by: Actor, label: str = "", expires_at: datetime | None = None
    ) -> tuple[ApiKey, str]:
        """A new key, as the ledger knows it and as its holder must keep it: it is not seen again."""
        prefix = secrets.token_hex(6)
        secret = urlsafe_b64encode(secrets.token_bytes(SECRET_BYTES)).rstrip(b"=").decode()
        key = f"manta_{prefix}_{secret}"
        made = self._ledger.access.add_key(
            prefix, self._digest(key), principal, by=by, label=label, expires_at=expires_at
        )
        return made, key

    def note_used(self) -> None:
        """Write down which keys were used since it was called last."""
        with self._lock:
            used, self._used = self._used, set()
        if used:
            self._ledger.access.used(used, datetime.now(UTC))

    def _digest(self, key: str) -> str:
        return hmac.new(self._pepper, key.encode(), hashlib.sha256).hexdigest()

    def _owner_key(self) -> str:
        """The key in ``<home>/owner.key``; made anew when the ledger does not know the one that is there."""
        path = self._settings.home / "owner.key"
        with _locked(self._settings.home):
            if self._ledger.access.roles(OWNER.name).get(EVERY_PROJECT) != Role.ADMIN:
                self._ledger.access.grant(OWNER.name, EVERY_PROJECT, Role.ADMIN, by=OWNER)
            if path.exists():
                key = path.read_text().strip()
                try:
                    if prefix_of(key) and self._of_key(credentials(f"Bearer {key}")).name == OWNER.name:
                        return key
                except MantaError:
                    pass  # of another ledger, or revoked
            _, key = self.make_key(OWNER.name, by=OWNER, label="owner.key")
            write_secret(path, key.encode() + b"\n")
            return key


def pepper(settings: Settings) -> bytes:
    """The server's secret, without which the digests in the ledger tell nothing: 32 bytes. It is in
    ``settings.pepper_file``, the same on every server of one ledger, and is made when there is none."""
    path = settings.pepper_file or settings.home / "pepper"
    with _locked(settings.home):
        if not path.exists():
            write_secret(path, secrets.token_hex(32).encode() + b"\n")
        return path.read_bytes().strip()


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """One process at a time makes the secrets of a state folder."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / "identity.lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
