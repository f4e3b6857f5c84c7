"""`switchyard serve`: one frontend and one group of workers, joined by sockets and a secret.

Owns the flags, the two commands, and the folder of the sockets and the secret. Knows neither what
they serve nor how: flags pass through. `supervisor.py` runs the two commands.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from frontend.cli.supervisor import supervise
from frontend.config import add_serving_flags
from frontend.model_folder import resolve_model, served_name

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
