"""The server a benchmark measures: one that runs already, or one started for it.

Owns the child process and its port. The benchmark talks to it as any client does.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import grpc

from switchyard.client import Client, ServerError
from switchyard.v1 import inference_pb2 as pb

_POLL_SECONDS = 0.1
_STOP_SECONDS = 30.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that is ready.

    Attributes:
        startup_seconds: from starting the process to ready; None for one that ran already.
        pid: of the supervisor that was started, or None.
    """

    address: str
    model: pb.GetModelInfoResponse
    info: pb.GetServerInfoResponse
    startup_seconds: float | None
    pid: int | None

    def describe(self) -> str:
        """One line for a report's title."""
        info = self.info
        return (
            f"{self.model.model}, {info.world_size} × {info.device}, {info.dtype}, "
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
        yield _wait_ready(flags.address, None, flags.startup_timeout, None, flags.api_key)
        return
    with started(flags.model, [*flags.serve_args, *extra], flags.startup_timeout) as server:
        yield server


@contextlib.contextmanager
def started(
    model: str | None, serve_flags: Sequence[str], startup_timeout: float = 900.0
) -> Iterator[Server]:
    """``switchyard serve MODEL FLAGS…`` on a free port, ended afterwards.

    Raises:
        RuntimeError: the server did not become ready.
    """
    port = _free_port()
    command = [sys.executable, "-m", "frontend.cli", "serve"]
    command += [model] if model else []
    command += ["--port", str(port), "--no-request-log", *serve_flags]
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=_environment())
    try:
        yield _wait_ready(f"127.0.0.1:{port}", child, startup_timeout, began)
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _environment() -> dict[str, str]:
    """This process's environment; a checkout that is not installed finds its packages too."""
    paths = [path for path in sys.path if path and os.path.isdir(path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_ready(
    address: str,
    child: subprocess.Popen[bytes] | None,
    timeout: float,
    began: float | None,
    api_key: str | None = None,
) -> Server:
    deadline = time.monotonic() + timeout
    while True:
        with Client(address, api_key=api_key) as client:
            try:
                model = client.model_info(timeout=2.0)
                info = client.stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=2.0)
            except (ServerError, grpc.RpcError) as error:
                problem: Exception = error
            else:
                return Server(
                    address=address,
                    model=model,
                    info=info,
                    startup_seconds=None if began is None else time.monotonic() - began,
                    pid=None if child is None else child.pid,
                )
        if child is not None and child.poll() is not None:
            raise RuntimeError(f"the server ended with status {child.returncode} before it was up")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{address} was not ready within {timeout:.0f} s: {problem}")
        time.sleep(_POLL_SECONDS)
