"""Where files are: on this machine, or in a store that fsspec knows by the scheme of a URL."""

from __future__ import annotations

import glob
import io
import os
import re
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from manta import secrets
from manta.definitions.sources import driver
from manta.errors import MantaError, SourceUnreadable

# The extra that brings what fsspec needs to speak with each; nothing for those that need nothing more.
SCHEMES = {
    "s3": "s3",
    "gs": "gcs",
    "abfs": "azure",
    "abfss": "azure",
    "az": "azure",
    "hdfs": "",
    "http": "",
    "https": "",
}
_DRIVERS = {"s3": "s3fs", "gcs": "gcsfs", "azure": "adlfs"}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# What changes when a file does, as the stores call it.
_TAGS = ("ETag", "etag", "generation", "Content-MD5", "md5", "Last-Modified", "LastModified", "last_modified")
_TIMES = ("updated", "mtime", "modificationTime")
CONNECT_SECONDS = 10
READ_SECONDS = 120
RANGE_BYTES = 8 * 2**20  # what is fetched at once of a file that is read here and there


class Found(NamedTuple):
    """A file as it is now.

    Attributes:
        path: a path, or a URL; as a person may see it: references to secrets stand in it unresolved.
        size: bytes; None when the server does not say.
        tag: changes when the file does; empty when the server gives nothing of that kind.
        ranges: whether parts of it can be had.
    """

    path: str
    size: int | None
    tag: str
    ranges: bool = True


def scheme(path: str) -> str | None:
    """Of a URL; None for a path on this machine."""
    found = _URL.match(path)
    return found[1].lower() if found else None


class Store:
    """What is at paths of one scheme. Cheap to make; holds no connection of its own."""

    def __init__(self, path: str, options: Mapping[str, Any]) -> None:
        self.scheme = scheme(path)
        self.options = options

    def find(self, pattern: str) -> list[Found]:
        """The files that match, sorted by path; without ``*``, ``?`` and ``[`` at most the one.

        Raises:
            SourceUnreadable: the store cannot be reached, or refuses.
        """
        if self.scheme in ("http", "https"):
            return self._find_by_http(pattern)
        with asking(pattern):
            system = self._system()
            system.invalidate_cache()
            inside = system._strip_protocol(pattern)
            if glob.has_magic(inside):
                found = system.glob(inside, detail=True)
            else:
                try:
                    found = {inside: system.info(inside)}
                except FileNotFoundError:
                    return []
            return sorted(
                Found(system.unstrip_protocol(name), int(info["size"]), _tag(info))
                for name, info in found.items()
                if info.get("type") != "directory"
            )

    def read(self, path: str, start: int, stop: int) -> bytes:
        """The bytes from ``start`` to ``stop``, which are there."""
        if self.scheme is None:
            with open(path, "rb") as stream:
                stream.seek(start)
                return stream.read(stop - start)
        with asking(path):
            text = cast(bytes, self._system().cat_file(self._inside(path), start=start, end=stop))
        if len(text) != stop - start:
            raise SourceUnreadable(
                f"{path} gave {len(text):,} bytes where {stop - start:,} were asked for",
                hint="the file was changed while it was read, or the server ignores ranges: run it again",
            )
        return text

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """The file on this machine: itself, or a copy that is removed again."""
        if self.scheme is None:
            yield Path(path)
            return
        name = Path(urllib.parse.urlsplit(path).path).name
        with tempfile.TemporaryDirectory(prefix="manta-") as folder:
            copy = Path(folder) / name
            with asking(path):
                self._system().get_file(self._inside(path), str(copy))
            yield copy

    @contextmanager
    def opened(self, path: str, ranges: bool = True) -> Iterator[IO[bytes]]:
        """To be read here and there; without ``ranges`` it is fetched whole first."""
        if self.scheme is None or not ranges:
            with self.local(path) as copy, open(copy, "rb") as stream:
                yield stream
            return
        with asking(path):
            remote = self._system().open(self._inside(path), "rb", block_size=RANGE_BYTES)
        with remote:
            yield cast(IO[bytes], _Asking(path, remote))

    # --- inside ---------------------------------------------------------------------------------------

    def _inside(self, path: str) -> str:
        resolved = secrets.resolve_url(path)
        return cast(str, self._system()._strip_protocol(resolved))

    def _system(self) -> Any:
        assert self.scheme is not None
        if self.scheme not in SCHEMES:
            raise SourceUnreadable(
                f"files cannot be read from {self.scheme}://",
                hint=f"one of {', '.join(f'{name}://' for name in SCHEMES)}, or a path",
            )
        extra = SCHEMES[self.scheme]
        if extra:
            driver(_DRIVERS[extra], extra)
        import fsspec

        options: dict[str, Any] = secrets.resolve(dict(self.options))
        if self.scheme == "s3":
            limits = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
            options["config_kwargs"] = (
                limits | {"retries": {"max_attempts": 2}} | options.get("config_kwargs", {})
            )
        elif self.scheme in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
            options["client_kwargs"] = {"timeout": timeout} | options.get("client_kwargs", {})
        return fsspec.filesystem(self.scheme, use_listings_cache=False, **options)

    def _find_by_http(self, url: str) -> list[Found]:
        """A server does not list what it has: there is one file to a URL, the query included."""
        with asking(url):
            system, where = self._system(), secrets.resolve_url(url)
            try:
                info = system.info(where)
            except FileNotFoundError as error:  # fsspec calls everything so
                cause = error.__cause__ or error
                if cause is error or getattr(cause, "status", None) in (404, 410):
                    return []
                raise cause from None
            size = info.get("size")
            ranges = False
            if size:
                # What a server says of ranges and what it does are two things.
                with system.open(where, "rb", block_size=0, headers={"Range": "bytes=0-0"}) as some:
                    ranges = some.r.status == 206
            return [Found(url, size, _tag(info), ranges)]


