"""Several machines, really: each a network namespace of its own on one bridge.

Needs root and iproute2: `pytest -m netns tests/containers/test_machines.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import CHECKPOINT
from tests.processes import ENVIRONMENT as PLAIN
from tests.processes import ROOT, command, descendants, send, wait_until_gone

pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]

PREFIX = f"sy{os.getpid() % 1000}"
ADDRESSES = {"a": "10.77.0.1", "b": "10.77.0.2", "front": "10.77.0.3"}
MODEL = ["--model", str(CHECKPOINT)]
ENVIRONMENT = PLAIN | {"GLOO_SOCKET_IFNAME": "net0"}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def machines() -> Iterator[None]:
    """Three namespaces, each with an interface net0 on one bridge and nothing else."""
    bridge = f"{PREFIX}br"
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("link", "set", bridge, "up")
        for name, address in ADDRESSES.items():
            space, inside, outside = f"{PREFIX}{name}", f"{PREFIX}{name}0", f"{PREFIX}{name}1"
            ip("netns", "add", space)
            ip("link", "add", inside, "type", "veth", "peer", "name", outside)
            ip("link", "set", outside, "master", bridge, "up")
            ip("link", "set", inside, "netns", space, "name", "net0")
            ip("-n", space, "address", "add", f"{address}/24", "dev", "net0")
            ip("-n", space, "link", "set", "net0", "up")
            ip("-n", space, "link", "set", "lo", "up")
        yield
    finally:
        for name in ADDRESSES:
            subprocess.run(["ip", "netns", "del", f"{PREFIX}{name}"], check=False)
        subprocess.run(["ip", "link", "del", bridge], check=False)


class Machines:
    """Processes on machines, ended together."""

    def __init__(self, folder: Path) -> None:
        self.secret = folder / "secret"
        self.secret.write_text(secrets.token_hex(16))
        self._folder = folder
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """`python -m …` on a machine."""
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", f"{PREFIX}{name}", sys.executable, "-m", *arguments],
                cwd=ROOT,
                env=ENVIRONMENT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._stack.callback(process.wait, 20)
        self._stack.callback(process.terminate)
        return process

    def workers(self, name: str, number: int) -> subprocess.Popen[bytes]:
        """One machine's launcher."""
        return self.start(
            name, "workers", *MODEL, "--device", "cpu", "--tp", "2", "--nnodes", "2",
            "--node-rank", str(number), "--nproc", "1",
            "--rdzv-endpoint", f"{ADDRESSES['a']}:29500",
            "--listen", f"{ADDRESSES[name]}:50061", "--link-secret-file", str(self.secret),
        )  # fmt: skip

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def wait_for(self, name: str, text: str, seconds: float = 60.0) -> None:
        """Until a machine's output says so."""
        deadline = time.monotonic() + seconds
        while text not in self.log(name):
            assert time.monotonic() < deadline, {each: self.log(each) for each in ADDRESSES}
            time.sleep(0.1)


def ask(prompt: str) -> dict[str, object]:
    """One greedy answer, asked on the frontend's machine."""
    answer = subprocess.run(
        ["ip", "netns", "exec", f"{PREFIX}front", sys.executable, "-m", "frontend.cli.main",
         "generate", "--temperature", "0", "--json", prompt],
        cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    parsed: dict[str, object] = json.loads(answer.stdout)
    return parsed


def test_two_machines_serve_and_come_back_when_a_rank_dies(machines: None, tmp_path: Path) -> None:
    with Machines(tmp_path) as spread:
        launchers = {name: spread.workers(name, number) for number, name in enumerate("ab")}
        workers = ",".join(f"{ADDRESSES[name]}:50061" for name in "ab")
        spread.start(
            "front", "frontend", *MODEL, "--workers", workers,
            "--link-secret-file", str(spread.secret),
        )  # fmt: skip
        spread.wait_for("front", "switchyard: serving ")
        assert "2 ranks" in spread.log("front")
        before = ask("What is 17 + 25?")
        for number, victim in enumerate("ba", 1):
            ranks = [
                pid for pid in descendants(launchers[victim].pid) if b"rank" in command(pid)
            ] or descendants(launchers[victim].pid)[-1:]
            send(ranks[-1], signal.SIGKILL)
            wait_until_gone(ranks[-1:], 2)
            deadline = time.monotonic() + 60
            while spread.log("front").count("the workers are back") < number:
                assert time.monotonic() < deadline, {each: spread.log(each) for each in ADDRESSES}
                time.sleep(0.1)
            after = ask("What is 17 + 25?")
            assert after["outputs"] == before["outputs"]
