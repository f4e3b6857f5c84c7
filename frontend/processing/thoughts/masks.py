"""Masks of a few tokens, and what is made of two. Bit t % 8 of byte t / 8 allows token t."""

from __future__ import annotations

from collections.abc import Iterable


def mask_of(token_ids: Iterable[int], num_bytes: int) -> bytes:
    """A mask of some tokens; those beyond the vocabulary are left out."""
    bits = bytearray(num_bytes)
    for token in token_ids:
        if token >> 3 < num_bytes:
            bits[token >> 3] |= 1 << (token & 7)
    return bytes(bits)


def union(own: bytes, others: bytes) -> bytes:
    """Tokens of either mask; no bytes are any token."""
    if not own:
        return b""
    return (int.from_bytes(own, "little") | int.from_bytes(others, "little")).to_bytes(
        len(own), "little"
    )


def without(own: bytes, token_id: int, num_bytes: int) -> bytes:
    """All tokens of a mask but one; no bytes are any token."""
    bits = bytearray(own or b"\xff" * num_bytes)
    bits[token_id >> 3] &= ~(1 << (token_id & 7))
    return bytes(bits)
