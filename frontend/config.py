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
        workers: base address of each machine's ranks, see `frontend.link.worker_group`.
        max_queued_requests: requests that may wait before new ones are refused.
        prefix_cache: keep KV blocks of finished requests for prompts that begin the same way.
        startup_timeout: seconds the workers may take to load and warm up.
        drain_timeout: seconds in-flight requests get after SIGTERM before they are aborted.
        step_timeout: seconds after which a step's answer is missed, if it was not predicted to
            take a third of them.
        max_restarts, restart_window: losses of the workers that are made good within as many
            seconds; one more ends the server.
        launcher: process id of the workers' launcher, whose end is the workers'; None: not known.
        http_port: where the OpenAI-compatible API and the metrics listen; None: nowhere.
        api_key_file: names and keys of those who may ask; None: everybody may.
        tls_cert, tls_key: files of the server's certificate; None: no encryption.
        tls_client_ca: file of who signs the certificates that clients must show; None: none.
        insecure: listen beyond this machine without keys or certificates.
        link_secret_file: what the workers want to hear before they serve; None: nothing.
        max_queued_tokens: prompt tokens that may wait before new requests are refused.
        max_requests_per_key: live requests of one key; 0: any number.
        request_log: write a line of JSON for each request that ended.
        otlp_endpoint: URL that traces are sent to; None: nowhere.
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
    step_timeout: float = 1.0
    max_restarts: int = 10
    restart_window: float = 300.0
    launcher: int | None = None
    http_port: int | None = None
    api_key_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    insecure: bool = False
    link_secret_file: Path | None = None
    max_queued_tokens: int = 4_000_000
    max_requests_per_key: int = 0
    request_log: bool = True
    otlp_endpoint: str | None = None

    def __post_init__(self) -> None:
        if not self.workers or not all(self.workers):
            raise ValueError("no worker address; pass --workers HOST:PORT[,HOST:PORT]")
        for flag, port in (("--port", self.port), ("--http-port", self.http_port or 0)):
            if not 0 <= port <= 65535:
                raise ValueError(f"port {port} is not in 0..65535; pass another {flag}")
        if not self.served_name:
            raise ValueError("the served model name is empty; pass --served-model-name NAME")
        for flag, value, least in (
            ("--max-queued-requests", self.max_queued_requests, 1),
            ("--max-queued-tokens", self.max_queued_tokens, 1),
            ("--max-requests-per-key", self.max_requests_per_key, 0),
            ("--max-restarts", self.max_restarts, 0),
        ):
            if value < least:
                raise ValueError(f"{flag} {value} is below {least}; pass at least {least}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key belong together; pass both or none")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("--tls-client-ca needs --tls-cert and --tls-key")
        for flag, seconds in (
            ("--startup-timeout", self.startup_timeout),
            ("--drain-timeout", self.drain_timeout),
            ("--step-timeout", self.step_timeout),
            ("--restart-window", self.restart_window),
        ):
            if not 0 <= seconds < float("inf"):
                raise ValueError(f"{flag} {seconds} is not a time; pass seconds, 0 or more")


def join_address(host: str, port: int) -> str:
    """HOST:PORT as gRPC takes it, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def add_serving_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `FrontendConfig` that a person sets, shared with `switchyard serve`."""
    default = "default: %(default)s"
    parser.add_argument("--served-model-name", metavar="NAME", help="default: the folder's name")
    parser.add_argument("--host", default=DEFAULT_HOST, help=default)
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"of gRPC; {default}")
    parser.add_argument(
        "--http-port", type=int, metavar="PORT", help="of the OpenAI API and metrics; default: none"
    )
    parser.add_argument(
        "--no-prefix-cache", action="store_true", help="keep no KV of finished requests"
    )
    for flag, count, what in (
        ("--max-queued-requests", 1024, "requests that may wait"),
        ("--max-queued-tokens", 4_000_000, "prompt tokens that may wait"),
        ("--max-requests-per-key", 0, "live requests of one key, 0: any number"),
        ("--max-restarts", 10, "losses of the workers made good in --restart-window"),
    ):
        parser.add_argument(flag, type=int, default=count, metavar="N", help=f"{what}; {default}")
    for flag, seconds, what in (
        ("--startup-timeout", 900.0, "the workers may take to be ready"),
        ("--drain-timeout", 60.0, "in-flight requests get after SIGTERM"),
        ("--step-timeout", 1.0, "a step may be overdue, if not predicted to take a third"),
        ("--restart-window", 300.0, "in which --max-restarts are allowed"),
    ):
        parser.add_argument(
            flag, type=float, default=seconds, metavar="SECONDS", help=f"{what}; {default}"
        )
    for flag, what in (
        ("--api-key-file", "lines NAME:KEY of who may ask; default: everybody"),
        ("--tls-cert", "the server's certificate, PEM"),
        ("--tls-key", "its private key, PEM"),
        ("--tls-client-ca", "who signs the certificates that clients must show, PEM"),
        ("--link-secret-file", "what frontend and workers know each other by"),
    ):
        parser.add_argument(flag, type=Path, metavar="FILE", help=what)
    parser.add_argument(
        "--insecure", action="store_true", help="listen beyond this machine without keys"
    )
    parser.add_argument(
        "--no-request-log", action="store_true", help="no line of JSON for each request"
    )
    parser.add_argument("--otlp-endpoint", metavar="URL", help="send traces there; default: none")
