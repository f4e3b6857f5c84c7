"""`switchyard serve`: one frontend and one group of workers, joined by sockets and a secret.

Owns the two command lines and the secret. Flags pass through: their tables are those of both
halves. `runtime_folder.py` makes the folder of sockets and secret, `supervisor.py` runs the two.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from pathlib import Path

from frontend.cli.runtime_folder import runtime_folder
from frontend.cli.supervisor import supervise
from frontend.config import FrontendConfig
from frontend.model_folder import read_sampling_defaults, resolve_model, served_name
from switchyard.flags import add_shared_flags, read, words
from switchyard.worker.limits import check_limits
from switchyard.worker.output import lossy_output
from workers.config import ParallelFlags, WorkerConfig

DESCRIPTION = """Serve a model on this machine: gRPC on --port, the OpenAI API on --http-port.
Ctrl-C lets open requests end; a second one does not."""
EPILOG = """Numbers of tokens may be written 32k (32000) or 32K (32768), also with m, M, g, G.
docs/operations.md has more on each flag."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of ``switchyard serve``."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="folder or Hub id; default: the demo model"
    )
    parser.add_argument("--model", dest="named_model", metavar="MODEL", help="the same")
    server = parser.add_argument_group("who may ask, and where")
    model = parser.add_argument_group("the model on its devices")
    seldom = parser.add_argument_group("seldom needed")
    add_shared_flags(server, FrontendConfig, seldom)
    add_shared_flags(model, ParallelFlags, seldom)
    add_shared_flags(model, WorkerConfig, seldom)


def serve(flags: argparse.Namespace) -> int:
    """Run both halves until one ends by itself; returns the exit code of the one that did first."""
    with lossy_output():
        return _serve(flags)


def _serve(flags: argparse.Namespace) -> int:
    try:
        check_limits(ranks=True)
        model = resolve_model(_model_name(flags))
        read_sampling_defaults(model)  # both halves read the file: what is wrong is said once
        with runtime_folder() as folder:
            listen = f"unix:{folder}/rank-{{rank}}.sock"
            link = ["--link-secret-file", str(_make_secret(folder))]
            front = [*frontend_command(flags, model, listen), *link]
            workers = [*workers_command(flags, model, listen), *link]
            return supervise(
                frontend=lambda socket: [*front, "--supervisor", str(socket)], workers=workers
            )
    except ValueError as error:
        sys.stderr.write(f"switchyard: {error}\n")
        return 2


def _model_name(flags: argparse.Namespace) -> str | None:
    """The model as it was named, with or without --model."""
    first, second = flags.model, flags.named_model
    if first is not None and second not in (None, first):
        raise ValueError(f"{first} and --model {second} are two models; pass one")
    name: str | None = second if first is None else first
    return name


def _make_secret(folder: Path) -> Path:
    """A file that only this user can read."""
    path = folder / "link-secret"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
    return path


def frontend_command(flags: argparse.Namespace, model: Path, listen: str) -> list[str]:
    """Command line of the frontend, with the flags that were given.

    Raises:
        ValueError: one line naming a flag whose value is refused.
    """
    command = [sys.executable, "-m", "frontend", "--model", str(model), "--workers", listen]
    # Before what was given, which wins: the folder that a Hub id became has another name.
    command += ["--served-model-name", served_name(_model_name(flags))]
    command += words(FrontendConfig, flags)
    return command + _for_this_terminal(flags, "--request-log-format", "text", "json")


def _for_this_terminal(flags: argparse.Namespace, flag: str, person: str, other: str) -> list[str]:
    """What a flag's ``auto`` means: both halves write to a pipe, whatever this process does."""
    if getattr(flags, flag.strip("-").replace("-", "_"), "auto") != "auto":
        return []
    return [flag, person if sys.stderr.isatty() else other]


def workers_command(flags: argparse.Namespace, model: Path, listen: str) -> list[str]:
    """Command line of the workers' launcher, with the flags that were given.

    Raises:
        ValueError: one line naming a flag whose value is refused.
    """
    layout = read(ParallelFlags, flags)
    command = [sys.executable, "-m", "workers", "--model", str(model)]
    command += ["--nproc", str(layout.tp * layout.dp), "--listen", listen]
    command += words(ParallelFlags, flags) + words(WorkerConfig, flags)
    return command + _for_this_terminal(flags, "--load-progress", "bar", "lines")
