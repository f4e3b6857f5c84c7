"""Compiles what `moe.base.specialized_fp8` launches for a Hopper GPU.

``python -m tests.moe.base.compile_specialized`` writes each launch's kernel and bytes of shared
memory: gate·up, down and a dense GEMM, with scales of blocks and of rows, of
small matrices and of large ones.
"""

from __future__ import annotations

import itertools

import torch

from moe.base.quantized import Quantized
from moe.base.specialized_fp8 import specialized_down, specialized_gate_up, specialized_linear
from moe.base.weight import Weight
from moe.kernels.align import Alignment
from tests.absent_gpu import compile_launches, tell

META = torch.device("meta")
FP8 = torch.float8_e4m3fn
E, K, T = 8, 2, 1000
SIZES = (512, 256), (4096, 2048)  # hidden and expert width; the latter are read by tiles together


def rows(count: int, columns: int) -> Quantized:
    values = torch.empty(count, columns, dtype=FP8, device=META)
    return Quantized(values, torch.empty(count, columns // 128, device=META), 128)


def weight(block: tuple[int, int], *shape: int) -> Weight:
    bn, bk = block[0], block[1] or shape[-1]
    scales = torch.empty(*shape[:-2], shape[-2] // bn, shape[-1] // bk, device=META)
    return Weight(torch.empty(shape, dtype=FP8, device=META), scales, (bn, bk))


def ints(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.int32, device=META)


def plain(count: int, columns: int) -> torch.Tensor:
    return torch.empty(count, columns, dtype=torch.bfloat16, device=META)


if __name__ == "__main__":
    launches = compile_launches()
    aligned = Alignment(ints(T * K), ints(E + 1), ints(30), ints(30))
    for block, (H, width) in itertools.product(((128, 128), (1, 0)), SIZES):
        inner, outputs = rows(T * K, width), 2 * width + 256
        w13, w2 = weight(block, E, 2 * width, H), weight(block, E, H, width)
        specialized_gate_up(rows(T, H), w13, aligned, K, out_PI=inner, pdl=True)
        specialized_down(inner, w2, aligned, out_PH=plain(T * K, H), pdl=True)
        dense = weight(block, outputs, H)
        specialized_linear(rows(T, H), dense, out_MN=plain(T, outputs), pdl=True)
    tell(launches)
