"""`switchyard serve`: one frontend and one group of workers that live and die together.

Owns the two child processes, their sockets' folder and the signals between them. Knows neither
what they serve nor how: flags pass through.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from frontend.config import add_serving_flags
from frontend.model_folder import resolve_model, served_name

# Between SIGTERM and SIGKILL for a child whose sibling is gone.
KILL_AFTER_SECONDS = 10.0
# Pass-through flags of `python -m workers`: name, aliases, and what they say.
WORKER_FLAGS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "--tp": (("--tensor-parallel-size",), "ranks that share one copy of the attention weights"),
    "--dp": (("--data-parallel-size",), "attention replicas"),
    "--ep": (("--expert-parallel-size",), "ranks the experts are spread over"),
    "--moe-ep-backend": ((), "expert dispatcher"),
    "--moe-runner": ((), "expert kernels"),
    "--device": ((), "auto, cpu or cuda"),
    "--dtype": ((), "auto, bfloat16 or float32"),
    "--load-format": ((), "auto, safetensors or dummy"),
    "--max-batch-size": ((), "sequences that run at once on a replica"),
    "--max-model-len": ((), "longest prompt plus output"),
    "--max-num-batched-tokens": ((), "tokens of one step of a replica"),
    "--block-size": ((), "tokens in a KV block"),
    "--num-blocks": ((), "KV blocks of a replica; default: what fits"),
    "--memory-fraction": ((), "share of the device's memory to use"),
    "--seed": ((), "seed of dummy weights"),
    "--cuda-graphs": ((), "on or off"),
}
# Flags of `python -m frontend` that pass through as they are.
FRONTEND_FLAGS = (
    "--host", "--port", "--http-port", "--max-queued-requests", "--max-queued-tokens",
    "--max-requests-per-key", "--max-restarts", "--restart-window", "--startup-timeout",
    "--drain-timeout", "--step-timeout", "--api-key-file", "--tls-cert", "--tls-key",
    "--tls-client-ca", "--otlp-endpoint",
)  # fmt: skip
FRONTEND_SWITCHES = ("--no-prefix-cache", "--insecure", "--no-request-log")

_PR_SET_PDEATHSIG = 1
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
_LIBC = ctypes.CDLL(None, use_errno=True)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of ``switchyard serve``."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="folder or Hub id; default: the demo model"
    )
    add_serving_flags(parser)
    group = parser.add_argument_group("workers", "defaults are those of `python -m workers`")
    for flag, (aliases, what) in WORKER_FLAGS.items():
        group.add_argument(flag, *aliases, metavar="VALUE", help=what)


def serve(flags: argparse.Namespace) -> int:
    """Run both halves until one ends; the exit code of the one that did first."""
    try:
        model = resolve_model(flags.model)
        num_ranks = _count("--tp", flags.tp) * _count("--dp", flags.dp)
    except ValueError as error:
        sys.stderr.write(f"switchyard: {error}\n")
        return 2
    name = flags.served_model_name or served_name(flags.model)
    with tempfile.TemporaryDirectory(prefix="switchyard-") as folder:
        listen = f"unix:{folder}/rank-{{rank}}.sock"
        return supervise(
            frontend=frontend_command(flags, model, name, listen),
            workers=workers_command(flags, model, num_ranks, listen),
        )


def _count(flag: str, value: str | None) -> int:
    if value is None:
        return 1
    if not value.isdigit() or int(value) < 1:
        raise ValueError(f"{flag} {value} is no number of ranks; pass 1 or more")
    return int(value)


def frontend_command(flags: argparse.Namespace, model: Path, name: str, listen: str) -> list[str]:
    """Command line of the frontend."""
    command = [sys.executable, "-m", "frontend", "--model", str(model), "--workers", listen]
    command += ["--served-model-name", name]
    for flag in FRONTEND_FLAGS:
        value = _value(flags, flag)
        if value is not None:
            command += [flag, str(value)]
    return command + [switch for switch in FRONTEND_SWITCHES if _value(flags, switch)]


def workers_command(
    flags: argparse.Namespace, model: Path, num_ranks: int, listen: str
) -> list[str]:
    """Command line of the workers' launcher, with the flags that were given."""
    command = [sys.executable, "-m", "workers", "--model", str(model)]
    command += ["--nproc", str(num_ranks), "--listen", listen]
    for flag in WORKER_FLAGS:
        value = _value(flags, flag)
        if value is not None:
            command += [flag, str(value)]
    return command


def _value(flags: argparse.Namespace, flag: str) -> object:
    return getattr(flags, flag.removeprefix("--").replace("-", "_"))


def supervise(*, frontend: Sequence[str], workers: Sequence[str]) -> int:
    """Run two commands as one: what ends first ends the other.

    SIGTERM and SIGINT go to the frontend, which drains and ends; the workers go after it. Both die
    with this process, also when it is killed.

    Returns:
        The exit code of the one that ended first, 128 + the signal for one that was killed.
    """
    with _blocked_signals():
        front = _start(frontend, dies_by=signal.SIGKILL)
        group = _start(workers, dies_by=signal.SIGTERM)
        try:
            while front.poll() is None and group.poll() is None:
                number = signal.sigwait(_SIGNALS)
                if number != signal.SIGCHLD:
                    front.send_signal(signal.SIGTERM)
            first = front if front.returncode is not None else group
        finally:
            _end(front, group)
    return first.returncode if first.returncode >= 0 else 128 - first.returncode


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Signals wait to be asked for, so that none comes between a check and a wait."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        while signal.sigtimedwait(_SIGNALS, 0) is not None:
            pass  # asked for what has been done
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(command: Sequence[str], *, dies_by: signal.Signals) -> subprocess.Popen[bytes]:
    """Start a child that dies with this process, in a session of its own: Ctrl-C is for us."""
    parent = os.getpid()

    def in_child() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(dies_by), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # it died before the request stood

    # gRPC's core writes lines of its own unless told not to; what matters comes as an error.
    environment = {"GRPC_VERBOSITY": "NONE"} | os.environ
    return subprocess.Popen(command, start_new_session=True, preexec_fn=in_child, env=environment)


def _end(*children: subprocess.Popen[bytes]) -> None:
    """End children and what they started: ask, wait, kill."""
    for child in children:
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + KILL_AFTER_SECONDS
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
