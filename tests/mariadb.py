"""A real MariaDB server, without root: the one installed, or Debian's (Ubuntu's) packages, unpacked once into
a cache folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# The server, and those of its libraries that not every machine has; their names differ between releases.
PACKAGES = ["mariadb-server-core", "liburing2", "libaio1", "libaio1t64", "libnuma1"]
PASSWORD = "mariadb-s3cret"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "manta-tests" / "mariadb"


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A new, empty server on a free port of the loopback interface; gives the URL of its first database."""
    program, share, libraries = _installed() or _unpacked()
    folder = Path(tempfile.mkdtemp(prefix="my", dir="/tmp"))
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
    options = [
        "--no-defaults",
        f"--datadir={folder}/data",
        f"--lc-messages-dir={share}",
        f"--character-sets-dir={share}/charsets",
        f"--socket={folder}/socket",
        f"--pid-file={folder}/pid",
        "--character-set-server=utf8mb4",
        "--innodb-log-file-size=8M",
        "--max-allowed-packet=16M",
        *(["--user=root"] if os.geteuid() == 0 else []),
    ]
    (folder / "data" / "mysql").mkdir(parents=True)
    tables = ["mysql_system_tables", "mysql_performance_tables", "mysql_system_tables_data"]
    statements = [  # the server takes one a line here
        "use mysql;",
        *((share / f"{name}.sql").read_text() for name in tables),
        "flush privileges;",
        f"create user manta@'127.0.0.1' identified by '{PASSWORD}';",
        "grant all on *.* to manta@'127.0.0.1';",
        "create database shop;\n",
    ]
    made = subprocess.run(
        [str(program), *options, "--bootstrap"],
        input="\n".join(statements),
        env=environment,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        shutil.rmtree(folder)
        raise AssertionError(made.stderr)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [str(program), *options, "--bind-address=127.0.0.1", f"--port={port}", "--skip-name-resolve"],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        _wait(process, port, folder / "log")
        yield f"mysql://manta:{PASSWORD}@127.0.0.1:{port}/shop"
    finally:
        process.kill()  # its data goes with it
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _installed() -> tuple[Path, Path, str] | None:
    for program in (shutil.which("mariadbd"), "/usr/sbin/mariadbd"):
        for share in (Path("/usr/share/mysql"), Path("/usr/share/mariadb")):
            if program and Path(program).is_file() and (share / "mysql_system_tables.sql").is_file():
                return Path(program), share, os.environ.get("LD_LIBRARY_PATH", "")
    return None


def _unpacked() -> tuple[Path, Path, str]:
    if not (CACHE / "usr/sbin/mariadbd").is_file():
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE.parent) as folder:
            _download(Path(folder))
            for package in Path(folder).glob("*.deb"):
                subprocess.run(["dpkg", "-x", str(package), f"{folder}/root"], check=True)
            with contextlib.suppress(OSError):  # somebody else was faster
                Path(folder, "root").rename(CACHE)
    share = next(path.parent for path in CACHE.glob("usr/share/*/mysql_system_tables.sql"))
    libraries = sorted({str(path.parent) for path in CACHE.glob("**/*.so.*")})
    return CACHE / "usr/sbin/mariadbd", share, ":".join(libraries)


def _download(folder: Path) -> None:
    """The packages, from where the machine has its own from."""

    def apt(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["apt-get", *arguments], cwd=folder, capture_output=True, text=True)

    lists: list[str] = []
    done = apt("download", PACKAGES[0])
    if done.returncode:  # there are no lists of packages, as in a fresh container
        (folder / "lists/partial").mkdir(parents=True)
        lists = ["-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}"]
        apt(*lists, "update")
        done = apt(*lists, "download", PACKAGES[0])
    assert done.returncode == 0, f"no MariaDB server can be had: {done.stderr}"
    for package in PACKAGES[1:]:
        apt(*lists, "download", package)  # those of other releases are not there


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError(f"MariaDB did not start: {log.read_text()[-2000:]}")
