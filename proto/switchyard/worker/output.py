"""Output that neither blocks nor fails: a line that nobody takes is lost, the process is not.

Whatever can block (a pipe, a terminal, a socket) is written by a copier, a process that does
nothing else. All others write into its pipe, which never blocks, libraries in C++ and children
included. Knows nothing of what is said.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NoReturn, TextIO, TypeAlias

from switchyard.worker.prctl import die_with, name_process

_STDOUT, _STDERR = 1, 2
_PIPE_BYTES = 1 << 20  # what waits for a slow reader; the kernel may allow less
_LAST_WORDS_SECONDS = 1.0
_POLL_SECONDS = 0.002

_Bytes: TypeAlias = "bytes | bytearray | memoryview"


@contextlib.contextmanager
def lossy_output() -> Iterator[None]:
    """Have stdout and stderr of this process, and of all it starts, lose what nobody takes.

    Call it while this process has one thread. A descriptor that does not block is left as it is:
    those of a parent that did the same, and files. Leaving waits a second for what is on its way.
    """
    _open_closed()
    streams, terminals = (sys.stdout, sys.stderr), [os.isatty(_STDOUT), os.isatty(_STDERR)]
    copier = Copier([each for each in (_STDOUT, _STDERR) if _may_block(each)])
    sys.stdout = _stream(_STDOUT, terminals[0])
    sys.stderr = _stream(_STDERR, terminals[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        copier.end()


class Copier:
    """A process that writes what this one and its children say to where it was meant to go.

    Args:
        descriptors: replaced by pipes to the copier until `end`.
    """

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._before = {each: os.dup(each) for each in descriptors}
        self._pid = 0
        if not descriptors:
            return
        files = _by_file(descriptors)
        pipes = [_lossy_pipe() for _ in files]
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            for _, writing in pipes:
                os.close(writing)
            _be_a_copier(
                parent, [(pipe[0], file[0]) for pipe, file in zip(pipes, files, strict=True)]
            )
        for (reading, writing), file in zip(pipes, files, strict=True):
            for each in file:
                os.dup2(writing, each)
            os.close(reading)
            os.close(writing)

    def end(self) -> None:
        """Write to the descriptors directly again, after what the copier has still to write."""
        for descriptor, before in self._before.items():
            os.dup2(before, descriptor)
            os.close(before)
        deadline = time.monotonic() + _LAST_WORDS_SECONDS
        with contextlib.suppress(ChildProcessError):
            while self._pid and os.waitpid(self._pid, os.WNOHANG) == (0, 0):
                if time.monotonic() > deadline:
                    return
                time.sleep(_POLL_SECONDS)


class _LossyFile(io.RawIOBase):
    """A descriptor to which every write succeeds."""

    def __init__(self, descriptor: int, is_terminal: bool) -> None:
        self._descriptor = descriptor
        self._is_terminal = is_terminal

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return self._is_terminal

    def writable(self) -> bool:
        return True

    def write(self, data: _Bytes) -> int:  # type: ignore[override]
        """Write what can be written now, and drop the rest."""
        with contextlib.suppress(OSError):
            _write_all(self._descriptor, data)
        return len(data)


def _stream(descriptor: int, is_terminal: bool) -> TextIO:
    file = _LossyFile(descriptor, is_terminal)
    return io.TextIOWrapper(
        file,  # type: ignore[type-var]  # without a buffer: what is dropped is gone
        encoding="utf-8",
        errors="backslashreplace",
        write_through=True,
    )


def _open_closed() -> None:
    """Give stdout and stderr a file where they were closed: another file would get the number."""
    for descriptor, stream in ((_STDOUT, sys.stdout), (_STDERR, sys.stderr)):
        if stream is None:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            if null != descriptor:
                os.close(null)


def _may_block(descriptor: int) -> bool:
    is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
    return os.get_blocking(descriptor) and not is_file


def _by_file(descriptors: Sequence[int]) -> list[list[int]]:
    """Descriptors of one file together: what goes to it keeps its order."""
    files: list[list[int]] = []
    for each in descriptors:
        if files and os.path.samestat(os.fstat(each), os.fstat(files[-1][0])):
            files[-1].append(each)
        else:
            files.append([each])
    return files


def _lossy_pipe() -> tuple[int, int]:
    """A pipe's two ends, of which the writing one never blocks."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(OSError):
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return reading, writing


def _be_a_copier(parent: int, ways: Sequence[tuple[int, int]]) -> NoReturn:
    """The copier's life: until all writers are gone, or a second longer than its parent."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda *_: signal.alarm(1))
        die_with(parent, signal.SIGUSR1)
        name_process("output")
        threads = [threading.Thread(target=_copy, args=way) for way in ways]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        os._exit(0)


def _copy(source: int, target: int) -> None:
    while data := os.read(source, 1 << 16):
        with contextlib.suppress(OSError):
            _write_all(target, data)


def _write_all(descriptor: int, data: _Bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
