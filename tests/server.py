"""The server that tests start: a benchmark's, its processes by name, and what they have said; and
a frontend apart from its ranks."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from benchmarks.server import Process
from demo import CHECKPOINT
from tests.processes import ENVIRONMENT, command, descendants, open_files

READY_SECONDS = 150.0
PATIENT = ("--step-timeout", "60")
"""Tests may share the machine: no step is overdue, unless a test's own flags come to say so."""


class Server(Process):
    """`switchyard serve` with these flags, ready inside its context.

    Args:
        folder: where its output goes.
        flags: of `switchyard serve`, and the model if it is not the demo.
        path: folders before all others in its processes' search path.
        environment: of its processes, beside this one's.
        stderr: a descriptor that its stderr goes to; by default its output's.
    """

    def __init__(
        self,
        folder: Path,
        *flags: str,
        path: tuple[Path, ...] = (),
        environment: Mapping[str, str] | None = None,
        stderr: int = subprocess.STDOUT,
    ) -> None:
        search = ":".join(map(str, (*path, ENVIRONMENT["PYTHONPATH"])))
        super().__init__(
            *PATIENT,
            *flags,
            output=folder / f"server-{time.monotonic_ns()}.log",
            stderr=stderr,
            environment=ENVIRONMENT | {"PYTHONPATH": search} | dict(environment or {}),
        )

    def __enter__(self) -> Server:
        super().__enter__()
        try:
            self.wait_until_ready(READY_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def frontend(self) -> int:
        """The frontend's process."""
        [pid] = [pid for pid in descendants(self.pid) if b"-m\0frontend\0" in command(pid)]
        return pid

    def launcher(self) -> int:
        """The workers' launcher."""
        children = descendants(self.pid, depth=1)
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


@contextlib.asynccontextmanager
async def lone_frontend(listen: str) -> AsyncIterator[tuple[subprocess.Popen[str], str]]:
    """A frontend without a supervisor, for ranks that run; and its address."""
    flags = ["--model", str(CHECKPOINT), "--workers", listen, "--port", "0", "--no-http"]
    command = [sys.executable, "-m", "frontend", *flags, *PATIENT]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = await asyncio.to_thread(process.stdout.readline)
            yield process, line.split(" on ", 1)[1].split(" ", 1)[0]
        finally:
            process.kill()
