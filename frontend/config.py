"""What the frontend is told at its start: flags, checked once.

Owns addresses, limits and time-outs. Knows nothing of the model: its facts come from the model
folder (`frontend.model_folder`) and from the workers' Describe answer.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 50051


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrontendConfig:
    """Settings of one frontend process.

    Attributes:
        model: the model's folder: config.json, tokenizer, generation_config.json.
        served_name: name clients ask for in ``model``.
        host, port: where to listen; port 0 takes a free one.
        workers: base address of each machine's ranks, see `frontend.worker_group`.
        max_queued_requests: requests that may wait before new ones are refused.
        prefix_cache: keep KV blocks of finished requests for prompts that begin the same way.
        startup_timeout: seconds the workers may take to load and warm up.
        drain_timeout: seconds in-flight requests get after SIGTERM before they are aborted.
    """

    model: Path
    served_name: str
    workers: tuple[str, ...]
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    max_queued_requests: int = 1024
    prefix_cache: bool = True
    startup_timeout: float = 900.0
    drain_timeout: float = 60.0

    def __post_init__(self) -> None:
        if not self.workers or not all(self.workers):
            raise ValueError("no worker address; pass --workers HOST:PORT[,HOST:PORT]")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port {self.port} is not in 0..65535; pass another --port")
        if not self.served_name:
            raise ValueError("the served model name is empty; pass --served-model-name NAME")
        if self.max_queued_requests < 1:
            raise ValueError(
                f"--max-queued-requests {self.max_queued_requests} is below 1; pass at least 1"
            )
        for flag, seconds in (
            ("--startup-timeout", self.startup_timeout),
            ("--drain-timeout", self.drain_timeout),
        ):
            if not 0 <= seconds < float("inf"):
                raise ValueError(f"{flag} {seconds} is not a time; pass seconds, 0 or more")


def join_address(host: str, port: int) -> str:
    """HOST:PORT as gRPC takes it, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def add_serving_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `FrontendConfig` that a person sets, shared with `switchyard serve`."""
    parser.add_argument("--served-model-name", metavar="NAME", help="default: the folder's name")
    parser.add_argument("--host", default=DEFAULT_HOST, help="default: %(default)s")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="default: %(default)s")
    parser.add_argument(
        "--max-queued-requests", type=int, default=1024, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--no-prefix-cache", action="store_true", help="keep no KV of finished requests"
    )
    for flag, default, what in (
        ("--startup-timeout", 900.0, "the workers may take to be ready"),
        ("--drain-timeout", 60.0, "in-flight requests get after SIGTERM"),
    ):
        parser.add_argument(
            flag,
            type=float,
            default=default,
            metavar="SECONDS",
            help=f"{what}; default: %(default)s",
        )
