"""Compiles the GEMM of a router of fp32 for a Hopper GPU.

``python -m tests.moe.base.compile_fp32_weights`` writes each launch's kernel and bytes of shared
memory: routers of 64 and 384 experts, for one row, few and many.
"""

from __future__ import annotations

import torch

from moe.base.context import KernelContext
from moe.base.gemm import linear_parts
from moe.base.tiles import TileTable
from moe.base.weight import Weight
from moe.base.workspace import Workspace
from tests.absent_gpu import SHARED_BYTES, compile_launches, tell

META = torch.device("meta")

if __name__ == "__main__":
    launches = compile_launches()
    tiles = TileTable(dtype="bfloat16", item_size=2, shared_bytes=SHARED_BYTES)
    context = KernelContext(workspace=Workspace(META), tiles=tiles, pdl=True, num_cores=132)
    for num_experts, hidden in ((64, 2048), (384, 7168)):
        weight = Weight(torch.empty(num_experts, hidden, device=META))
        for rows in (1, 16, 64, 512, 8192):
            x = torch.empty(rows, hidden, dtype=torch.bfloat16, device=META)
            linear_parts(x, weight, context, "router", dtype=torch.float32)
    tell(launches)
