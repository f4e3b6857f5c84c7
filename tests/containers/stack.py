"""The services of compose.yaml, up and down, for the tests beside this file."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import pytest

from frontend.probe import Verdict, probe
from switchyard.channel import Tls
from switchyard.client import Client

ROOT = Path(__file__).parents[2]
READY_SECONDS = 120.0
QUESTION, ANSWER = "What is 17 + 25?", "42"


class Stack:
    """A stack with the CPU profile, under a project name of its own; ``variables`` as in .env.

    Attributes:
        address: of gRPC, as published.
        http_address: of HTTP, as published.
        tls: None for a stack without encryption.
        api_key: what clients show; None: nothing.
    """

    def __init__(
        self,
        name: str,
        variables: Mapping[str, str],
        tls: Tls | None = None,
        api_key: str | None = None,
    ) -> None:
        self.address, self.http_address = (
            f"127.0.0.1:{variables[each]}" for each in ("PORT", "HTTP_PORT")
        )
        self.tls, self.api_key = tls, api_key
        self._command = shlex.split(os.environ.get("COMPOSE", "docker compose"))
        self._env = {
            **os.environ,
            "COMPOSE_PROFILES": "cpu",
            "COMPOSE_PROJECT_NAME": f"switchyard-{name}",
            **variables,
        }

    @classmethod
    @contextmanager
    def up(
        cls,
        name: str,
        variables: Mapping[str, str],
        tls: Tls | None = None,
        api_key: str | None = None,
    ) -> Iterator[Self]:
        """A stack that is ready, and gone afterwards: containers, networks and the secret."""
        stack = cls(name, variables, tls, api_key)
        if shutil.which(stack._command[0]) is None:
            pytest.skip(f"{stack._command[0]} is not installed; name another in COMPOSE")
        try:
            stack.run("up", "-d", "--no-build")
            stack.wait(Verdict.HEALTHY)
            yield stack
        finally:
            stack.run("stop", "frontend")
            stack.run("down", "--volumes")
        assert stack.verdict() is Verdict.NO_CONNECTION
        assert not stack.run("ps", "-q").stdout.strip()

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

    def python(self, service: str, code: str, *arguments: str) -> str:
        """What a program prints inside a service's container."""
        done = self.exec(service, "python", "-c", code, *arguments)
        assert done.returncode == 0, f"{service}: {done.stderr}"
        return done.stdout.strip()

    def started_at(self, service: str) -> str:
        """Clock ticks since boot at which a service's container began."""
        return self.exec(service, "cat", "/proc/1/stat").stdout.rpartition(")")[2].split()[19]

    def verdict(self) -> Verdict:
        """The answer of a probe from outside."""
        return probe(self.address, timeout=1.0, tls=self.tls)[0]

    def wait(self, verdict: Verdict) -> float:
        """Probe from outside until that is the answer; seconds it took."""
        begin = time.monotonic()
        while (seen := self.verdict()) is not verdict:
            assert time.monotonic() < begin + READY_SECONDS, f"{seen} after {READY_SECONDS} s"
            time.sleep(0.05)
        return time.monotonic() - begin

    def client(self) -> Client:
        """A client from outside."""
        return Client(self.address, tls=self.tls, api_key=self.api_key)

    def answer(self) -> str:
        """What the model says to the question, greedily."""
        with self.client() as client:
            messages = [{"role": "user", "content": QUESTION}]
            with client.chat(messages, temperature=0.0) as stream:
                return "".join(delta.text for delta in stream).strip()


def free_ports() -> dict[str, str]:
    """Variables of compose.yaml for ports that nobody has."""
    names = ("PORT", "HTTP_PORT")
    with ExitStack() as taken:
        sockets = [taken.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        ports = [str(each.getsockname()[1]) for each in sockets]
    return dict(zip(names, ports, strict=True))
