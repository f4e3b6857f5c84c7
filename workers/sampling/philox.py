"""Philox4x32-10, a counter-based generator (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011), in int64 arithmetic that gives the same words on every device.

Knows nothing of sampling beyond the meaning of its counter.
"""

from __future__ import annotations

import torch

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF
_WORDS = 4


def philox4x32(
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    key: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four random words for each counter.

    Args:
        counter: four int64 tensors of 32-bit values, of shapes that broadcast.
        key: two such tensors.

    Returns:
        Four int64 tensors with values in [0, 2³²).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, low0 = (product0 >> 32) & _MASK, product0 & _MASK
        high1, low1 = (product1 >> 32) & _MASK, product1 & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def vocabulary_words(
    seed_D: torch.Tensor, sample_index_D: torch.Tensor, position_D: torch.Tensor, vocab_size: int
) -> torch.Tensor:
    """One random word for each row and vocabulary id.

    key = (low, high half of seed); counter = (id // 4, position, sample index, 0); the word of an
    id is number id mod 4 of the four.

    Args:
        seed_D, sample_index_D, position_D: int64, one entry a row.

    Returns:
        ``[D, vocab_size]`` int64 in [0, 2³²).
    """
    quads = -(-vocab_size // _WORDS)
    ids_Q = torch.arange(quads, device=seed_D.device, dtype=torch.int64)
    seed_D1, zero = seed_D[:, None], torch.zeros_like(seed_D)[:, None]
    words = philox4x32(
        (ids_Q[None, :], position_D[:, None], sample_index_D[:, None], zero),
        (seed_D1 & _MASK, (seed_D1 >> 32) & _MASK),
    )
    return torch.stack(words, dim=-1).flatten(1)[:, :vocab_size]
