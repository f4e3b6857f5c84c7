"""A norm over all heads of all ranks: each has a share, and KV heads may be on several."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import pytest
import torch

from tests.workers.steps import interpreted
from workers.attention.kv_cache import CacheSizes, KVCache
from workers.attention.layer import AttentionBatch
from workers.attention.spec import AttentionSpec
from workers.layers.linear import ShardRows
from workers.layers.norm import RMSNorm
from workers.models.heads import QkvHeads

CPU, N, K, D, T, RANKS = torch.device("cpu"), 4, 2, 8, 3, 4
EPS = 1e-5
SPEC = AttentionSpec(
    num_heads=N, num_kv_heads=K, head_dim=D, v_head_dim=D, scale=1.0, rope=None,
    qk_norm="all_heads",
)  # fmt: skip


@dataclasses.dataclass
class Groups:
    """A rank's: its sum is that of ``total``, if that is known already."""

    total: torch.Tensor | None = None
    given: torch.Tensor | None = None

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        self.given = x.clone()
        return x if self.total is None else self.total


def heads_of(rank: int, norms: tuple[torch.Tensor, torch.Tensor], groups: Groups) -> QkvHeads:
    """A rank of four has a query head, and a KV head with its neighbour."""
    build: Any = types.SimpleNamespace(groups=groups, dtype=torch.float32, device=CPU)
    rows = ShardRows.shard(N * D, rank, RANKS), ShardRows.shard(K * D, rank // 2, K)
    heads = QkvHeads(SPEC, build, EPS, RMSNorm, None, *rows, counts_keys=rank % 2 == 0)
    for each, whole in zip(heads.checkpoint_slices("q.", "k."), norms, strict=True):
        assert each.shape == tuple(whole.shape)
        assert each.target is not None
        assert each.index is not None
        each.target.copy_(whole[each.index])
    return heads


def by_kernels(heads: QkvHeads, qkv_TW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q, and k from the cache."""
    sizes = CacheSizes(
        num_layers=1, block_size=4, num_kv_heads=1, head_dim=D, v_head_dim=D, dtype=torch.float32
    )
    cache = KVCache(sizes, 1, CPU).layers[0]
    numbers = torch.arange(T, dtype=torch.int32)
    zeros = torch.zeros(T, dtype=torch.int32)
    batch = AttentionBatch(
        positions_T=numbers, slots_T=zeros, tables=zeros[:1, None].contiguous(),
        slots=[0], lengths=[T], num_tokens=[T], num_decodes=0,
    )  # fmt: skip
    q_TND = heads(qkv_TW[None], None, cache, batch, interpreted())
    return q_TND, cache.keys[0, :T]


@pytest.mark.interpreter
@pytest.mark.parametrize("kernels", [False, True])
def test_shares_are_normed_as_the_whole(kernels: bool) -> None:
    torch.manual_seed(0)
    q_TW, k_TW, v_TW = (torch.randn(T, heads * D) for heads in (N, K, K))
    norms = RMSNorm(N * D, EPS, torch.float32, CPU), RMSNorm(K * D, EPS, torch.float32, CPU)
    for norm in norms:
        torch.nn.init.normal_(norm.weight, mean=1.0)
    weights = norms[0].weight.data, norms[1].weight.data

    def run(rank: int, groups: Groups) -> tuple[torch.Tensor, torch.Tensor]:
        own, kv = slice(rank * D, (rank + 1) * D), slice(rank // 2 * D, (rank // 2 + 1) * D)
        qkv_TW = torch.cat((q_TW[:, own], k_TW[:, kv], v_TW[:, kv]), dim=1)
        heads = heads_of(rank, weights, groups)
        if kernels:
            return by_kernels(heads, qkv_TW)
        q_TND, k_TKD, _ = heads.plain(qkv_TW, None, torch.arange(T))
        return q_TND, k_TKD

    total = torch.zeros(T, 2)
    for rank in range(RANKS):
        groups = Groups()
        run(rank, groups)
        assert groups.given is not None
        total += groups.given
    found = [run(rank, Groups(total)) for rank in range(RANKS)]
    q = torch.cat([each[0].flatten(1) for each in found], dim=1)
    k = torch.cat([found[rank][1].flatten(1) for rank in (0, 2)], dim=1)
    torch.testing.assert_close(q, norms[0](q_TW), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(k, norms[1](k_TW), rtol=1e-5, atol=1e-5)
