"""How often each expert was asked for, and how many local ones a step had to read.

Owns two counters of the live roofline. Does not know what they are used for.
L layers, P routes (capacity of the buffer), E global experts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous

_BLOCK = 2048


@triton.jit(do_not_specialize=["num_routes", "num_last"])
def _expert_load_kernel(
    ids_ptr, num_routes, num_last, load_ptr, hit_ptr, stride_l, E: tl.constexpr,
    FIRST_LOCAL: tl.constexpr, NUM_LOCAL: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One layer: its row of the load is this program's alone."""
    layer = tl.program_id(0)
    experts_E, routes = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK)
    wait_for_previous(PDL)
    num_routes = tl.where(layer == tl.num_programs(0) - 1, num_last, num_routes)
    ids_ptr += layer.to(tl.int64) * stride_l
    counts_E = tl.zeros((BLOCK_E,), dtype=tl.int32)
    start = 0
    while start < num_routes:
        ids = tl.load(ids_ptr + start + routes, mask=start + routes < num_routes, other=-1)
        counts_E += tl.histogram(ids, BLOCK_E, mask=ids >= 0)
        start += BLOCK
    load_ptrs = load_ptr + layer * E + experts_E
    load_E = tl.load(load_ptrs, mask=experts_E < E, other=0)
    tl.store(load_ptrs, load_E + counts_E, mask=experts_E < E)
    is_local_E = (experts_E >= FIRST_LOCAL) & (experts_E < FIRST_LOCAL + NUM_LOCAL)
    tl.store(hit_ptr + layer, tl.sum((is_local_E & (counts_E > 0)).to(tl.int32), axis=0))


def expert_load(
    ids_LP: torch.Tensor,
    num_routes: int,
    num_last: int,
    load_LE: torch.Tensor,
    hit_L: torch.Tensor,
    first_local: int,
    num_local: int,
    *,
    pdl: bool = False,
) -> None:
    """Add a step's routes to ``load_LE``; set ``hit_L`` to the number of local experts it hit.

    Args:
        ids_LP: int32 global ids, −1 for none; the first ``num_routes`` of each layer count,
            ``num_last`` of the last one.
        load_LE: int64, added to.
        hit_L: int32, overwritten.
        first_local, num_local: local experts are first_local … first_local + num_local − 1.
    """
    L, P = ids_LP.shape
    E = load_LE.shape[1]
    assert ids_LP.dtype == torch.int32
    assert ids_LP.stride(1) == 1
    assert load_LE.shape == (L, E)
    assert load_LE.dtype == torch.int64
    assert load_LE.is_contiguous()
    assert hit_L.shape == (L,)
    assert hit_L.dtype == torch.int32
    assert hit_L.is_contiguous()
    assert 0 <= first_local <= first_local + num_local <= E
    assert num_routes <= P and num_last <= P
    _expert_load_kernel[(L,)](
        ids_LP, num_routes, num_last, load_LE, hit_L, ids_LP.stride(0), E=E,
        FIRST_LOCAL=first_local, NUM_LOCAL=num_local,
        BLOCK_E=triton.next_power_of_2(E), BLOCK=_BLOCK, num_warps=8, **launch_options(pdl),
    )  # fmt: skip
