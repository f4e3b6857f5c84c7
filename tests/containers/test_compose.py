"""`docker compose up`, really: `pytest -m podman tests/containers`.

Needs images that are built (`docker compose build`). $COMPOSE names another command than
`docker compose`, such as `podman-compose`; $COMPOSE_FILE may add files of one's own, as both
programs read it. The published port is a free one.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import yaml

from frontend.probe import Verdict, probe
from switchyard.client import Client
from switchyard.v1 import inference_pb2, inference_pb2_grpc

pytestmark = [pytest.mark.podman, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
READY_SECONDS = 120.0
KILL_A_RANK = """
import os, pathlib
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    if (folder / "comm").read_bytes().startswith(b"rank "):
        os.kill(int(folder.name), 9)
        break
else:
    raise SystemExit("no rank runs here")
"""


class Stack:
    """The services of compose.yaml with the CPU profile, under a project name of their own."""

    def __init__(self, command: list[str], port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self._command = command
        self._env: Mapping[str, str] = os.environ | {
            "COMPOSE_PROFILES": "cpu",
            "COMPOSE_PROJECT_NAME": "switchyard-test",
            "PORT": str(port),
        }

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One command of compose."""
        return subprocess.run(
            [*self._command, *arguments],
            cwd=ROOT,
            env=self._env,
            check=check,
            timeout=180,
            capture_output=True,
            text=True,
        )

    def exec(self, service: str, *command: str) -> subprocess.CompletedProcess[str]:
        """A command inside a service's container."""
        return self.run("exec", "-T", service, *command, check=False)

    def wait(self, verdict: Verdict) -> None:
        """Probe from outside until that is the answer."""
        deadline = time.monotonic() + READY_SECONDS
        while (seen := probe(self.address, timeout=1.0))[0] is not verdict:
            assert time.monotonic() < deadline, f"{seen} after {READY_SECONDS} s"
            time.sleep(0.1)

    def answer(self, question: str) -> str:
        """What the model says, greedily."""
        with Client(self.address) as client:
            stream = client.chat([{"role": "user", "content": question}], temperature=0.0)
            with stream:
                return "".join(delta.text for delta in stream)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    command = shlex.split(os.environ.get("COMPOSE", "docker compose"))
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed; name another in COMPOSE")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    stack = Stack(command, port)
    stack.run("up", "-d", "--no-build")
    try:
        stack.wait(Verdict.HEALTHY)
        yield stack
    finally:
        stack.run("down")
    assert probe(stack.address, timeout=1.0)[0] is Verdict.NO_CONNECTION


def test_the_demo_answers_from_outside(stack: Stack) -> None:
    assert stack.answer("What is 17 + 25?").strip() == "42"
    with grpc.insecure_channel(stack.address) as channel:
        server = inference_pb2_grpc.InferenceServiceStub(channel)
        assert server.GetServerInfo(inference_pb2.GetServerInfoRequest()).world_size == 2


def test_health_checks_pass_inside(stack: Stack) -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    for name in ("workers", "frontend"):
        done = stack.exec(name, *services[name]["healthcheck"]["test"][1:])

        assert done.returncode == 0, f"{name}: {done.stderr}"


@pytest.mark.parametrize("name", ["workers", "frontend"])
def test_containers_have_no_rights_to_spare(stack: Stack, name: str) -> None:
    assert stack.exec(name, "id", "-u").stdout.strip() == "10001"
    status = stack.exec(name, "cat", "/proc/self/status").stdout
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0
    assert facts["NoNewPrivs"] == "1"
    for folder in ("/", "/opt/switchyard", "/model"):
        assert "Read-only file system" in stack.exec(name, "touch", f"{folder}/x").stderr
    assert stack.exec(name, "touch", "/tmp/x").returncode == 0


def test_the_frontend_has_no_torch(stack: Stack) -> None:
    has_torch = "import importlib.util; print(importlib.util.find_spec('torch') is not None)"

    assert stack.exec("frontend", "python", "-c", has_torch).stdout.strip() == "False"
    assert stack.exec("workers", "python", "-c", has_torch).stdout.strip() == "True"


def test_both_come_back_after_the_loss_of_a_rank(stack: Stack) -> None:
    assert stack.exec("workers", "python", "-c", KILL_A_RANK).returncode == 0
    deadline = time.monotonic() + READY_SECONDS
    while probe(stack.address, timeout=1.0)[0] is Verdict.HEALTHY:
        assert time.monotonic() < deadline, "the loss of a rank went unnoticed"
        time.sleep(0.05)
    stack.wait(Verdict.HEALTHY)

    assert stack.answer("What is 17 + 25?").strip() == "42"


def test_both_come_back_after_a_restart_of_the_frontend(stack: Stack) -> None:
    stack.run("restart", "frontend")
    stack.wait(Verdict.HEALTHY)

    assert stack.answer("What is 17 + 25?").strip() == "42"


def test_a_request_in_flight_ends_before_a_frontend_that_is_stopped(stack: Stack) -> None:
    with Client(stack.address) as client, ThreadPoolExecutor(1) as pool:
        with client.generate("What is", max_new_tokens=300, ignore_eos=True) as stream:
            deltas = iter(stream)
            num_tokens = len(next(deltas).token_ids)
            stopped = pool.submit(stack.run, "stop", "frontend")
            num_tokens += sum(len(delta.token_ids) for delta in deltas)
        stopped.result()
    assert num_tokens == 300
    assert probe(stack.address, timeout=1.0)[0] is Verdict.NO_CONNECTION

    stack.run("start", "frontend")
    stack.wait(Verdict.HEALTHY)
    assert stack.answer("What is 17 + 25?").strip() == "42"
