"""What `switchyard serve` listens on, who may reach it, and that nothing stays behind."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import descendants, open_files, ranks_below, wait_until_gone
from tests.server import Server

pytestmark = pytest.mark.processes

FLAGS = ("--device", "cpu", "--tp", "2", "--max-batch-size", "8")
_LISTENS = "0A"
_UNIX_LISTENS = "01"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, *FLAGS, environment={"TMPDIR": str(tmp_path)}) as running:
        yield running


def family(server: Server) -> list[int]:
    """The supervisor and all processes below it."""
    return [server.pid, *descendants(server.pid)]


def sockets_of(pids: list[int]) -> set[str]:
    """Inodes of the sockets these processes hold."""
    files = {file for pid in pids for file in open_files(pid)}
    return {file[8:-1] for file in files if file.startswith("socket:[")}


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


def test_nothing_listens_but_what_is_known(server: Server, tmp_path: Path) -> None:
    known = {int(each.rpartition(":")[2]) for each in (server.address, server.http_address)}
    tcp = tcp_listeners(sockets_of(family(server)))
    assert all(address in LOOPBACK for address, _ in tcp), tcp
    frontend = server.frontend()
    assert {port for _, port in tcp_listeners(sockets_of([frontend]))} == known
    ranks = ranks_below(server.pid)
    others = {port for _, port in tcp} - known
    # The ranks' meeting point, which they share, and gloo's socket of each process group and rank.
    assert 1 <= len(others) <= 1 + 3 * len(ranks), tcp
    (folder,) = tmp_path.glob("switchyard-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "link-secret").stat().st_mode) == 0o600
    listening = unix_listeners(sockets_of(family(server)))
    assert sorted(listening) == [folder / "rank-0.sock", folder / "rank-1.sock"]


def test_a_killed_supervisor_leaves_nothing_behind(server: Server) -> None:
    processes = family(server)
    server.process.kill()
    server.process.wait()
    wait_until_gone(processes)
