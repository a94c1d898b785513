"""OIDC tokens: the issuer's are accepted, and nothing that only looks like them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from manta.api import oidc
from manta.api.oidc import BadToken, Tokens
from manta.errors import Unavailable
from manta.ledger.roles import Role
from manta.settings import Oidc

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
AUDIENCE = "manta"


def jwk(key: Any, kid: str, algorithm: str) -> dict[str, Any]:
    made = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return {**made, "kid": kid, "use": "sig"}


class Issuer:
    """Publishes keys over real HTTP, and counts who reads them."""

    def __init__(self) -> None:
        self.keys = [jwk(RSA, "r", "RS256"), jwk(EC, "e", "ES256")]
        self.reads = 0
        self.up = True
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if not issuer.up:
                    self.send_error(500)
                    return
                if self.path == "/.well-known/openid-configuration":
                    body: Any = {"jwks_uri": f"{issuer.url}/keys"}
                else:
                    issuer.reads += 1
                    body = {"keys": issuer.keys}
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def claims(self, **changes: Any) -> dict[str, Any]:
        made = {"iss": self.url, "aud": AUDIENCE, "sub": "ada", "exp": int(time.time()) + 300} | changes
        return {name: value for name, value in made.items() if value is not None}

    def token(self, key: Any = RSA, algorithm: str = "RS256", kid: str | None = "r", **changes: Any) -> str:
        return jwt.encode(self.claims(**changes), key, algorithm, {"kid": kid} if kid else {})


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    yield issuer
    issuer.server.shutdown()
    issuer.server.server_close()


@pytest.fixture
def tokens(issuer: Issuer) -> Tokens:
    groups = {"ml": {"ads": Role.DEVELOPER}, "ops": {"*": Role.OPERATOR}}
    return Tokens(Oidc(issuer=issuer.url, audience=AUDIENCE, groups_claim="groups", groups=groups))


def test_the_issuers_tokens_are_accepted_with_roles_by_group(issuer: Issuer, tokens: Tokens) -> None:
    assert tokens.check(issuer.token()) == ("user:ada", ())
    found = tokens.check(issuer.token(EC, "ES256", "e", sub="bob", groups=["ml", "others"]))
    assert found == ("user:bob", (("ads", Role.DEVELOPER),))
    assert tokens.check(issuer.token(aud=["other", AUDIENCE])).principal == "user:ada"
    assert issuer.reads == 1


def encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def unsigned(issuer: Issuer, algorithm: str) -> str:
    return f"{encoded({'alg': algorithm, 'typ': 'JWT', 'kid': 'r'})}.{encoded(issuer.claims())}."


def confused(issuer: Issuer) -> str:
    """Signed with the issuer's public key as if it were a shared secret."""
    public = RSA.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    text = f"{encoded({'alg': 'HS256', 'typ': 'JWT', 'kid': 'r'})}.{encoded(issuer.claims())}"
    signature = hmac.new(public, text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def with_own_key(issuer: Issuer) -> str:
    """The key that it is signed with lies in its own header."""
    headers = {"kid": "r", "jwk": jwk(OTHER_RSA, "r", "RS256"), "jku": "http://127.0.0.1:1/keys"}
    return jwt.encode(issuer.claims(), OTHER_RSA, "RS256", headers)


def tampered(issuer: Issuer) -> str:
    head, _, signature = issuer.token().split(".")
    return f"{head}.{encoded(issuer.claims(sub='owner'))}.{signature}"


ATTACKS: dict[str, Callable[[Issuer], str]] = {
    "alg none": lambda issuer: unsigned(issuer, "none"),
    "alg None": lambda issuer: unsigned(issuer, "None"),
    "alg nOnE": lambda issuer: unsigned(issuer, "nOnE"),
    "no signature": lambda issuer: issuer.token().rpartition(".")[0] + ".",
    "HS/RS confusion": confused,
    "its own key": with_own_key,
    "claims changed": tampered,
    "another's key": lambda issuer: issuer.token(OTHER_RSA),
    "another algorithm": lambda issuer: issuer.token(algorithm="RS512"),
    "a key of another type": lambda issuer: issuer.token(EC, "ES256", "r"),
    "unknown kid": lambda issuer: issuer.token(kid="x"),
    "no kid": lambda issuer: issuer.token(kid=None),
    "another audience": lambda issuer: issuer.token(aud="other"),
    "no audience": lambda issuer: issuer.token(aud=None),
    "another issuer": lambda issuer: issuer.token(iss="https://evil.example"),
    "no issuer": lambda issuer: issuer.token(iss=None),
    "expired": lambda issuer: issuer.token(exp=int(time.time()) - 60),
    "no expiry": lambda issuer: issuer.token(exp=None),
    "an expiry that is no number": lambda issuer: issuer.token(exp="tomorrow"),
    "not yet valid": lambda issuer: issuer.token(nbf=int(time.time()) + 600),
    "no name": lambda issuer: issuer.token(sub=None),
    "an empty name": lambda issuer: issuer.token(sub=""),
    "a name with a line break": lambda issuer: issuer.token(sub="ada\nowner"),
    "a very long name": lambda issuer: issuer.token(sub="a" * 500),
    "nonsense": lambda _: "a.b.c",
    "a list": lambda _: f"{encoded([1])}.{encoded([2])}.x",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_not_the_issuers_is_refused(issuer: Issuer, tokens: Tokens, attack: str) -> None:
    with pytest.raises(BadToken):
        tokens.check(ATTACKS[attack](issuer))


def test_unknown_key_ids_make_the_issuer_be_asked_now_and_then_only(
    issuer: Issuer, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens.check(issuer.token())
    for number in range(20):
        with pytest.raises(BadToken):
            tokens.check(issuer.token(kid=f"x{number}"))
    assert issuer.reads == 1
    # A key that the issuer has added meanwhile is found once the time to be spared is over.
    issuer.keys.append(jwk(OTHER_RSA, "new", "RS256"))
    monkeypatch.setattr(oidc, "SPARE_SECONDS", 0.0)
    assert tokens.check(issuer.token(OTHER_RSA, kid="new")).principal == "user:ada"
    assert issuer.reads == 2


def test_an_issuer_that_is_down_locks_out_nobody_whose_key_is_known(
    issuer: Issuer, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens.check(issuer.token())
    issuer.up = False
    monkeypatch.setattr(oidc, "SPARE_SECONDS", 0.0)
    monkeypatch.setattr(oidc, "KEPT_SECONDS", 0.0)
    assert tokens.check(issuer.token()).principal == "user:ada"
    fresh = Tokens(Oidc(issuer=issuer.url, audience=AUDIENCE))
    with pytest.raises(Unavailable, match="cannot be read"):
        fresh.check(issuer.token())


def test_a_symmetric_key_that_is_published_is_not_used(issuer: Issuer, tokens: Tokens) -> None:
    secret = b"0" * 32
    issuer.keys = [{"kty": "oct", "kid": "s", "k": base64.urlsafe_b64encode(secret).decode(), "alg": "HS256"}]
    with pytest.raises(BadToken):
        tokens.check(jwt.encode(issuer.claims(), secret, "HS256", {"kid": "s"}))


@pytest.mark.parametrize("algorithm", ["HS256", "none", "HS512"])
def test_settings_take_no_symmetric_algorithm(algorithm: str) -> None:
    with pytest.raises(ValueError, match="Input should be"):
        Oidc(issuer="https://i", audience="a", algorithms=(algorithm,))  # type: ignore[arg-type]
