"""Why a client gets no answer: nobody listens there, it is HTTP's port, only one side encrypts, a
certificate is refused.

Asks the address over a socket of its own, for gRPC calls all of these unavailable. Knows of flags
only their names.
"""

from __future__ import annotations

import contextlib
import socket
import ssl

import grpc

from switchyard.channel import Tls
from switchyard.client import ServerError

_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_SECONDS = 2.0  # for each answer
# HTTP/2's opening words and an empty SETTINGS frame, to which a gRPC server answers with its own.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_SETTINGS = b"\4"


def explain(error: ServerError, address: str, tls: Tls | None) -> str:
    """One line: what went wrong with a call, and what to do."""
    if error.code in _NO_ANSWER and not error.reason:
        return why_no_answer(address, tls)
    return f"{error.code.name}: {error.message}"


def why_no_answer(address: str, tls: Tls | None) -> str:
    """One line: what is at an address where gRPC got no answer, and what to do.

    Args:
        address: HOST:PORT or unix:PATH.
        tls: what the client tried; None: no encryption.
    """
    try:
        with _connect(address) as connection:
            greeting = _greeting(connection)
    except OSError:
        return f"no server at {address}; start one with `switchyard serve`, or pass --address"
    if _is_grpc(greeting):
        if tls is None:
            return _broken_off(address)
        return f"the server at {address} does not encrypt; leave --tls and its files out"
    if _is_http(greeting):
        return _http(address)
    return _why_no_encrypted_answer(address, tls)


def _why_no_encrypted_answer(address: str, tls: Tls | None) -> str:
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    greeting = b""
    try:
        with _connect(address) as plain, anybody.wrap_socket(plain) as connection:
            greeting = _greeting(connection)
    except OSError as error:
        if "ALERT" not in (getattr(error, "reason", None) or ""):  # it does not know TLS
            return f"what listens at {address} is no gRPC server; pass another --address"
    if _is_http(greeting):
        return _http(address)
    if tls is None:
        return f"the server at {address} encrypts; pass --tls, or --tls-ca FILE of its authority"
    return _why_refused(address, tls)


def _why_refused(address: str, tls: Tls) -> str:
    """What keeps two that both encrypt apart."""
    context = ssl.create_default_context(cafile=tls.ca)
    context.set_alpn_protocols(["h2"])  # else gRPC does not answer
    if tls.cert is not None:
        context.load_cert_chain(tls.cert, tls.key)
    name = tls.server_name or address.rpartition(":")[0].strip("[]")
    greeting = b""
    try:
        with (
            _connect(address) as plain,
            context.wrap_socket(plain, server_hostname=name) as connection,
        ):
            greeting = _greeting(connection)  # without a certificate it is none
    except ssl.SSLCertVerificationError as error:
        return (
            f"the certificate at {address} is refused: {error.verify_message.rstrip('.')}; pass "
            "--tls-ca FILE of its authority, or --tls-server-name NAME where its name is another"
        )
    except OSError:
        pass  # TLS before 1.3 asks for the certificate in the handshake
    if _is_grpc(greeting):
        return _broken_off(address)
    what = "asks for a client's certificate" if tls.cert is None else f"refuses {tls.cert}"
    return f"the server at {address} {what}; pass --tls-cert and --tls-key that it trusts"


def _connect(address: str) -> socket.socket:
    """A connection; raises OSError."""
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_SECONDS)
        connection.connect(address.removeprefix("unix:"))
        return connection
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), _SECONDS)


def _greeting(connection: socket.socket) -> bytes:
    """The first that a server says to a client of gRPC; empty when it says nothing."""
    with contextlib.suppress(OSError):
        connection.sendall(_HELLO)
        return connection.recv(64)
    return b""


def _is_grpc(greeting: bytes) -> bool:
    return greeting[3:4] == _SETTINGS


def _is_http(greeting: bytes) -> bool:
    return greeting.startswith(b"HTTP/")


def _http(address: str) -> str:
    return f"{address} is HTTP's port; pass --address with gRPC's, 50051 unless it was given"


def _broken_off(address: str) -> str:
    return f"the connection to the server at {address} broke off; try again"
