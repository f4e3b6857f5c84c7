"""Which states a step's rows read, write and keep, and how kernels divide its prompts.

Arithmetic on the host. Knows no layer. States of slots come first, kept ones behind. R rows, T
tokens, K chunks.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from workers.linear_attention.delta_rule import CHUNK
from workers.rows import StepRows


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StateRows:
    """One entry a row, int32.

    Attributes:
        sources: the state before it, -1: zeros.
        targets: the state behind it; -1 for padding.
        keep_positions: the position behind which its state is kept too; 0: none.
        keep_states: where that goes; -1: nowhere.
    """

    sources: np.ndarray
    targets: np.ndarray
    keep_positions: np.ndarray
    keep_states: np.ndarray

    def padded(self, num_rows: int) -> StateRows:
        """With rows of no sequence behind."""
        missing = num_rows - len(self.sources)
        none, zeros = np.full(missing, -1, np.int32), np.zeros(missing, np.int32)
        return StateRows(
            sources=np.concatenate((self.sources, none)),
            targets=np.concatenate((self.targets, none)),
            keep_positions=np.concatenate((self.keep_positions, zeros)),
            keep_states=np.concatenate((self.keep_states, none)),
        )


def plan_rows(
    first_tokens: np.ndarray, positions: np.ndarray, num_tokens: np.ndarray, states: StateRows
) -> tuple[np.ndarray, np.ndarray]:
    """Chunks of rows, which end at positions that are multiples of `CHUNK`, and rows.

    Args:
        first_tokens: of each row, into the step's tokens; ``positions``: of these in their
            sequences.

    Returns:
        int32 ``[K, 2]`` and ``[R, 7]``, as `prefill_delta` takes them.
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
    keep_chunks = firsts + states.keep_positions // CHUNK - 1 - begins
    rows = np.stack(
        [
            firsts, counts, states.sources, states.targets, positions,
            np.where(states.keep_states < 0, 0, keep_chunks), states.keep_states,
        ],
        axis=1,
    )  # fmt: skip
    return np.stack([tokens, stop - begin], axis=1).astype(np.int32), rows.astype(np.int32)


def state_columns(
    rows: StepRows,
    states: StateRows,
    num_decodes: int,
    size: int,
    shape: tuple[int, int] | None,
) -> dict[str, np.ndarray]:
    """Of a step: ``sources`` and ``keeps`` of tokens, and, unless there are decodes alone,
    ``chunks`` and ``rows``.

    Args:
        size: tokens, padding among them.
        shape: tokens and rows that a captured step is padded to; None: it is not.
    """
    columns = {
        "sources": _of_tokens(states.sources, rows.num_tokens, size),
        "keeps": _of_tokens(states.keep_states, rows.num_tokens, size),
    }
    if len(rows.slots) == num_decodes and (shape is None or num_decodes):
        return columns
    behind = slice(num_decodes, None)
    others = StateRows(
        sources=states.sources[behind],
        targets=states.targets[behind],
        keep_positions=states.keep_positions[behind],
        keep_states=states.keep_states[behind],
    )
    chunks, plan = plan_rows(
        rows.first_token[behind] - num_decodes,
        rows.positions[behind],
        rows.num_tokens[behind],
        others,
    )
    if shape is not None:
        tokens, num_rows = shape
        chunks = _padded(chunks, min(tokens, tokens // CHUNK + 2 * num_rows))
        plan = _padded(plan, num_rows)
    return columns | {"chunks": chunks, "rows": plan}


def _of_tokens(of_rows: np.ndarray, num_tokens: np.ndarray, size: int) -> np.ndarray:
    found = np.full(size, -1, dtype=np.int32)
    each = np.repeat(of_rows, num_tokens)
    found[: len(each)] = each
    return found


def _padded(table: np.ndarray, size: int) -> np.ndarray:
    return np.pad(table, ((0, size - len(table)), (0, 0)))
