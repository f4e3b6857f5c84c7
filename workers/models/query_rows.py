"""Where the rows of queries stand in a checkpoint, and those of gates that share their tensor."""

from __future__ import annotations

from workers.attention.spec import AttentionSpec
from workers.layers.linear import ShardRows


def query_shards(spec: AttentionSpec, heads: range) -> list[tuple[str, ShardRows]]:
    """Rows of some heads' queries."""
    if not spec.gate_in_query:
        total, width = spec.num_heads * spec.head_dim, spec.head_dim
        return [("q_proj", ShardRows(total, heads.start * width, heads.stop * width))]
    return _pieces(spec, heads, 0, spec.head_dim)


def gate_shards(spec: AttentionSpec, heads: range) -> list[tuple[str, ShardRows]]:
    """Rows of some heads' gates."""
    if not spec.gate_in_query:
        width = 1 if spec.gate == "head" else spec.v_head_dim
        rows = ShardRows(spec.num_heads * width, heads.start * width, heads.stop * width)
        return [(spec.gate_name, rows)]
    return _pieces(spec, heads, spec.head_dim, spec.v_head_dim)


def _pieces(
    spec: AttentionSpec, heads: range, before: int, width: int
) -> list[tuple[str, ShardRows]]:
    """Of each head's rows in q_proj's tensor, ``width`` behind the first ``before``."""
    size, total = spec.query_rows, spec.num_heads * spec.query_rows
    starts = (head * size + before for head in heads)
    return [("q_proj", ShardRows(total, start, start + width)) for start in starts]
