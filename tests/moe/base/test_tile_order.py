"""Every tile of rows meets every block of columns once, in the order that caches want."""

import pytest
import torch
import triton
import triton.language as tl

from moe.base.tile_order import tile_and_columns, together
from tests.moe.kernels.grouped import DEVICE

pytestmark = pytest.mark.interpreter


@triton.jit
def _order_kernel(tiles_ptr, blocks_ptr, num_tiles, NUM: tl.constexpr, TOGETHER: tl.constexpr):
    tile, block = tile_and_columns(tl.program_id(0), num_tiles, NUM, TOGETHER)
    tl.store(tiles_ptr + tl.program_id(0), tile)
    tl.store(blocks_ptr + tl.program_id(0), block)


def order(num_tiles: int, num_blocks: int, tiles_together: int) -> list[tuple[int, int]]:
    tiles, blocks = torch.full((2, num_tiles * num_blocks), -1, device=DEVICE, dtype=torch.int32)
    _order_kernel[(num_tiles * num_blocks,)](
        tiles, blocks, num_tiles, NUM=num_blocks, TOGETHER=tiles_together
    )
    return list(zip(tiles.tolist(), blocks.tolist(), strict=True))


@pytest.mark.parametrize("num_tiles", [1, 7, 8, 9, 16, 21])
@pytest.mark.parametrize("num_blocks", [1, 3, 6])
def test_every_pair_comes_once(num_tiles: int, num_blocks: int) -> None:
    pairs = [(tile, block) for tile in range(num_tiles) for block in range(num_blocks)]
    assert order(num_tiles, num_blocks, 1) == pairs
    # Groups of tiles one after the other, in each of them blocks of columns one after the other.
    pairs.sort(key=lambda pair: (pair[0] // 8, pair[1], pair[0]))
    assert order(num_tiles, num_blocks, 8) == pairs


def test_only_large_matrices_are_read_by_some_tiles_together() -> None:
    """Mixtral-8x7B's experts; not Qwen3-30B-A3B's."""
    assert together(14_336 * 4096) == 8
    assert together(768 * 2048) == 1
