"""Secrets: named in definitions and settings, read only where they are used, and kept out of what is written.

A reference is a piece of text: ``${env:NAME}``, ``${file:/path}`` or ``${k8s:namespace/name/key}``. It may
stand anywhere in a parameter or a setting, alone or within a longer text, and it is all that the ledger, the
package, Ray and the API ever see. What a process has read is remembered in :data:`redactor`, which takes it
out of logs and messages again, also where it was URL-, JSON-, hex- or base64-encoded.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from manta.errors import DefinitionInvalid, SecretUnreadable

REFERENCE = re.compile(r"\$\{((?:env|file|k8s):[^{}\s]+)\}")
FORMS = {
    "env": re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*"),
    "file": re.compile(r"file:/[^{}\s]+"),
    "k8s": re.compile(r"k8s:[a-z0-9.-]+/[a-z0-9.-]+/[A-Za-z0-9._-]+"),
}
SHORTEST = 4  # characters: what is shorter cannot be told from ordinary text, and so not be kept out of it
LINE = 8  # characters that a line of a secret with several must have to be taken out by itself
MOUNTS = Path("/run/secrets")  # where a Kubernetes secret may be mounted: <MOUNTS>/<name>/<key>
POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PASSWORD = re.compile(r"([A-Za-z][\w+.-]*://[^\s:/@?#]*:)([^\s\x22@]+)(?=@)|([?&]password=)([^\s\x22&#]+)")


class Secret(str):
    """A named secret, to stand in a :class:`~manta.Job`'s params or in a longer text.

        Job(name="pull", fn=pull, params={"token": Secret("env:API_TOKEN")})

    It *is* its reference, ``${env:API_TOKEN}``; the value is there only inside the run.

    Raises:
        DefinitionInvalid: it names neither ``env:NAME``, ``file:/path`` nor ``k8s:namespace/name/key``.
    """

    def __new__(cls, name: str) -> Secret:
        name = name.removeprefix("${").removesuffix("}")
        form = FORMS.get(name.partition(":")[0])
        if form is None or not form.fullmatch(name):
            # What was given may be the secret itself: it is not repeated.
            raise DefinitionInvalid(
                "a Secret names where the value is, it does not hold it",
                hint="Secret('env:NAME'), Secret('file:/run/secrets/x') or Secret('k8s:namespace/name/key')",
            )
        return super().__new__(cls, f"${{{name}}}")

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


def references(value: Any) -> list[str]:
    """The names (``env:NAME``) that occur anywhere in a JSON value, each once, in their order."""
    return list(dict.fromkeys(name for text in _texts(value) for name in REFERENCE.findall(text)))


def resolve(value: Any) -> Any:
    """``value`` with every reference in it replaced by what it names.

    Raises:
        SecretUnreadable: one cannot be read; the message says which, and no value.
    """
    return mapped(value, lambda text: REFERENCE.sub(lambda found: read(found[1]), text))


def resolve_url(url: str) -> str:
    """Like :func:`resolve`, for a text in which a value must be URL-encoded."""
    return REFERENCE.sub(lambda found: urllib.parse.quote(read(found[1]), safe=""), url)


def remember(value: Any) -> None:
    """Let :data:`redactor` know all that ``value`` refers to; what cannot be read is left for :func:`resolve`
    to complain of."""
    for name in references(value):
        try:
            read(name)
        except SecretUnreadable:
            continue


def without_passwords(text: str) -> str:
    """A text with the passwords of the URLs in it hidden; references stay, for they say nothing."""

    def hidden(found: re.Match[str]) -> str:
        start, value = (found[1], found[2]) if found[1] else (found[3], found[4])
        return found[0] if REFERENCE.fullmatch(value) else f"{start}***"

    return PASSWORD.sub(hidden, text)


def plain_passwords(text: str) -> list[str]:
    """The passwords of the URLs in a text, without those that are references."""
    found = (match[2] or match[4] for match in PASSWORD.finditer(text))
    return [value for value in found if not REFERENCE.fullmatch(value)]


def read(name: str) -> str:
    """What ``env:NAME``, ``file:/path`` or ``k8s:namespace/name/key`` holds now, without a line's end at its
    end; remembered by :data:`redactor`.

    Raises:
        SecretUnreadable: there is none, or it is too short to be kept out of logs.
    """
    scheme, _, where = name.partition(":")
    value = {"env": _from_environment, "file": _from_file, "k8s": _from_kubernetes}[scheme](where)
    value = value.rstrip("\r\n")
    if len(value) < SHORTEST:
        what = f"has fewer than {SHORTEST} characters" if value else "is empty"
        raise SecretUnreadable(f"the secret {name} {what}", hint="give it a value that can be kept secret")
    redactor.add(name, value)
    return value


# --- where they are --------------------------------------------------------------------------------------


def _from_environment(name: str) -> str:
    if name not in os.environ:
        raise SecretUnreadable(
            f"the secret env:{name} is not set where the run is",
            hint=f"set {name} in the environment of Ray (for `manta up`: in the shell that starts it)",
        )
    return os.environ[name]


def _from_file(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SecretUnreadable(
            f"the secret file:{path} cannot be read: {why}", hint="put it there, readable by who runs the run"
        ) from None


def _from_kubernetes(where: str) -> str:
    namespace, name, key = where.split("/")
    mounted = MOUNTS / name / key
    if mounted.is_file():
        return _from_file(str(mounted))
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (POD / "token").is_file():
        raise SecretUnreadable(
            f"the secret k8s:{where} cannot be read: {mounted} does not exist, and this is not a pod",
            hint=f"mount the secret at {mounted.parent}, or use env: or file:",
        )
    # Loaded when used: every worker would wait for them.
    import ssl
    import urllib.request

    if ":" in host:
        host = f"[{host}]"
    request = urllib.request.Request(
        f"https://{host}:{port}/api/v1/namespaces/{namespace}/secrets/{name}",
        headers={"Authorization": f"Bearer {(POD / 'token').read_text().strip()}"},
    )
    trust = ssl.create_default_context(cafile=str(POD / "ca.crt"))
    # Never through a proxy: the API is in the cluster, and the request carries the pod's token.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
    )
    try:
        with opener.open(request, timeout=10) as answer:
            data = json.load(answer).get("data") or {}
        return base64.b64decode(data[key]).decode()
    except KeyError:
        raise SecretUnreadable(f"the secret k8s:{where}: {name} has no key {key}") from None
    except (OSError, ValueError) as error:
        status = getattr(error, "code", None)
        raise SecretUnreadable(
            f"the secret k8s:{where} cannot be read: "
            f"{f'the API answered {status}' if status else type(error).__name__}",
            hint="let the pod's service account get that secret",
        ) from None


# --- keeping them out of what is written -----------------------------------------------------------------


class Redactor:
    """What this process has read of secrets, and how to take it out of text. Adding is safe from threads."""

    def __init__(self) -> None:
        self._forms: dict[bytes, bytes] = {}  # an encoded form of a value → what is written instead
        self._beginnings: set[bytes] = set()
        self._pattern: re.Pattern[bytes] | None = None

    def __bool__(self) -> bool:
        return bool(self._forms)

    def add(self, name: str, value: str) -> None:
        shown = f"[secret {name}]".encode()
        forms = {form: shown for form in _forms(value) if len(form) >= SHORTEST}
        if forms.keys() <= self._forms.keys():
            return
        self._forms = forms | self._forms
        self._beginnings |= {form[:size] for form in forms for size in range(1, len(form))}
        longest_first = sorted(self._forms, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(re.escape(form) for form in longest_first))

    def data(self, content: bytes) -> bytes:
        if self._pattern is None:
            return content
        return self._pattern.sub(lambda found: self._forms[found[0]], content)

    def text(self, content: str) -> str:
        if self._pattern is None:
            return content
        return self.data(content.encode(errors="surrogatepass")).decode(errors="surrogatepass")

    def value(self, value: Any) -> Any:
        """A JSON value, redacted: its texts and its keys."""
        return value if self._pattern is None else mapped(value, self.text)

    def stream(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """What was written piece by piece, redacted also where a secret was cut in two: what may be the
        beginning of one is held back until more has come, or the end."""
        held = b""
        for piece in pieces:
            held += piece
            cut = self._cut(held)
            if cut:
                yield self.data(held[:cut])
                held = held[cut:]
        if held:
            yield self.data(held)

    def _cut(self, content: bytes) -> int:
        """Up to where ``content`` can be told from what may come after it."""
        if self._pattern is None:
            return len(content)
        longest = max(map(len, self._forms)) - 1
        sizes = range(min(longest, len(content)), 0, -1)
        cut = len(content) - next((size for size in sizes if content[-size:] in self._beginnings), 0)
        # Never through a secret that is whole, and whose end happens to be how another begins.
        across = (
            found.end() for found in self._pattern.finditer(content) if found.start() < cut < found.end()
        )
        return next(across, cut)


def redacted(error: Exception) -> Exception:
    """The error, and those that led to it, without what :data:`redactor` knows: the same object where it can
    be changed, another where it cannot."""
    each: BaseException | None = error
    seen: set[int] = set()
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        each.args = tuple(
            redactor.value(arg) if isinstance(arg, str | list | tuple | dict) else arg for arg in each.args
        )
        each = each.__cause__ or each.__context__
    said = str(error)
    if redactor.text(said) == said:
        return error
    return RuntimeError(f"{type(error).__name__}: {redactor.text(said)}")


def _forms(value: str) -> Iterator[bytes]:
    """The value as it is and as it is usually encoded; each line of it, when there are several."""
    lines = [line.strip() for line in value.splitlines()] if "\n" in value else []
    for text in [value, *(line for line in lines if len(line) >= LINE)]:
        raw = text.encode(errors="surrogatepass")
        yield raw
        yield urllib.parse.quote(text, safe="").encode()
        yield urllib.parse.quote(text).encode()
        yield urllib.parse.quote_plus(text).encode()
        yield json.dumps(text)[1:-1].encode()
        yield json.dumps(text, ensure_ascii=False)[1:-1].encode()
        yield repr(text)[1:-1].encode(errors="surrogatepass")
        yield binascii.hexlify(raw)
        yield binascii.hexlify(raw).upper()
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(raw).rstrip(b"=")
            # Within a longer text (a user name before it): what does not depend on what stands around it.
            for shift in range(3):
                encoded = encode(b"\0" * shift + raw)
                inner = encoded[-(-shift * 8 // 6) : (shift + len(raw)) * 8 // 6]
                if len(inner) >= LINE:
                    yield inner


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with each of its texts changed, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {mapped(key, change): mapped(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [mapped(each, change) for each in value]
    return value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


redactor = Redactor()
"""What this process has read: one process, one set of things that it must not tell."""
