"""Checks that a server beyond this machine has keys or client certificates."""

from __future__ import annotations

import ipaddress

from frontend.config import FrontendConfig, join_address


def check_exposure(config: FrontendConfig) -> str:
    """Refuse an address where strangers could reach the service.

    Returns:
        A warning for the operator; empty when there is none.

    Raises:
        ValueError: other machines could reach a service without keys, or a limit of keys is set
            where there are no keys.
    """
    if config.max_requests_per_key and config.api_key_file is None:
        raise ValueError(
            f"--max-requests-per-key {config.max_requests_per_key} needs keys; "
            "pass --api-key-file FILE"
        )
    if is_loopback(config.host):
        return ""
    where = join_address(config.host, config.port)
    if config.api_key_file is None and config.tls_client_ca is None:
        if not config.insecure:
            raise ValueError(
                f"--host {config.host} can be reached from other machines, and serves any caller; "
                "pass --api-key-file FILE or --tls-client-ca FILE, or --insecure to allow it"
            )
        return f"{where} is reachable from other machines, and serves any caller (--insecure)"
    if config.tls_cert is None:
        return f"{where} is reachable from other machines, and keys and prompts travel unencrypted"
    return ""


def is_for_local_callers(config: FrontendConfig) -> bool:
    """Whether nothing but the address keeps strangers out, so that web pages must be told apart."""
    has_keys = config.api_key_file is not None or config.tls_client_ca is not None
    return is_loopback(config.host) and not has_keys and not config.insecure


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine alone; of names only localhost is."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
