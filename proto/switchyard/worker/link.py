"""What both ends of the worker link agree on beside worker.proto. Opens no connection."""

from __future__ import annotations

from pathlib import Path

PROTOCOL = 7
"""Meaning of worker.proto that this release speaks."""

MAX_STEPS_IN_FLIGHT = 4
"""Steps a frontend may send before the first one's result; workers keep buffers for them."""

NOT_FINITE = -1
"""Stands for a token whose logits were not finite, or that nothing was left to draw for."""

SECRET_KEY = "x-switchyard-link"
"""Metadata key under which every call on the link carries the secret, where one is set."""


def expert_starts(num_experts: int, num_ranks: int) -> list[int]:
    """First expert of each rank, and one past the last of all: ``num_ranks + 1`` values.

    Ranks hold contiguous blocks of experts; the first ``num_experts % num_ranks`` of them hold one
    more. `moe.placement`, which imports nothing of ours, places them so; a test compares the two.
    """
    each, extra = divmod(num_experts, num_ranks)
    return [rank * each + min(rank, extra) for rank in range(num_ranks + 1)]


def read_secret(path: Path | None) -> str | None:
    """The link's secret from its file, without white space around it; None without a file.

    Raises:
        ValueError: the file cannot be read, is empty, or holds what metadata cannot carry.
    """
    if path is None:
        return None
    try:
        secret = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ValueError(f"--link-secret-file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"--link-secret-file {path} is not plain ASCII text") from None
    if not secret or not secret.isprintable():
        raise ValueError(
            f"--link-secret-file {path} holds no secret; write one line of random text, "
            "such as that of `openssl rand -hex 32`"
        )
    return secret


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
