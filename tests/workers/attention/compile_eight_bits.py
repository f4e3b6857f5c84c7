"""Compiles attention that writes eight bits for a Hopper GPU.

``python -m tests.workers.attention.compile_eight_bits HEAD_DIM`` writes each launch's kernel and
bytes of shared memory: of prompts in whole tiles and split ones and of decodes in every cut, over a
cache of bf16 and of FP8. Over bf16 a thread must load 16 bytes side by side, not 32 because it also
writes 16 numbers of eight bits.
"""

from __future__ import annotations

import sys

import torch

from moe.base.quantized import Quantized
from tests.absent_gpu import compile_launches, tell
from workers.attention.kernels.decode_attention import decode_attention
from workers.attention.kernels.prefill_attention import PrefillWorkspace, prefill_attention
from workers.attention.kv_cache import FP8, SCALE_DTYPE, LayerCache
from workers.attention.plan import CHUNK_FIELDS, prefill_tiles
from workers.attention.prefill_split import SPLIT_FIELDS

META = torch.device("meta")
N, K, BLOCK_SIZE = 32, 4, 16
WIDE = "sizePerThread = [1, 16]"


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def ints(*shape: int) -> torch.Tensor:
    return empty(*shape, dtype=torch.int32)


def operands(num_rows: int, dim: int, *, fp8: bool) -> tuple[torch.Tensor, LayerCache, Quantized]:
    dtype = FP8 if fp8 else torch.bfloat16
    entries = [empty(64, BLOCK_SIZE, K, dim, dtype=dtype) for _ in range(2)]
    scales = empty(64, K, BLOCK_SIZE, 2, dtype=SCALE_DTYPE) if fp8 else None
    out = Quantized(empty(num_rows, N * dim, dtype=FP8), empty(num_rows, N * dim // 128), 128)
    return empty(num_rows, N, dim, dtype=torch.bfloat16), LayerCache(*entries, scales), out


def prefills(num_tokens: int, dim: int, *, fp8: bool, split: bool) -> None:
    q_TND, cache, out = operands(num_tokens, dim, fp8=fp8)
    block_m = prefill_tiles(num_tokens, fp8=fp8, width=dim).block_m
    workspace = PrefillWorkspace(
        partials_CKMV=empty(528, K, block_m, dim),
        lse_CKM=empty(528, K, block_m),
        finished_CK=ints(528, K),
    )
    prefill_attention(
        q_TND, cache, ints(64, 256), ints(300, SPLIT_FIELDS if split else 4),
        scale=0.1, out=out, workspace=workspace if split else None, pdl=True,
    )  # fmt: skip


def decodes(num_rows: int, dim: int, *, fp8: bool) -> None:
    q_SND, cache, out = operands(num_rows, dim, fp8=fp8)
    chunks = ints(num_rows + 50, CHUNK_FIELDS)
    decode_attention(q_SND, cache, ints(64, 256), chunks, scale=0.1, out=out, pdl=True)


if __name__ == "__main__":
    dim = int(sys.argv[1])
    launches = compile_launches()
    for fp8 in (False, True):
        for num_tokens, split in ((8192, False), (2000, False), (2000, True)):
            prefills(num_tokens, dim, fp8=fp8, split=split)
        for num_rows in (1, 8, 64, 256):
            decodes(num_rows, dim, fp8=fp8)
        if not fp8:
            assert not any(WIDE in each.ttgir for each in launches)
    tell(launches)
