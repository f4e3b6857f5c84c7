"""What both ends of the worker link agree on beside worker.proto. Opens no connection."""

from __future__ import annotations

PROTOCOL = 3
"""Meaning of worker.proto that this release speaks."""

MAX_STEPS_IN_FLIGHT = 4
"""Steps a frontend may send before the first one's result; workers keep buffers for them."""


def local_address(base: str, local_rank: int) -> str:
    """Address of a machine's local rank, from that of its first.

    Raises:
        ValueError: the address has neither a port nor a place for the rank.
    """
    if "{rank}" in base:
        return base.replace("{rank}", str(local_rank))
    host, colon, port = base.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"worker address {base!r} must be host:port or unix:/path/rank-{{rank}}")
    return f"{host}:{int(port) + local_rank}"
