"""What `switchyard serve` listens on, who may reach it, and that nothing stays behind."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.launched import alive, descendants, ranks_below, wait_for

pytestmark = pytest.mark.processes

FLAGS = ("--device", "cpu", "--tp", "2", "--port", "0", "--max-batch-size", "8")
_LISTENS = "0A"
_UNIX_LISTENS = "01"


class Serving:
    """A supervisor whose frontend is ready, and all processes below it."""

    def __init__(self, folder: Path) -> None:
        log = folder / "log"
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "frontend.cli", "serve", *FLAGS],
                stdout=file,
                stderr=file,
                env=os.environ | {"TMPDIR": str(folder)},
            )
        wait_for(lambda: self._port(log.read_text()) is not None, 60.0)
        self.log = log
        self.port = self._port(log.read_text())
        self.family = [self.process.pid, *descendants(self.process.pid)]

    @staticmethod
    def _port(text: str) -> int | None:
        found = re.search(r"serving \S+ on 127\.0\.0\.1:(\d+) ", text)
        return int(found.group(1)) if found else None

    def frontend(self) -> int:
        (pid,) = (
            pid
            for pid in self.family
            if b"-m\0frontend\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        return pid


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    server = Serving(tmp_path)
    yield server
    server.process.kill()
    server.process.wait()


def sockets_of(pids: list[int]) -> set[str]:
    """Inodes of the sockets these processes hold."""
    found = set()
    for pid in pids:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{name}")
            except FileNotFoundError:
                continue
            if target.startswith("socket:["):
                found.add(target[8:-1])
    return found


def tcp_listeners(inodes: set[str]) -> list[tuple[str, int]]:
    """Address as the kernel writes it, and port."""
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENS and fields[9] in inodes:
                address, port = fields[1].split(":")
                found.append((address, int(port, 16)))
    return found


def unix_listeners(inodes: set[str]) -> list[Path]:
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return [Path(row[7]) for row in rows if row[5] == _UNIX_LISTENS and row[6] in inodes]


# 127.0.0.1, ::ffff:127.0.0.1 and ::1.
LOOPBACK = (
    "0100007F",
    "0000000000000000FFFF00000100007F",
    "00000000000000000000000001000000",
)


def test_nothing_listens_but_what_is_known(serving: Serving, tmp_path: Path) -> None:
    tcp = tcp_listeners(sockets_of(serving.family))
    assert all(address in LOOPBACK for address, _ in tcp), tcp
    frontend = serving.frontend()
    assert [port for _, port in tcp_listeners(sockets_of([frontend]))] == [serving.port]
    ranks = ranks_below(serving.process.pid)
    others = {port for _, port in tcp} - {serving.port}
    # The ranks' meeting point, which they share, and gloo's socket of each process group and rank.
    assert 1 <= len(others) <= 1 + 3 * len(ranks), tcp
    (folder,) = tmp_path.glob("switchyard-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "link-secret").stat().st_mode) == 0o600
    listening = unix_listeners(sockets_of(serving.family))
    assert sorted(listening) == [folder / "rank-0.sock", folder / "rank-1.sock"]


def test_a_killed_supervisor_leaves_nothing_behind(serving: Serving) -> None:
    serving.process.kill()
    wait_for(lambda: not any(map(alive, serving.family)))
