"""In which order the programs of a GEMM take its tiles of rows and blocks of columns.

Columns come first: programs that run side by side share a tile's rows, and the tiles that follow
find an expert's weights in the L2 cache. Where a matrix is too large to stay there, some tiles of
rows take each block of columns together, so that it is read once for all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LARGE = 8 << 20  # weights of a matrix: with two for gate and up, most of an H100's 50 MB in bf16
_TILES = 8  # of rows; of 128 rows and a depth of 4,096 they are 8 MB in bf16


@triton.constexpr_function
def together(num_weights: int) -> int:
    """Tiles of rows that take a block of columns together, of a matrix of so many weights."""
    return _TILES if num_weights >= _LARGE else 1


@triton.jit
def tile_and_columns(index, num_tiles, NUM_BLOCKS: tl.constexpr, TOGETHER: tl.constexpr):
    """The tile of rows and the block of columns, of NUM_BLOCKS, that come at ``index``."""
    if TOGETHER == 1:
        tile, block = index // NUM_BLOCKS, index % NUM_BLOCKS
    else:
        first = index // (TOGETHER * NUM_BLOCKS) * TOGETHER
        size = tl.minimum(TOGETHER, num_tiles - first)
        place = index - first * NUM_BLOCKS
        tile, block = first + place % size, place // size
    return tile, block
