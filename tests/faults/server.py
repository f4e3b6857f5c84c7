"""A whole server on the demo model, its processes by name, and what they hold."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.waiting import HANG_SECONDS, wait_until

ROOT = Path(__file__).parents[2]
READY_SECONDS = 150.0


class Server:
    """`switchyard serve` with these flags, on a free port.

    Args:
        folder: where its output goes.
        flags: of `switchyard serve`.
        path: folders before all others in its processes' search path.
        stderr: a descriptor that its stderr goes to; None: its output's.
    """

    def __init__(
        self, folder: Path, *flags: str, path: tuple[Path, ...] = (), stderr: int | None = None
    ) -> None:
        self._log = folder / f"server-{time.monotonic_ns()}.log"
        search = ":".join(map(str, (*path, ROOT, ROOT / "proto", os.environ.get("PYTHONPATH", ""))))
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "frontend.cli", "serve", "--port", "0", *flags],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": search, "GRPC_VERBOSITY": "NONE"},
                stdout=log,
                stderr=subprocess.STDOUT if stderr is None else stderr,
            )
        self.address = ""
        self.http_address = ""

    def __enter__(self) -> Server:
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()
        self.process.wait()

    @property
    def log(self) -> str:
        """What its processes have said."""
        return self._log.read_text(errors="replace")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            found = re.search(r"switchyard: serving \S+ on (\S+) ", self.log)
            if found:
                self.address = found.group(1)
                http = re.search(r"switchyard: HTTP on (\S+)", self.log)
                self.http_address = http.group(1) if http else ""
                return
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def frontend(self) -> int:
        """The frontend's process."""
        [pid] = [pid for pid in descendants(self.process.pid) if b"-m\0frontend\0" in command(pid)]
        return pid

    def launcher(self) -> int:
        """The workers' launcher."""
        children = descendants(self.process.pid, depth=1)
        [pid] = [pid for pid in children if b"-m\0workers\0" in command(pid)]
        return pid

    def ranks(self) -> dict[int, int]:
        """Processes of the ranks that listen, by rank."""
        inodes = {}
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
            fields = line.split()
            found = re.search(r"/rank-(\d+)\.sock$", fields[-1])
            if found and fields[5] == "01":
                inodes[f"socket:[{fields[6]}]"] = int(found.group(1))
        ranks = {}
        for pid in descendants(self.launcher()):
            for inode in open_files(pid):
                if inode in inodes:
                    ranks[inodes[inode]] = pid
        return ranks


def command(pid: int) -> bytes:
    """A process' command line; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def open_files(pid: int) -> Iterator[str]:
    """What a process' descriptors are of."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                yield os.readlink(f"/proc/{pid}/fd/{name}")


def descendants(pid: int, depth: int = 10) -> list[int]:
    """Processes below one, nearest first."""
    found: list[int] = []
    layer = [pid]
    for _ in range(depth):
        layer = [child for parent in layer for child in _children(parent)]
        found += layer
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                text = Path(f"/proc/{pid}/task/{task}/children").read_text()
                children += [int(word) for word in text.split()]
    return children


def is_alive(pid: int) -> bool:
    """Whether a process runs, a zombie not counted."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_until_gone(pids: list[int], seconds: float = HANG_SECONDS) -> float:
    """Seconds until none of the processes runs."""
    begun = time.monotonic()
    try:
        wait_until(lambda: not any(map(is_alive, pids)), seconds)
    except AssertionError:
        left = [(pid, command(pid)) for pid in pids if is_alive(pid)]
        raise AssertionError(f"{left} still run after {seconds} s") from None
    return time.monotonic() - begun


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
