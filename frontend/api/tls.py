"""The server's certificates: read, checked before anything is loaded, and renewed while it runs.

Owns the files behind --tls-cert, --tls-key and --tls-client-ca, for gRPC and HTTP: a connection
after a file's change gets the new one. Knows nothing of API keys or of requests.
"""

from __future__ import annotations

import dataclasses
import logging
import ssl
from pathlib import Path
from typing import Any

import grpc

from frontend.config import FrontendConfig

logger = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """PEM files of a server.

    Attributes:
        cert, key: the certificate with its chain, and its private key.
        client_ca: signs the certificates that clients must show; None: they need none.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """A context of the files' present contents; TLS 1.2 at least.

        Raises:
            ValueError: a file cannot be used; one line that names it.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        for flag, path in (("--tls-cert", self.cert), ("--tls-key", self.key)):
            _check_readable(flag, path)
        try:
            # An encrypted key would prompt on the terminal.
            context.load_cert_chain(self.cert, self.key, password=lambda: b"")
        except (ssl.SSLError, OSError) as error:
            raise ValueError(
                f"--tls-cert {self.cert} and --tls-key {self.key} cannot be used: "
                f"{_cause(error)}; they must be a PEM certificate and its unencrypted key"
            ) from error
        if self.client_ca is not None:
            _check_readable("--tls-client-ca", self.client_ca)
            try:
                context.load_verify_locations(self.client_ca)
            except (ssl.SSLError, OSError) as error:
                raise ValueError(
                    f"--tls-client-ca {self.client_ca} cannot be used: {_cause(error)}; "
                    "it must hold PEM certificates"
                ) from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def stamp(self) -> _Stamp:
        """A value that changes when a file does; a missing file changes nothing."""
        found = []
        for path in (self.cert, self.key, self.client_ca):
            if path is not None:
                try:
                    facts = path.stat()
                except OSError:
                    continue
                found.append((facts.st_mtime_ns, facts.st_ino))
        return tuple(found)


class _Renewal:
    """Notices when the files have changed and are valid."""

    def __init__(self, files: ServerTls) -> None:
        self._files = files
        self._stamp = files.stamp()

    def check(self) -> ssl.SSLContext | None:
        """The new context once after a change; invalid files are logged and ignored."""
        stamp = self._files.stamp()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            return self._files.context()
        except ValueError as error:
            logger.error("the certificate stays as it was: %s", error)
            return None


def server_tls(config: FrontendConfig) -> ServerTls | None:
    """The server's files, checked; None without encryption.

    Raises:
        ValueError: a file cannot be used.
    """
    if config.tls_cert is None or config.tls_key is None:
        return None
    files = ServerTls(cert=config.tls_cert, key=config.tls_key, client_ca=config.tls_client_ca)
    files.context()
    return files


def ssl_context(files: ServerTls) -> ssl.SSLContext:
    """For a server on Python's ssl, such as uvicorn; each connection gets the newest files.

    Raises:
        ValueError: a file cannot be used.
    """
    renewal = _Renewal(files)
    current = first = files.context()

    def choose(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        nonlocal current
        current = renewal.check() or current
        connection.context = current

    first.sni_callback = choose
    return first


def server_credentials(files: ServerTls) -> grpc.ServerCredentials:
    """For gRPC; each connection gets the newest files.

    Raises:
        ValueError: a file cannot be used.
    """
    renewal = _Renewal(files)
    files.context()
    return grpc.dynamic_ssl_server_credentials(
        _grpc_configuration(files),
        lambda: _grpc_configuration(files) if renewal.check() else None,
        require_client_authentication=files.client_ca is not None,
    )


def _grpc_configuration(files: ServerTls) -> Any:
    roots = None if files.client_ca is None else files.client_ca.read_bytes()
    return grpc.ssl_server_certificate_configuration(
        [(files.key.read_bytes(), files.cert.read_bytes())], root_certificates=roots
    )


def _check_readable(flag: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ValueError(f"{flag} {path} cannot be read: {error.strerror}") from error


def _cause(error: OSError) -> str:
    """OpenSSL's reason, such as KEY_VALUES_MISMATCH."""
    return getattr(error, "reason", None) or error.strerror or type(error).__name__
