"""embed against indexing."""

from __future__ import annotations

import pytest
import torch

from workers.layers.kernels.embed import embed

pytestmark = pytest.mark.interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check(T: int, V: int, H: int, dtype: torch.dtype, device: str) -> None:
    """Given tokens, last tokens of slots, and padding, at random."""
    num_slots = T + 3
    last_token = torch.randint(0, V, (num_slots,), device=device, dtype=torch.int32)
    slots = torch.randperm(num_slots, device=device)[:T].int()
    slots = slots.masked_fill(torch.rand(T, device=device) < 0.3, -1)
    ids = torch.randint(0, V, (T,), device=device, dtype=torch.int32)
    ids = ids.masked_fill(torch.rand(T, device=device) < 0.5, -1)
    table = torch.randn(V, H, device=device).to(dtype)
    out = torch.full((T, H), torch.nan, dtype=dtype, device=device)
    assert embed(ids, slots, last_token, table, out_TH=out) is out
    drawn = last_token[slots.clamp(min=0).long()].masked_fill(slots < 0, 0)
    assert torch.equal(out, table[torch.where(ids < 0, drawn, ids).long()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("T", "H"), [(0, 8), (1, 48), (5, 33), (19, 64)])
def test_rows(T: int, H: int, dtype: torch.dtype) -> None:
    check(T, 23, H, dtype, DEVICE)


@pytest.mark.gpu
@pytest.mark.parametrize("T", [1, 256, 8192])
@pytest.mark.parametrize("H", [2048, 4096])
def test_real_shapes(T: int, H: int) -> None:
    check(T, 151936, H, torch.bfloat16, "cuda")