def _tag(info: Mapping[str, Any]) -> str:
    exact = [str(info[name]) for name in _TAGS if info.get(name)]
    return " ".join(exact or [str(info[name]) for name in _TIMES if info.get(name)])


def local_found(path: Path) -> Found:
    stat = path.stat()
    return Found(str(path), stat.st_size, str(stat.st_mtime_ns))


class _Asking(io.RawIOBase):
    """A remote file, whose errors are told as those of the source."""

    def __init__(self, path: str, remote: Any) -> None:
        self._path, self._remote = path, remote

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return cast(int, self._remote.seek(offset, whence))

    def tell(self) -> int:
        return cast(int, self._remote.tell())

    def read(self, size: int = -1) -> bytes:
        with asking(self._path):
            return cast(bytes, self._remote.read(size))

    def readinto(self, buffer: Any) -> int:
        text = self.read(len(buffer))
        buffer[: len(text)] = text
        return len(text)


@contextmanager
def asking(path: str) -> Iterator[None]:
    """Tells a store's own errors as those of the source; secrets are kept out of them."""
    try:
        yield
    except MantaError:
        raise
    except FileNotFoundError as error:
        raise SourceUnreadable(f"{path} is not there", hint="correct `path` in Files(…)") from _bare(error)
    except PermissionError as error:
        raise SourceUnreadable(
            f"{path} may not be read: {_told(error)}",
            hint="correct the credentials in `storage`, or let them read it",
        ) from _bare(error)
    except Exception as error:  # each store has errors of its own
        status = getattr(error, "status", None)
        if status in (401, 403):
            raise SourceUnreadable(
                f"{path} may not be read: the server answered {status}",
                hint="correct the credentials in `storage`, or let them read it",
            ) from _bare(error)
        raise SourceUnreadable(
            f"{path} cannot be read: {_told(error)}",
            hint="is the address right, and the server up and reachable from the cluster?",
        ) from _bare(error)


def _told(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return secrets.without_passwords(secrets.redactor.text(text))


def _bare(error: Exception) -> Exception:
    return secrets.redacted(error)
