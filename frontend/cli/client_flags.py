"""Flags of the commands that call a server: its address, its certificate, the caller's key.

Owns those flags and their meaning. Knows nothing of the calls.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from frontend.config import API_KEY_VARIABLE, environments_key
from switchyard.channel import Tls
from switchyard.client import DEFAULT_ADDRESS, Client


class FlagError(ValueError):
    """One line about a flag that cannot be used."""


def add_address_flag(parser: argparse.ArgumentParser) -> None:
    """--address."""
    parser.add_argument(
        "--address",
        type=grpc_address,
        default=DEFAULT_ADDRESS,
        metavar="HOST:PORT",
        help="of the server's gRPC; default: %(default)s",
    )


def grpc_address(text: str) -> str:
    """An address as gRPC takes it, for a parser."""
    scheme, is_url, _ = text.partition("://")
    if is_url and scheme in ("http", "https", "grpc", "grpcs"):
        raise argparse.ArgumentTypeError(
            f"{text} is a URL; pass HOST:PORT of gRPC, such as {DEFAULT_ADDRESS}"
            + (", and --tls" if scheme.endswith("s") else "")
        )
    port = text.rpartition(":")[2]
    if not (text.startswith("unix:") or (":" in text and port.isdecimal())):
        raise argparse.ArgumentTypeError(
            f"{text} has no port; pass HOST:PORT of gRPC, such as {DEFAULT_ADDRESS}"
        )
    return text


def add_security_flags(parser: argparse.ArgumentParser, *, keys: bool = True) -> None:
    """Flags of TLS, and of the key unless the calls need none."""
    group = parser.add_argument_group("security", "what the server requires; default: nothing")
    if keys:
        key = group.add_mutually_exclusive_group()
        key.add_argument(
            "--api-key",
            default=environments_key(),
            metavar="KEY",
            help=f"shows in the process list; default: ${API_KEY_VARIABLE}",
        )
        key.add_argument(
            "--api-key-file", type=Path, metavar="FILE", help="its first line is KEY or NAME:KEY"
        )
    group.add_argument(
        "--tls", action="store_true", help="trust the authorities that this machine trusts"
    )
    for flag, what in (
        ("--tls-ca", "the authority of the server's certificate, PEM"),
        ("--tls-cert", "the client's certificate, for a server with --tls-client-ca, PEM"),
        ("--tls-key", "its private key, PEM"),
    ):
        group.add_argument(flag, type=Path, metavar="FILE", help=f"{what}; means --tls")
    group.add_argument(
        "--tls-server-name",
        metavar="NAME",
        help="in the server's certificate, if not the address's; means --tls",
    )


def client_tls(flags: argparse.Namespace) -> Tls | None:
    """The TLS that the flags describe; None: no encryption.

    Raises:
        FlagError: a file is missing.
    """
    if (flags.tls_cert is None) != (flags.tls_key is None):
        raise FlagError("--tls-cert and --tls-key belong together; pass both or none")
    for flag in ("tls_ca", "tls_cert", "tls_key"):
        path = getattr(flags, flag)
        if path is not None:
            try:
                path.read_bytes()
            except OSError as error:
                name = flag.replace("_", "-")
                raise FlagError(f"--{name} {path} cannot be read: {error.strerror}") from error
    if not (flags.tls or flags.tls_ca or flags.tls_cert or flags.tls_server_name):
        return None
    return Tls(
        ca=flags.tls_ca, cert=flags.tls_cert, key=flags.tls_key, server_name=flags.tls_server_name
    )


def open_client(flags: argparse.Namespace) -> Client:
    """A client by the flags of both functions.

    Raises:
        FlagError: a file cannot be used.
    """
    key = flags.api_key if flags.api_key_file is None else read_key(flags.api_key_file)
    return Client(flags.address, api_key=key, tls=client_tls(flags))


def read_key(path: Path) -> str:
    """The key in a file: the first line that is no comment, as KEY, NAME:KEY or NAME:KEY:RIGHT.

    Raises:
        FlagError: the file has no key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise FlagError(f"--api-key-file {path} cannot be read: {cause}") from error
    for line in lines:
        entry = line.strip()
        if entry and not entry.startswith("#"):
            return entry.split(":")[:2][-1]
    raise FlagError(f"--api-key-file {path} holds no key")
