"""The experts of a step by kernels against plain torch, which has no kernels."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from moe.base.tiles import FP8_NAME, ExpertTiles, Tiles, experts_key
from moe.routes import TopK
from moe.runner import fused_experts
from tests.moe.builders import interpreted
from tests.moe.kernels.grouped import DEVICE, make_fp8_experts, make_ids

pytestmark = pytest.mark.interpreter


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted")
@pytest.mark.parametrize("block_m", [1, 16])
def test_weights_of_eight_bits_have_tiles_of_their_own(block_m: int) -> None:
    """Those of the model's type would fail here."""
    E, H, width, T = 3, 64, 32, 5
    context = interpreted()
    tiles = Tiles(block_m=block_m, block_n=16, block_k=32)
    wrong = dataclasses.replace(tiles, block_n=24)
    context.tiles.experts_tables.update(
        {
            experts_key(E, width, H, FP8_NAME): {1: ExpertTiles(gate_up=tiles, down=tiles)},
            experts_key(E, width, H, "float32"): {1: ExpertTiles(gate_up=wrong, down=wrong)},
        }
    )
    w13, w2 = make_fp8_experts(E, H, width, (32, 16), DEVICE)
    hidden = torch.randn(T, H)
    topk = TopK(torch.rand(T, 2), make_ids(T, E, 2, DEVICE).clamp(min=0))
    ours = fused_experts(hidden, topk, w13, w2, None, context).total(torch.float32, context)
    plain = fused_experts(hidden, topk, w13, w2, None).total(torch.float32)
    torch.testing.assert_close(ours, plain, rtol=2e-5, atol=2e-5)
