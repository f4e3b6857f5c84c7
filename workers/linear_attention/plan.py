"""How kernels divide the prompts of a step in the layers that keep states.

Arithmetic on the host. Knows no layer. R rows, T tokens.
"""

from __future__ import annotations

import numpy as np

from workers.linear_attention.delta_rule import CHUNK
from workers.rows import StepRows


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


def state_columns(
    rows: StepRows,
    slots_T: np.ndarray,
    starts_T: np.ndarray,
    num_decodes: int,
    shape: tuple[int, int] | None,
) -> dict[str, np.ndarray]:
    """Of a step: ``sources``, and without decodes alone ``chunks`` and ``rows``.

    Args:
        slots_T: of each token, -1 for padding; ``starts_T``: position of its row's first token.
        shape: tokens and rows that a captured step is padded to; None: it is not.
    """
    columns = {"sources": np.where(starts_T > 0, slots_T, -1).astype(np.int32)}
    if len(rows.slots) == num_decodes and (shape is None or num_decodes):
        return columns
    behind = slice(num_decodes, None)
    chunks, plan = plan_rows(
        rows.first_token[behind] - num_decodes,
        rows.positions[behind],
        rows.num_tokens[behind],
        rows.slots[behind],
    )
    if shape is not None:
        tokens, num_rows = shape
        chunks = _padded(chunks, min(tokens, tokens // CHUNK + 2 * num_rows))
        plan = _padded(plan, num_rows)
    return columns | {"chunks": chunks, "rows": plan}


def _padded(table: np.ndarray, size: int) -> np.ndarray:
    return np.pad(table, ((0, size - len(table)), (0, 0)))
