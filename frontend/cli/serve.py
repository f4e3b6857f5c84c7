"""`switchyard serve`: one frontend and one group of workers that live and die together.

Owns the two child processes, the folder of their sockets and of the secret they share, and the
signals between them. Knows neither what they serve nor how: flags pass through.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from frontend.config import add_serving_flags
from frontend.model_folder import resolve_model, served_name

# Between SIGTERM and SIGKILL for a child whose sibling is gone.
KILL_AFTER_SECONDS = 10.0
# What a frontend whose workers ended for good gets to tell its clients, before SIGTERM.
LAST_WORDS_SECONDS = 5.0
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

_LONG_SECONDS = 3600.0  # sigtimedwait knows no infinity
_PR_SET_PDEATHSIG = 1
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
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
        link = ["--link-secret-file", str(_make_secret(Path(folder)))]
        front = [*frontend_command(flags, model, name, listen), *link]
        return supervise(
            frontend=lambda launcher: [*front, "--launcher", str(launcher)],
            workers=[*workers_command(flags, model, num_ranks, listen), *link],
        )


def _make_secret(folder: Path) -> Path:
    """A file that only this user can read."""
    path = folder / "link-secret"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
    return path


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


def supervise(*, frontend: Callable[[int], Sequence[str]], workers: Sequence[str]) -> int:
    """Run two commands as one: what ends first ends the other.

    SIGTERM and SIGINT go to the frontend, which drains and ends; the workers go after it. A
    frontend without workers gets a while to end by itself. Both die with this process, also when
    it is killed.

    Args:
        frontend: its command, given the process id of the workers' launcher.
        workers: the launcher's.

    Returns:
        The exit code of the one that ended first, 128 + the signal for one that was killed.
    """
    with _blocked_signals():
        group = _start(workers, dies_by=signal.SIGTERM)
        front = None
        try:
            front = _start(frontend(group.pid), dies_by=signal.SIGKILL)
            _wait(front, group)
            first = front if front.returncode is not None else group
            if first is group:
                _wait(front, seconds=LAST_WORDS_SECONDS)
        finally:
            _end(*(child for child in (front, group) if child is not None))
    if first.returncode >= 0:
        return first.returncode
    name = "frontend" if first is front else "workers' launcher"
    by = signal.Signals(-first.returncode).name
    sys.stderr.write(f"switchyard: the {name} was killed by {by}\n")
    return 128 - first.returncode


def _wait(
    front: subprocess.Popen[bytes],
    *others: subprocess.Popen[bytes],
    seconds: float = float("inf"),
) -> None:
    """Until a child has ended or time is up; a signal for us goes to the frontend."""
    children = (front, *others)
    deadline = time.monotonic() + seconds
    while all(child.poll() is None for child in children):
        left = min(deadline - time.monotonic(), _LONG_SECONDS)
        if left <= 0:
            return
        arrived = signal.sigtimedwait(_SIGNALS, left)
        if arrived is not None and arrived.si_signo != signal.SIGCHLD:
            front.send_signal(_passed_on(arrived.si_signo))


def _passed_on(number: int) -> signal.Signals:
    """What the frontend is told: SIGHUP reloads its files, unless a closed terminal sent it."""
    reload = number == signal.SIGHUP and not sys.stderr.isatty()
    return signal.SIGHUP if reload else signal.SIGTERM


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
