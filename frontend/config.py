"""The frontend's settings: addresses, limits and time-outs, each a flag, checked once.

Knows nothing of the model: its facts come from the model folder (`frontend.model_folder`) and from
the workers' description of themselves.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from frontend.processing.thoughts.tags import CHOICES as REASONING_PARSERS
from frontend.processing.tool_calls.names import CHOICES as TOOL_CALL_PARSERS
from switchyard import flags
from switchyard.flags import flag

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 50051
DEFAULT_HTTP_PORT = 8000
API_KEY_VARIABLE = "SWITCHYARD_API_KEY"
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s,*?#@]+")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrontendConfig:
    """Settings of one frontend process. None is "not set"; each line says what that means."""

    model: Path = flag("folder, or Hub id", metavar="MODEL", unset="the demo model", shared=False)
    workers: tuple[str, ...] = flag(
        "each machine's first rank: HOST:PORT, or unix:DIR/rank-{rank}.sock",
        metavar="ADDR[,ADDR]",
        shared=False,
    )
    supervisor: int | None = flag(
        "descriptor of a socket to the supervisor, which `switchyard serve` makes",
        None, metavar="FD", at_least=0, unset="none", shared=False,
    )  # fmt: skip
    served_name: str = flag(
        "name that clients put in `model`",
        name="--served-model-name", metavar="NAME", unset="the folder's name, or the Hub id",
    )  # fmt: skip
    chat_template: Path | None = flag("Jinja template of chats", None, unset="the model folder's")
    reasoning_parser: str = flag(
        "tags of the model's thoughts; auto: those of its chat template",
        "auto",
        choices=REASONING_PARSERS,
    )
    tool_call_parser: str = flag(
        "form of the model's tool calls; auto: that of its chat template; or another's name for it",
        "auto",
        choices=TOOL_CALL_PARSERS,
    )
    host: str = flag("address to listen on", DEFAULT_HOST, metavar="HOST")
    port: int = flag(
        "of gRPC; 0 takes a free one", DEFAULT_PORT, metavar="PORT", at_least=0, at_most=65535
    )
    http_port: int = flag(
        "of the OpenAI API, /health and /metrics; 0 takes a free one",
        DEFAULT_HTTP_PORT, metavar="PORT", at_least=0, at_most=65535,
    )  # fmt: skip
    http: bool = flag("listen for gRPC alone", True)
    playground: bool = flag("show no page at / that chats with the model", True)
    api_key_file: Path | None = flag(
        "lines NAME:KEY or NAME:KEY:RIGHT; calls need a key", None, unset="no keys"
    )
    api_key: str | None = flag(
        "the only key; other users of this machine see it in the process list",
        None, metavar="KEY", unset=f"${API_KEY_VARIABLE}, or none",
    )  # fmt: skip
    tls_cert: Path | None = flag("the server's certificate, PEM", None, unset="no encryption")
    tls_key: Path | None = flag("private key of --tls-cert, PEM", None, unset="none")
    tls_client_ca: Path | None = flag(
        "authority that signs the certificates clients must show, PEM", None, unset="none"
    )
    cors_origin: tuple[str, ...] = flag(
        "web pages that may call over HTTP: https://HOST[:PORT], or * for all; repeatable",
        (), metavar="ORIGIN", unset="the server's own",
    )  # fmt: skip
    insecure: bool = flag("listen beyond this machine without keys, and take any Host", False)
    link_secret_file: Path | None = flag(
        "secret that the workers ask for", None, unset="none", shared=False
    )
    max_queued_requests: int = flag("requests that may wait beyond free slots", 1024, at_least=1)
    max_queued_tokens: int = flag(
        "prompt tokens that may wait",
        4_000_000,
        unit="tokens",
        at_least=1,
        seldom=True,
    )
    max_requests_per_key: int = flag("live samples of one key; 0: any number", 0, at_least=0)
    prefix_cache: bool = flag("keep no KV blocks of finished requests", True)
    startup_timeout: float = flag(
        "time the workers may take to be ready",
        900.0,
        unit="seconds",
        at_least=0,
        seldom=True,
    )
    drain_timeout: float = flag(
        "time that live requests get after SIGTERM", 60.0, unit="seconds", at_least=0
    )
    step_timeout: float = flag(
        "time after which a step is overdue, unless it is predicted to take a third of it",
        1.0, unit="seconds", at_least=0, seldom=True,
    )  # fmt: skip
    max_restarts: int = flag(
        "losses of the workers that are made good within --restart-window",
        10,
        at_least=0,
        seldom=True,
    )
    restart_window: float = flag(
        "see --max-restarts", 300.0, unit="seconds", at_least=0, seldom=True
    )
    request_log: bool = flag("write no line for each request that ends", True)
    request_log_format: str = flag(
        "auto: text on a terminal, else json", "auto", choices=("auto", "json", "text")
    )
    otlp_endpoint: str | None = flag(
        "URL that traces are sent to", None, metavar="URL", unset="none"
    )

    def __post_init__(self) -> None:
        if not self.workers or not all(self.workers):
            raise ValueError("no worker address; pass --workers HOST:PORT[,HOST:PORT]")
        if not self.served_name:
            raise ValueError("the served model name is empty; pass --served-model-name NAME")
        flags.check(self)
        if self.http and self.port == self.http_port != 0:
            raise ValueError(
                f"--port and --http-port are both {self.port}; --port is gRPC's, --http-port is "
                "the OpenAI API's; pass another one, or --no-http"
            )
        for origin in self.cors_origin:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"--cors-origin is {origin!r}; pass * or what a browser sends, such as "
                    "https://example.com or http://localhost:3000, without a path"
                )
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("--api-key and --api-key-file are two ways to give keys; pass one")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key belong together; pass both or none")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("--tls-client-ca needs --tls-cert and --tls-key")

    @property
    def has_keys(self) -> bool:
        """Whether calls need a key."""
        return self.api_key is not None or self.api_key_file is not None


def environments_key() -> str | None:
    """The key in the environment, which servers ask for and clients show unless flags say more."""
    return os.environ.get(API_KEY_VARIABLE, "").strip() or None


def join_address(host: str, port: int) -> str:
    """HOST:PORT as gRPC takes it, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
