"""Where the workers of a group learn of each other, for a library that wants all addresses before it connects
them, and has no word for what one of them decides.

A small server in the run's process, to which each worker keeps one connection for as long as it works.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from manta.training.trainers._group import NotMet

HELLO_SECONDS = 10.0  # for whoever connects to say who it is
WAITING_SECONDS = 300.0  # for all workers to come, and for a word of the first


class Meeting:
    """Tells each of ``workers`` the addresses of all when the last has come, and passes on to the others what
    the first says from then on. When the first leaves, so must all.

    Attributes:
        told: what a worker needs to know.
    """

    def __init__(self, host: str, workers: int) -> None:
        self._server = socket.create_server((host, 0))
        self._workers = workers
        self._open: list[socket.socket] = [self._server]
        self._thread = threading.Thread(target=self._serve, name="meeting", daemon=True)
        port = self._server.getsockname()[1]
        self.told: Mapping[str, Any] = {"host": host, "port": port, "word": secrets.token_hex(16)}

    def __enter__(self) -> Meeting:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._thread.join()

    def _serve(self) -> None:
        with suppress(OSError):  # it is over, or a worker is
            streams = self._gathered()
            addresses = [address for _, address in sorted((rank, held[1]) for rank, held in streams.items())]
            for stream, _ in streams.values():
                _say(stream, addresses)
            for line in streams[0][0]:
                for rank, (stream, _) in streams.items():
                    if rank:
                        stream.write(line)
                        stream.flush()
        self._close()

    def _gathered(self) -> dict[int, tuple[TextIO, str]]:
        found: dict[int, tuple[TextIO, str]] = {}
        while len(found) < self._workers:
            connection, _ = self._server.accept()
            self._open.append(connection)
            connection.settimeout(HELLO_SECONDS)
            try:
                stream = connection.makefile("rw")
                hello = json.loads(stream.readline())
                if hello["word"] != self.told["word"]:
                    raise ValueError("a stranger")
                found[int(hello["rank"])] = (stream, str(hello["address"]))
                connection.settimeout(None)
            except (OSError, ValueError, KeyError, TypeError):
                connection.close()
        return found

    def _close(self) -> None:
        for each in self._open:
            with suppress(OSError):  # it is closed
                each.shutdown(socket.SHUT_RDWR)  # also wakes who waits for it, as close does not
            each.close()


class Member:
    """A worker at the meeting.

    Attributes:
        addresses: of all workers, by rank.
    """

    def __init__(self, told: Mapping[str, Any], rank: int, address: str) -> None:
        """Raises:
        NotMet: the others did not come.
        """
        try:
            self._socket = socket.create_connection((told["host"], told["port"]), timeout=WAITING_SECONDS)
        except OSError as error:
            raise NotMet(f"the run's process cannot be reached: {error}") from error
        self._stream = self._socket.makefile("rw")
        self.say({"rank": rank, "address": address, "word": told["word"]})
        self.addresses: list[str] = self.hear()

    def say(self, word: Any) -> None:
        """To the others; from the first of the workers."""
        try:
            _say(self._stream, word)
        except OSError as error:
            raise NotMet(f"the run's process is gone: {error}") from error

    def hear(self) -> Any:
        """What the first of the workers says next.

        Raises:
            NotMet: it has left, or says nothing.
        """
        try:
            line = self._stream.readline()
        except OSError as error:
            raise NotMet(f"the first of the workers says nothing: {error}") from error
        if not line.endswith("\n"):
            raise NotMet("one of the workers is gone")
        return json.loads(line)

    def close(self) -> None:
        with suppress(OSError):
            self._stream.close()
        self._socket.close()


@contextmanager
def joined(told: Mapping[str, Any], rank: int, host: str) -> Iterator[tuple[Member, int]]:
    """A worker's place at the meeting, and a port of its own.

    The port is held until all have met, and free from then on: the library binds it next. Somebody else may
    be quicker in that moment; then the library says so, and the workers are tried again.
    """
    with socket.socket() as held:
        held.bind(("", 0))
        port: int = held.getsockname()[1]
        member = Member(told, rank, f"{host}:{port}")
    try:
        yield member, port
    finally:
        member.close()


def _say(stream: TextIO, word: Any) -> None:
    stream.write(json.dumps(word) + "\n")
    stream.flush()
