"""Expert GEMMs of few rows of eight bits, against fp64 products of those very numbers."""

from __future__ import annotations

import random

import pytest
import torch

from moe.base.context import make_context
from moe.base.tiles import FP8_NAME, ExpertTiles, Tiles, experts_key
from moe.kernels.eight_bits import eight_bit_gemms
from moe.kernels.narrow_fp8 import experts_narrow_fit
from moe.placement import ExpertPlacement
from tests.moe.builders import interpreted
from tests.moe.fp8 import ROWS, make_fp8
from tests.moe.kernels.grouped import DEVICE, make_fp8_experts, make_ids
from tests.moe.kernels.test_wide_fp8 import check

pytestmark = pytest.mark.interpreter


def tile(block_n: int = 64, block_k: int = 128, block_m: int = 16, **fields: int) -> Tiles:
    return Tiles(
        block_m=block_m, block_n=block_n, block_k=block_k, stages=2, swap=True, **fields
    )  # fmt: skip


@pytest.mark.parametrize(
    ("block", "H", "width", "gate_up", "down"),
    [
        ((128, 128), 256, 128, tile(), tile(128)),
        ((128, 128), 256, 256, tile(128), tile(64, 64)),
        ((64, 64), 128, 64, tile(), tile()),
        (ROWS, 128, 192, tile(64, 32), tile(64, 64)),
    ],
    ids=str,
)
def test_routes(block: tuple[int, int], H: int, width: int, gate_up: Tiles, down: Tiles) -> None:
    tiles = ExpertTiles(gate_up=gate_up, down=down)
    check(make_ids(7, 3, 2, DEVICE), E=3, H=H, width=width, tiles=tiles, block=block)


def test_routes_of_other_ranks_and_tiles_of_no_expert() -> None:
    place = ExpertPlacement(num_experts=8, num_ranks=3, rank=1)
    ids, index = make_ids(11, 8, 4, DEVICE), place.expert_map(DEVICE)
    tiles = ExpertTiles(gate_up=tile(), down=tile())
    check(ids, E=place.num_local, H=128, width=64, tiles=tiles, block=(64, 64),
          expert_map_E=index, gaps=True)  # fmt: skip


@pytest.mark.parametrize(
    ("gate_up", "down"),
    [
        (tile(32), tile()),
        (tile(128), tile()),  # 192 columns are no whole groups of it
        (tile(), tile(256)),
        (Tiles(block_m=16, block_n=64, block_k=128), tile()),
    ],
    ids=str,
)
def test_tiles_that_do_not_fit(gate_up: Tiles, down: Tiles) -> None:
    weights = make_fp8((2, 384, 128), ROWS, size=1.0), make_fp8((2, 128, 192), ROWS, size=1.0)
    assert experts_narrow_fit(ExpertTiles(gate_up=tile(), down=tile()), *weights)
    assert not experts_narrow_fit(ExpertTiles(gate_up=gate_up, down=down), *weights)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a context without a device")
@pytest.mark.parametrize(
    ("tokens", "dtype", "expected"),
    [(4, torch.float16, None), (5, torch.float16, 16), (511, torch.float16, 64),
     (5, torch.float32, None)],
)  # fmt: skip
def test_guessed_tiles_take_eight_bits(
    tokens: int, dtype: torch.dtype, expected: int | None
) -> None:
    """From more routes on than matrix-vector kernels compute."""
    w13, w2 = make_fp8_experts(64, 128, 128, (128, 128), DEVICE)
    gemms = eight_bit_gemms(tokens, 8, w13, w2, None, interpreted(dtype))
    assert (gemms and gemms.block_m) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("block", [(128, 128), ROWS], ids=str)
@pytest.mark.parametrize("T", [5, 16, 64, 256, 500])
def test_real_shapes(T: int, block: tuple[int, int]) -> None:
    """Qwen3-30B-A3B on the tiles in use, all of a batch and half of it."""
    context = make_context(torch.device("cuda"), torch.bfloat16)
    for num_ranks in (1, 2):
        place = ExpertPlacement(num_experts=128, num_ranks=num_ranks, rank=num_ranks - 1)
        tiles = context.tiles.experts(place.num_local, 768, 2048, T, T * 8, weights=FP8_NAME)
        if not tiles.gate_up.swap:
            pytest.skip(f"{experts_key(place.num_local, 768, 2048, FP8_NAME)} has other tiles")
        check(
            make_ids(T, 128, 8, "cuda"), E=place.num_local, H=2048, width=768, tiles=tiles,
            block=block, dtype=torch.bfloat16, device="cuda", pdl=context.pdl,
            expert_map_E=None if num_ranks == 1 else place.expert_map("cuda"),
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("T", [40, 200])
def test_experts_too_large_for_the_cache(T: int) -> None:
    """Whose tiles take blocks of columns together."""
    context = make_context(torch.device("cuda"), torch.bfloat16)
    check(
        make_ids(T, 3, 2, "cuda"), E=3, H=4096, width=2048, block=(128, 128), device="cuda",
        tiles=context.tiles.experts(3, 2048, 4096, T, T * 2, weights=FP8_NAME),
        dtype=torch.bfloat16, pdl=context.pdl,
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(30))
def test_random_shapes(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    block = draw.choice([(128, 128), (128, 128), (64, 64), ROWS])
    wide = draw.choice([64, 128]) if block != (64, 64) else 64
    block_m = draw.choice([16, 32, 64])
    gate_up, down = (
        Tiles(
            block_m=block_m, block_n=columns, block_k=draw.choice([64, 128]),
            warps=4, stages=draw.choice([2, 3, 4]), swap=True,
        )
        for columns in (wide, draw.choice([64, 128]) if block != (64, 64) else 64)
    )  # fmt: skip
    E, T = draw.randint(1, 9), draw.randint(1, 200)
    check(
        make_ids(T, E, min(E, draw.randint(1, 8)), "cuda"), E=E, H=draw.randint(1, 8) * 128,
        width=draw.randint(1, 8) * 128, tiles=ExpertTiles(gate_up=gate_up, down=down), block=block,
        dtype=torch.bfloat16, device="cuda", pdl=draw.choice([False, True]),
        gaps=draw.choice([False, True]),
    )  # fmt: skip
