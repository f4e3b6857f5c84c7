"""The cache keeps one row's fault from the next holder of its blocks."""

import torch

from workers.attention.kv_cache import CacheSizes, KVCache
from workers.attention.layer import AttentionBatch, paged_attention

HEADS, SIZE, BLOCK = 2, 8, 4


def attend(
    cache: KVCache, k: torch.Tensor, tables: list[list[int]], lengths: list[int]
) -> torch.Tensor:
    """One decode a row, with ``k`` as query, key and value."""
    batch = AttentionBatch(
        positions_T=torch.tensor(lengths, dtype=torch.int32) - 1,
        slots_T=torch.arange(len(lengths), dtype=torch.int32),
        tables=torch.tensor(tables, dtype=torch.int32),
        slots=list(range(len(lengths))),
        lengths=lengths,
        num_tokens=[1] * len(lengths),
        num_decodes=len(lengths),
    )
    return paged_attention(k, k, k, cache.layers[0], batch, scale=SIZE**-0.5)


def test_a_fault_does_not_reach_the_next_holder_of_a_block() -> None:
    sizes = CacheSizes(
        num_layers=1,
        block_size=BLOCK,
        num_kv_heads=HEADS,
        head_dim=SIZE,
        v_head_dim=SIZE,
        dtype=torch.float32,
    )
    assert sizes.bytes_per_block == 4 * 2 * BLOCK * HEADS * SIZE
    cache = KVCache(sizes, 4, torch.device("cpu"))
    for bad in (float("nan"), float("inf")):
        faulty = torch.full((1, HEADS, SIZE), bad)
        attend(cache, faulty, [[1, 0]], [3])
        # Row 0 takes the block with one token of its own; row 1's longer context pads it.
        rows = torch.randn(2, HEADS, SIZE)
        together = attend(cache, rows, [[1, 2], [3, 2]], [1, 6])
        assert together.isfinite().all()
        torch.testing.assert_close(together[0], rows[0].flatten())
