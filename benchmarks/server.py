"""The server a benchmark measures: one that runs already, or one started for it.

Owns the child process and its port. The benchmark talks to it as any client does.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import grpc

from switchyard.client import Client, ServerError
from switchyard.v1 import inference_pb2 as pb

_POLL_SECONDS = 0.05
_STOP_SECONDS = 30.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that is ready.

    Attributes:
        startup_seconds: from starting the process to ready; None for one that ran already.
    """

    address: str
    model: pb.GetModelInfoResponse
    info: pb.GetServerInfoResponse
    startup_seconds: float | None

    def describe(self) -> str:
        """One line for a report's title."""
        info = self.info
        types = f"{info.dtype} {info.quantization}".strip()
        if info.kv_cache_dtype not in ("", info.dtype):  # "": a server of an older release
            types += f", KV cache {info.kv_cache_dtype}"
        return (
            f"{self.model.model}, {info.world_size} × {info.device}, {types}, "
            f"TP={info.tensor_parallel_size} DP={info.data_parallel_size} "
            f"EP={info.expert_parallel_size} {info.moe_ep_backend}"
        )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--address, --serve-args and the model."""
    parser.add_argument("--address", help="a running server; without it one is started")
    parser.add_argument("--api-key", help="of a server that asks for one")
    parser.add_argument("--model", default=None, help="folder or Hub id; default: the demo model")
    parser.add_argument(
        "--startup-timeout", type=float, default=900.0, help="seconds to wait for a started server"
    )
    parser.add_argument(
        "serve_args",
        nargs="*",
        metavar="-- SERVE_FLAG",
        help="flags of `switchyard serve` for a started server, behind --",
    )


@contextlib.contextmanager
def running(flags: argparse.Namespace, extra: Sequence[str] = ()) -> Iterator[Server]:
    """The server at --address, or one started with the flags behind ``--`` and ended afterwards.

    Raises:
        RuntimeError: the server did not become ready.
    """
    if flags.address:
        yield _wait_ready(flags.address, flags.startup_timeout, flags.api_key)
        return
    with started(flags.model, [*flags.serve_args, *extra], flags.startup_timeout) as server:
        yield server


class Process:
    """`switchyard serve` on free ports, ended with its context.

    Args:
        arguments: of `switchyard serve`.
        output: file for what it prints.
        stderr: a descriptor as Popen takes it; this process's own by default.
        environment: of its processes; this one's by default.

    Attributes:
        process: the supervisor.
        address: of the ready server.
        http_address: of its HTTP port; empty with --no-http.
    """

    def __init__(
        self,
        *arguments: str,
        output: Path,
        stderr: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._output = output
        ports = ("--port", "0", "--http-port", "0")
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "frontend.cli", "serve", *ports, *arguments],
                env=_environment() if environment is None else environment,
                stdout=file,
                stderr=stderr,
            )
        self.address = ""
        self.http_address = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP_SECONDS)
        self.process.kill()
        self.process.wait()

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has printed."""
        return self._output.read_text(errors="replace")

    def wait_until_ready(self, timeout: float) -> None:
        """Wait for the line that says where it serves.

        Raises:
            RuntimeError: it ended before, or took too long.
        """
        deadline = time.monotonic() + timeout
        while not (found := re.search(r"^switchyard: serving \S+ on (\S+) .*\n", self.log, re.M)):
            status = self.process.poll()
            if status is not None:
                raise RuntimeError(f"the server ended with status {status} before it was up")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server was not ready within {timeout:.0f} s")
            time.sleep(_POLL_SECONDS)
        self.address = found.group(1)
        http = re.search(r"^switchyard: HTTP on (\S+)$", self.log, re.M)
        self.http_address = http.group(1) if http else ""


@contextlib.contextmanager
def started(
    model: str | None, serve_flags: Sequence[str], startup_timeout: float = 900.0
) -> Iterator[Server]:
    """``switchyard serve MODEL FLAGS…`` on free ports, ended afterwards.

    Raises:
        RuntimeError: the server did not become ready.
    """
    arguments = [*([model] if model else []), "--no-request-log", *serve_flags]
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        Process(*arguments, output=Path(folder) / "output") as process,
    ):
        process.wait_until_ready(startup_timeout)
        server = _wait_ready(process.address, startup_timeout)
        yield dataclasses.replace(server, startup_seconds=time.monotonic() - began)


def _environment() -> dict[str, str]:
    """This process's environment; a checkout that is not installed finds its packages too."""
    paths = [path for path in sys.path if path and os.path.isdir(path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _wait_ready(address: str, timeout: float, api_key: str | None = None) -> Server:
    deadline = time.monotonic() + timeout
    while True:
        with Client(address, api_key=api_key) as client:
            try:
                model = client.model_info(timeout=2.0)
                info = client.stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=2.0)
            except (ServerError, grpc.RpcError) as error:
                problem: Exception = error
            else:
                return Server(address=address, model=model, info=info, startup_seconds=None)
        if time.monotonic() > deadline:
            raise RuntimeError(f"{address} was not ready within {timeout:.0f} s: {problem}")
        time.sleep(_POLL_SECONDS)
