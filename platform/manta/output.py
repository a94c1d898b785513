"""Keeps secrets out of what a process prints: its own output, that of its threads, and that of every process
that it starts.

A worker is split in two: the parent goes on as the worker, its standard output and error a pipe; the child
reads the pipe and writes on what is fit to be written. The child outlives the worker by the last words in the
pipe, also when the worker is killed. Where there are threads already, a further thread does it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

from manta.secrets import redactor

PATIENCE_SECONDS = 5.0  # for processes that the worker leaves behind and that hold its output open
CHUNK = 1 << 16

_child: int | None = None  # the process that filters; 0 when a thread does


def guard() -> None:
    """From now on, what this process has read of secrets does not get out. Does nothing when that is nothing.

    Called once, before there are threads; secrets that are read later than this are not known to it.
    """
    global _child
    if not redactor or _child is not None:
        return
    _quiet_logs()
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    _child = os.fork()
    if _child == 0:
        _filter(read)
    os.dup2(write, 1)
    os.dup2(write, 2)
    os.close(read)
    os.close(write)


def finish() -> None:
    """Called at the end of the process: returns when all that was printed has been written."""
    sys.stdout.flush()
    sys.stderr.flush()
    if not _child:
        return
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    until = time.monotonic() + PATIENCE_SECONDS
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(_child, os.WNOHANG) == (0, 0) and time.monotonic() < until:
            time.sleep(0.005)


def guard_thread() -> None:
    """:func:`guard` for a process that has threads already, such as a Ray worker: a thread filters."""
    global _child
    if not redactor or _child is not None:
        return
    _child = 0
    _quiet_logs()
    read, write = os.pipe()
    out = os.dup(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(write, 1)
    os.dup2(write, 2)
    os.close(write)
    threading.Thread(target=_copy, args=(read, out), name="output", daemon=True).start()


def _quiet_logs() -> None:
    """Records of `logging` hold no secret either: Ray writes them into files of its own, and with them, in
    the workers of Ray Train, whatever is printed."""
    make = logging.getLogRecordFactory()

    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        with contextlib.suppress(TypeError, ValueError):  # a record that is wrong is told as that elsewhere
            said = record.getMessage()
            clean = redactor.text(said)
            if clean != said:
                record.msg, record.args = clean, ()
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = redactor.text("".join(traceback.format_exception(record.exc_info[1]))).rstrip()
        return record

    logging.setLogRecordFactory(made)


def _filter(read: int) -> None:
    """The child: never returns."""
    try:
        # Whoever stops the worker signals its children too; this one ends when there is no more to come.
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        os.dup2(read, 0)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # connections of the worker's, the pipe's other end
        _copy(0, 1)
    finally:
        os._exit(0)


def _copy(read: int, out: int) -> None:
    for piece in redactor.stream(_pieces(read)):
        rest = memoryview(piece)
        with contextlib.suppress(OSError):  # nobody reads any more: the worker must not block on it
            while rest:
                rest = rest[os.write(out, rest) :]


def _pieces(read: int) -> Iterator[bytes]:
    while piece := os.read(read, CHUNK):
        yield piece
