"""`python -m workers` as real processes: whatever ends a rank, the group comes back."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from pathlib import Path

import grpc
import pytest

from demo import CHECKPOINT
from switchyard.worker.link import PROTOCOL
from switchyard.worker.v1 import worker_pb2
from tests.processes import ENVIRONMENT, descendants, wait_until_gone
from tests.waiting import HANG_SECONDS, wait_until
from tests.workers.launched import (
    Launched,
    Stream,
    launched,
    link,
    metadata,
)

pytestmark = pytest.mark.processes

SECRET = "open sesame"
# With a file named in its environment, a rank takes the GIL and keeps it once its pid is in there.
HANG = """
import ctypes, os, pathlib, threading, time
def watch(path):
    while not (path.exists() and path.read_text() == str(os.getpid())):
        time.sleep(0.05)
    ctypes.PyDLL(None).sleep(1000)
def begin():
    threading.Thread(target=watch, args=(pathlib.Path(os.environ["HANG"]),), daemon=True).start()
os.register_at_fork(after_in_child=begin)
"""


def lose(group: Launched, victim: int, number: signal.Signals, secret: str | None = None) -> str:
    """End a rank; the line it leaves, when all others have gone and a new group answers."""
    before = group.ranks()
    said = len(group.lines())
    os.kill(before[victim], number)
    wait_until_gone([*before.values()])
    for rank in before:
        group.describe(rank, secret)
    after = group.ranks()
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    (line,) = group.lines()[said:]
    assert f"rank {victim} (pid {before[victim]})" in line
    return line


def refused(call, *arguments: object, secret: str | None = None) -> grpc.StatusCode:
    """The status of a call that must fail; a stream does with its first answer."""
    with pytest.raises(grpc.RpcError) as caught:
        next(call(*arguments, timeout=5, metadata=metadata(secret)))
    return caught.value.code()


def refuse_strangers(group: Launched) -> None:
    """Every method without the secret, and what is no message with it; nobody is hurt."""
    ranks = group.ranks()
    unauthenticated = grpc.StatusCode.UNAUTHENTICATED
    hello = worker_pb2.Hello(epoch=1, protocol=PROTOCOL)
    with link(group.address(0)) as stub:
        for secret in (None, "", "open", SECRET + "!"):
            assert refused(stub.Describe, worker_pb2.DescribeRequest(), secret=secret) is (
                unauthenticated
            )
            load = worker_pb2.GetExpertLoadRequest()
            assert refused(stub.GetExpertLoad, load, secret=secret) is unauthenticated
            requests = iter([worker_pb2.ExecuteRequest(hello=hello)])
            assert refused(stub.Execute, requests, secret=secret) is unauthenticated
    with grpc.insecure_channel(group.address(0)) as channel:
        service = "/switchyard.worker.v1.WorkerService"
        nonsense = channel.unary_unary(f"{service}/Nonsense")
        assert refused(nonsense, b"") is unauthenticated
        assert refused(nonsense, b"", secret=SECRET) is grpc.StatusCode.UNIMPLEMENTED
        garbage = b"\xff" * 64
        assert refused(channel.unary_unary(f"{service}/Describe"), garbage, secret=SECRET)
        execute = channel.stream_stream(f"{service}/Execute")
        assert refused(execute, iter([garbage]), secret=SECRET)
    assert group.describe(0, SECRET).world_size == 2
    assert group.ranks() == ranks


def test_a_group_comes_back_from_signals_and_from_its_frontend(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    flags = ("--tp", "2", "--link-secret-file", str(tmp_path / "secret"))
    with launched(tmp_path, *flags) as group:
        info = group.describe(1, SECRET)
        assert info.timed_tokens == 64
        assert info.timed_seconds > 0.0
        refuse_strangers(group)
        assert "killed by SIGKILL; starting the group again" in lose(
            group, 1, signal.SIGKILL, SECRET
        )
        assert "stopped by SIGSTOP; starting the group again in 0.2 s" in lose(
            group, 0, signal.SIGSTOP, SECRET
        )
        before = group.ranks()
        with link(group.address(0)) as stub:
            Stream(stub, epoch=7, secret=SECRET).leave()
            wait_until(lambda: len(group.lines()) == 3)
            assert group.lines()[-1] == "the frontend is gone; the ranks wait 60 s for the next"
            Stream(stub, epoch=8, secret=SECRET).goodbye(end_rank=True)
            wait_until_gone([*before.values()])
        wait_until(lambda: len(group.lines()) == 4)
        assert group.lines()[-1] == "the frontend gave the group up; starting the group again"
        group.describe(0, SECRET)
        with link(group.address(0)) as stub:
            with pytest.raises(grpc.RpcError) as stale:
                Stream(stub, epoch=7, secret=SECRET)
            assert stale.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "epoch 7 is refused: the rank has seen epoch 8" in stale.value.details()
            before = group.ranks()
            Stream(stub, epoch=9, secret=SECRET).goodbye(end_rank=False)
            held = Stream(stub, epoch=10, secret=SECRET)
            assert held.answers.is_active()
            assert group.ranks() == before
        group.process.terminate()
        assert group.process.wait(HANG_SECONDS) == 0
        assert not group.ranks()


def test_a_rank_that_keeps_the_gil_ends_itself(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HANG)
    hang = tmp_path / "hang"
    paths = f"{tmp_path / 'site'}:{ENVIRONMENT['PYTHONPATH']}"
    with launched(tmp_path, PYTHONPATH=paths, HANG=str(hang)) as group:
        group.describe()
        before = group.ranks()
        time.sleep(4.0)  # longer than the switch waits: it is for those that stand still
        assert group.ranks() == before
        hang.write_text(str(before[0]))
        wait_until_gone([before[0]])
        group.describe()
        assert group.lines() == [
            f"rank 0 (pid {before[0]}) exited with 1; starting the group again"
        ]
        assert "Timeout" in group.log()
        everybody = descendants(group.process.pid)
        group.process.kill()
        wait_until_gone(everybody)


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def test_two_machines_meet_again(tmp_path: Path) -> None:
    """Two launchers that share nothing but the meeting point: both groups end with one's rank."""
    meet, first, second = free_ports(3)
    flags = ("--tp", "2", "--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{meet}")
    lo = {"GLOO_SOCKET_IFNAME": "lo"}
    with (
        launched(tmp_path, *flags, "--node-rank", "0", listen=f"127.0.0.1:{first}", **lo) as one,
        launched(tmp_path, *flags, "--node-rank", "1", listen=f"127.0.0.1:{second}", **lo) as other,
    ):
        for losing, rank in ((one, 0), (other, 1)):
            assert [one.describe().rank, other.describe().rank] == [0, 1]
            before = one.ranks() | other.ranks()
            os.kill(losing.ranks()[rank], signal.SIGKILL)
            wait_until_gone([*before.values()])
        assert [one.describe().rank, other.describe().rank] == [0, 1]
        assert any("another machine's ranks ended" in line for line in one.lines())
        assert any("another machine's ranks ended" in line for line in other.lines())
        assert not any("failed" in line for line in one.lines() + other.lines())


def test_what_cannot_start_is_one_line_at_first_and_tried_again_later(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with launched(tmp_path, listen=address) as group:
            assert group.process.wait(HANG_SECONDS) == 2
            assert group.lines() == [f"--listen {address}: the address is in use or not ours"]
    model = tmp_path / "model"
    shutil.copytree(CHECKPOINT, model)
    with launched(tmp_path, model=model) as group:
        group.describe()
        (model / "model.safetensors").unlink()
        os.kill(group.ranks()[0], signal.SIGKILL)
        assert group.process.wait(HANG_SECONDS) == 2
        lost, *again, last = group.lines()
    assert lost.endswith("was killed by SIGKILL; starting the group again")
    assert [line.rpartition("starting the group again in ")[2] for line in again] == [
        "0.2 s", "0.4 s", "0.8 s", "1.6 s",
    ]  # fmt: skip
    assert all("model.safetensors" in line for line in again)
    assert last.endswith("5 starts in a row failed")
