"""A secret from the Kubernetes API, as a pod asks for it: over TLS, with its service account's token."""

from __future__ import annotations

import base64
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from manta.errors import SecretUnreadable
from manta.secrets import resolve

VALUE = "of the cluster"


class Api(BaseHTTPRequestHandler):
    """One secret, for one token."""

    def do_GET(self) -> None:
        allowed = self.headers["Authorization"] == "Bearer of-the-pod"
        found = self.path == "/api/v1/namespaces/prod/secrets/db"
        self.send_response(200 if allowed and found else 404 if allowed else 403)
        self.end_headers()
        if allowed and found:
            data = {"password": base64.b64encode(VALUE.encode()).decode()}
            self.wfile.write(json.dumps({"kind": "Secret", "data": data}).encode())

    def log_message(self, *_: Any) -> None:
        pass


def certificate(folder: Path) -> Path:
    """A self-signed certificate of 127.0.0.1, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    pem = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(pem)
    )
    (folder / "ca.crt").write_bytes(made.public_bytes(pem))
    return path


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the pod's service account."""
    server = HTTPServer(("127.0.0.1", 0), Api)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "token").write_text("of-the-pod\n")
    monkeypatch.setattr("manta.secrets.POD", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_port))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # never asked
    yield tmp_path
    server.shutdown()
    server.server_close()


def test_it_is_read_from_the_api(pod: Path) -> None:
    assert resolve("${k8s:prod/db/password}") == VALUE


@pytest.mark.parametrize(
    ("name", "says"),
    [("k8s:prod/db/user", "db has no key user"), ("k8s:prod/other/password", "the API answered 404")],
)
def test_what_is_not_there_is_named(pod: Path, name: str, says: str) -> None:
    with pytest.raises(SecretUnreadable, match=says) as missing:
        resolve(f"${{{name}}}")
    assert name in missing.value.message


def test_a_token_that_may_not(pod: Path) -> None:
    (pod / "token").write_text("of-another")
    with pytest.raises(SecretUnreadable, match="the API answered 403"):
        resolve("${k8s:prod/db/password}")


def test_a_server_that_is_not_the_cluster_s_gets_no_answer(pod: Path) -> None:
    other = pod / "other"
    other.mkdir()
    certificate(other)
    (pod / "ca.crt").write_bytes((other / "ca.crt").read_bytes())
    with pytest.raises(SecretUnreadable, match="cannot be read: URLError"):
        resolve("${k8s:prod/db/password}")
