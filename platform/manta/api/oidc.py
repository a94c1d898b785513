"""OpenID Connect tokens: JWTs that an issuer signed, checked against the keys that it publishes."""

from __future__ import annotations

import threading
import time
from typing import Any, NamedTuple

import httpx
import jwt

from manta.errors import Unauthenticated, Unavailable
from manta.ledger.roles import Role
from manta.settings import Oidc

FETCH_SECONDS = 5.0
KEPT_SECONDS = 600.0
# A token with an unknown key id makes the issuer's keys be read again: no more often than this.
SPARE_SECONDS = 10.0
MOST_NAME = 100


class BadToken(Unauthenticated):
    """``guess``: it was not signed by the issuer, rather than being out of date."""

    def __init__(self, message: str, *, guess: bool) -> None:
        super().__init__(message, hint="ask the identity provider for a new token")
        self.guess = guess


class Token(NamedTuple):
    """What a token says: the principal, and ``(project, role)`` by its groups."""

    principal: str
    roles: tuple[tuple[str, Role], ...]


class Tokens:
    """Checks tokens of one issuer. Thread-safe."""

    def __init__(self, oidc: Oidc) -> None:
        self._oidc = oidc
        self._keys = Jwks(oidc)

    def check(self, text: str) -> Token:
        """Raises:
        BadToken: it is not one of the issuer's for this audience, or it is out of date.
        Unavailable: the issuer's keys cannot be read.
        """
        claims = self._claims(text)
        name = claims.get(self._oidc.name_claim)
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MOST_NAME:
            raise BadToken(f"the token's {self._oidc.name_claim!r} names nobody", guess=False)
        groups = claims.get(self._oidc.groups_claim) if self._oidc.groups_claim else None
        roles = [
            (project, role)
            for group in (groups if isinstance(groups, list) else [])
            for project, role in self._oidc.groups.get(str(group), {}).items()
        ]
        return Token(f"user:{name}", tuple(roles))

    def _claims(self, text: str) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(text)
            algorithm, kid = header.get("alg"), header.get("kid")
            # The list is ours: what a token says of its algorithm is never believed.
            if algorithm not in self._oidc.algorithms:
                raise BadToken(f"tokens signed with {algorithm!r} are not accepted", guess=True)
            key = self._keys.get(kid) if isinstance(kid, str) else None
            if key is None:
                raise BadToken("the token is signed with a key that the issuer does not publish", guess=True)
            claims: dict[str, Any] = jwt.decode(
                text,
                key,
                algorithms=list(self._oidc.algorithms),
                audience=self._oidc.audience,
                issuer=self._oidc.issuer,
                leeway=self._oidc.leeway_seconds,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise BadToken("the token has expired", guess=False) from None
        except (jwt.InvalidTokenError, jwt.PyJWTError, ValueError, TypeError) as error:
            raise BadToken(f"the token is not valid: {error}", guess=True) from None
        return claims


class Jwks:
    """The issuer's public keys, by key id; read again when they are old, or lack one that is asked for."""

    def __init__(self, oidc: Oidc) -> None:
        self._oidc = oidc
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at = self._tried_at = float("-inf")
        self._trouble = ""
        self._lock = threading.Lock()

    def get(self, kid: str) -> jwt.PyJWK | None:
        """None when the issuer publishes no such key.

        Raises:
            Unavailable: they have never been read, and cannot be.
        """
        with self._lock:
            now = time.monotonic()
            stale = kid not in self._keys or now - self._read_at > KEPT_SECONDS
            if stale and now - self._tried_at > SPARE_SECONDS:
                self._tried_at = now
                self._read()
            if not self._keys and self._trouble:
                raise Unavailable(
                    f"the keys of {self._oidc.issuer} cannot be read: {self._trouble}",
                    hint="is the identity provider up? API keys work without it",
                )
            return self._keys.get(kid)

    def _read(self) -> None:
        # When it fails, the keys that are held stay good: an issuer that is down locks nobody out.
        try:
            url = self._oidc.jwks_url or self._fetch(self._discovery())["jwks_uri"]
            listed = self._fetch(url)["keys"]
            keys = {}
            for each in listed:
                # A symmetric key cannot be published: whoever reads it could sign.
                if (
                    each.get("kty") in ("RSA", "EC", "OKP")
                    and each.get("use", "sig") == "sig"
                    and "kid" in each
                ):
                    keys[str(each["kid"])] = jwt.PyJWK.from_dict(each)
            self._keys, self._read_at, self._trouble = keys, time.monotonic(), ""
        except (httpx.HTTPError, jwt.PyJWTError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._trouble = f"{type(error).__name__}: {error}"

    def _discovery(self) -> str:
        return f"{self._oidc.issuer.rstrip('/')}/.well-known/openid-configuration"

    @staticmethod
    def _fetch(url: str) -> Any:
        answer = httpx.get(url, timeout=FETCH_SECONDS)
        answer.raise_for_status()
        return answer.json()
