"""How a client proves itself and knows its server: certificates, and the key on every call.

Owns both for channels of grpc and of grpc.aio. Knows nothing of what is called.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """PEM files and names of an encrypted connection; ``Tls()`` trusts who this machine trusts.

    Attributes:
        ca: who signed the server's certificate; None: the machine's authorities.
        cert, key: what a server with --tls-client-ca wants to see.
        server_name: the name in the server's certificate, where the address has another.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("a client's certificate and its key belong together")

    def credentials(self) -> grpc.ChannelCredentials:
        """What a secure channel takes.

        Raises:
            OSError: a file cannot be read.
        """
        contents = [None if path is None else path.read_bytes() for path in self._files]
        return grpc.ssl_channel_credentials(*contents)

    @property
    def _files(self) -> tuple[Path | None, Path | None, Path | None]:
        return self.ca, self.key, self.cert


def open_channel(
    grpc_module: Any,
    address: str,
    *,
    options: Sequence[tuple[str, Any]] = (),
    tls: Tls | None = None,
    api_key: str | None = None,
) -> Any:
    """A channel to a server.

    Args:
        grpc_module: `grpc` or `grpc.aio`.
        address: HOST:PORT, or unix:PATH.
        tls: None for a server without encryption.
        api_key: sent with every call.
    """
    if tls is None:
        channel = grpc_module.insecure_channel(address, options=options)
    else:
        named = [("grpc.ssl_target_name_override", tls.server_name)] if tls.server_name else []
        channel = grpc_module.secure_channel(address, tls.credentials(), options=(*options, *named))
    return channel if api_key is None else _KeyedChannel(channel, api_key)


class _KeyedChannel:
    """A channel whose calls carry a key, which gRPC's own call credentials do over TLS only."""

    def __init__(self, channel: Any, api_key: str) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {api_key}"),)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def unary_unary(self, *args: Any, **kwargs: Any) -> _KeyedMethod:
        return _KeyedMethod(self._channel.unary_unary(*args, **kwargs), self._metadata)

    def unary_stream(self, *args: Any, **kwargs: Any) -> _KeyedMethod:
        return _KeyedMethod(self._channel.unary_stream(*args, **kwargs), self._metadata)


class _KeyedMethod:
    """A method of a channel, called with metadata of its own beside the caller's."""

    def __init__(self, method: Any, metadata: Sequence[Any]) -> None:
        self._method = method
        self._metadata = metadata

    def __call__(self, request: Any, *, metadata: Sequence[Any] = (), **kwargs: Any) -> Any:
        return self._method(request, metadata=(*metadata, *self._metadata), **kwargs)

    def future(self, request: Any, *, metadata: Sequence[Any] = (), **kwargs: Any) -> Any:
        return self._method.future(request, metadata=(*metadata, *self._metadata), **kwargs)
