"""How kernels divide the prompts of a step in the layers that keep states.

Torch-free arithmetic on the host. Knows no layer. R rows, T tokens.
"""

from __future__ import annotations

import numpy as np

from workers.linear_attention.delta_rule import CHUNK


def plan_rows(
    first_tokens: np.ndarray, positions: np.ndarray, num_tokens: np.ndarray, slots: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Chunks of rows, which end at positions that are multiples of `CHUNK`, and rows.

    Args:
        first_tokens: of each row, into the step's tokens; ``positions``: of these in their
            sequences.
        slots: whose state each row reads and writes.

    Returns:
        int32 ``[K, 2]`` and ``[R, 5]``, as `prefill_delta` takes them.
    """
    begins = positions // CHUNK
    counts = (positions + num_tokens - 1) // CHUNK - begins + 1
    firsts = np.cumsum(counts) - counts
    row_of_chunk = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(row_of_chunk)) - firsts[row_of_chunk] + begins[row_of_chunk]
    start, end = positions[row_of_chunk], (positions + num_tokens)[row_of_chunk]
    begin = np.maximum(number * CHUNK, start)
    stop = np.minimum((number + 1) * CHUNK, end)
    tokens = first_tokens[row_of_chunk] + begin - start
    sources = np.where(positions > 0, slots, -1)
    rows = np.stack([firsts, counts, sources, slots, positions], axis=1)
    return np.stack([tokens, stop - begin], axis=1).astype(np.int32), rows.astype(np.int32)
