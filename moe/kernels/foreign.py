"""Weights of routes whose experts another rank holds become 0, so that nobody sums them.

Owns one elementwise kernel. P routes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.kernels.align import load_local

_BLOCK = 256


@triton.jit(do_not_specialize=["P"])
def _drop_foreign_kernel(
    weights_ptr, ids_ptr, map_ptr, out_ptr, P, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    routes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    wait_for_previous(PDL)
    local = load_local(ids_ptr, map_ptr, routes, P, True)
    weights = tl.load(weights_ptr + routes, mask=local >= 0, other=0.0)
    tl.store(out_ptr + routes, weights, mask=routes < P)


def drop_foreign(
    weights_TK: torch.Tensor,
    ids_TK: torch.Tensor,
    expert_map_E: torch.Tensor,
    *,
    out_TK: torch.Tensor,
    pdl: bool,
) -> None:
    """`weights_TK` where `expert_map_E` of the id is not −1, else 0; ids of −1 have no expert."""
    P = ids_TK.numel()
    assert weights_TK.shape == ids_TK.shape == out_TK.shape
    assert weights_TK.is_contiguous() and ids_TK.is_contiguous() and out_TK.is_contiguous()
    _drop_foreign_kernel[(triton.cdiv(P, _BLOCK),)](
        weights_TK, ids_TK, expert_map_E, out_TK, P, BLOCK=_BLOCK, **launch_options(pdl)
    )
