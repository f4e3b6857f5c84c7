"""Attention that writes eight bits: the very bits that `quantize_rows` makes of what it writes
otherwise, whichever program writes a row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moe.base.quantize_rows import quantize_rows
from moe.base.quantized import Quantized
from tests.workers.attention.test_kernels import Heads, paged, queries
from workers.attention.kernels.decode_attention import decode_attention
from workers.attention.kernels.prefill_attention import PrefillWorkspace, prefill_attention
from workers.attention.kv_cache import FP8
from workers.attention.plan import (
    CHUNK_ROW,
    DecodeTiles,
    PrefillTiles,
    decode_capacity,
    decode_tiles,
    plan_decode,
    plan_prefill,
    prefill_tile_tokens,
    prefill_tiles,
)
from workers.attention.prefill_split import NUM_SPLITS, split_tiles

LEFT = 7.0  # what is in rows that nobody writes
SHAPES = [
    pytest.param(Heads(num=4, kv=2, dim=16, v_dim=128, block_size=16), id="a group a head"),
    pytest.param(Heads(num=3, kv=1, dim=16, v_dim=384, block_size=16), id="three groups a head"),
]
ONE, THREE = (each.values[0] for each in SHAPES)
# Of a whole model; its caches are of bf16 or FP8.
REAL = Heads(num=32, kv=4, dim=128, block_size=16)


def held(num_rows: int, heads: Heads, device: str) -> Quantized:
    shape = num_rows, heads.num * heads.dims[1]
    values = torch.full(shape, LEFT, device=device).to(FP8)
    return Quantized(values, torch.full((shape[0], shape[1] // 128), LEFT, device=device), 128)


def assert_same_bits(found: Quantized, plain_TNV: torch.Tensor) -> None:
    expected = held(len(plain_TNV), Heads(num=1, kv=1, dim=found.shape[1], block_size=1), "cpu")
    device = plain_TNV.device
    expected = Quantized(expected.values.to(device), expected.scales.to(device), 128)
    quantize_rows(plain_TNV.flatten(1), out=expected, pdl=False)
    assert torch.equal(found.scales, expected.scales)
    assert torch.equal(found.values.view(torch.uint8), expected.values.view(torch.uint8))


def check_decode(
    lengths: list[int],
    heads: Heads,
    dtype: torch.dtype,
    device: str,
    *,
    capacity: int,
    tiles: DecodeTiles,
    cache_dtype: torch.dtype | None = None,
    has_sinks: bool = False,
) -> set[int]:
    """Gives the numbers of chunks that rows have."""
    cache = paged(lengths, heads, cache_dtype or dtype, device)
    q_SND = queries(len(lengths), heads, dtype, device)
    plan = plan_decode(np.array(lengths), cache.slots, capacity, tiles.unit)
    sinks_N = torch.randn(heads.num, device=device) if has_sinks else None

    def launch(out: torch.Tensor | Quantized | None) -> torch.Tensor | Quantized:
        return decode_attention(
            q_SND, cache.layer, cache.tables, torch.from_numpy(plan).to(device),
            scale=heads.dim**-0.5, sinks_N=sinks_N, out=out, tiles=tiles,
        )  # fmt: skip

    found, plain_SNV = launch(held(len(lengths), heads, device)), launch(None)
    assert isinstance(found, Quantized)
    assert isinstance(plain_SNV, torch.Tensor)
    assert_same_bits(found, plain_SNV)
    return set(np.bincount(plan[:, CHUNK_ROW] + 1, minlength=len(lengths) + 1)[1:].tolist())


def check_prefill(
    rows: list[tuple[int, int]],
    heads: Heads,
    dtype: torch.dtype,
    device: str,
    *,
    tiles: PrefillTiles,
    fill: int = 0,
    window: int | None = None,
    cache_dtype: torch.dtype | None = None,
    has_sinks: bool = False,
) -> set[int]:
    """Rows of (position, tokens) behind two tokens that are none of prefill's. Gives the numbers
    of splits that tiles have."""
    lengths = [position + tokens for position, tokens in rows]
    cache = paged(lengths, heads, cache_dtype or dtype, device)
    num_tokens = np.array([tokens for _, tokens in rows])
    plan = plan_prefill(
        num_tokens,
        np.array([position for position, _ in rows]),
        2 + np.cumsum(num_tokens) - num_tokens,
        cache.slots,
        prefill_tile_tokens(tiles.block_m, heads.num, heads.kv),
    )
    workspace, splits = None, {0}
    if fill:
        plan = split_tiles(plan, fill, tiles.unit)
        splits = set(plan[:, NUM_SPLITS].tolist())
        shape = (2 * fill, heads.kv, tiles.block_m, heads.dims[1])
        workspace = PrefillWorkspace(
            partials_CKMV=torch.full(shape, torch.nan, device=device),
            lse_CKM=torch.full(shape[:3], torch.nan, device=device),
            finished_CK=torch.zeros(shape[:2], dtype=torch.int32, device=device),
        )
    q_TND = queries(2 + int(num_tokens.sum()), heads, dtype, device)
    sinks_N = torch.randn(heads.num, device=device) if has_sinks else None
    found = held(len(q_TND), heads, device)
    plain_TNV = torch.full((*q_TND.shape[:2], heads.dims[1]), torch.nan, dtype=dtype, device=device)
    for out in (found, plain_TNV):
        prefill_attention(
            q_TND, cache.layer, cache.tables, torch.from_numpy(plan).to(device),
            scale=heads.dim**-0.5, window=window, sinks_N=sinks_N, out=out,
            workspace=workspace, tiles=tiles,
        )  # fmt: skip
    assert bool((found.values[:2].float() == LEFT).all() and (found.scales[:2] == LEFT).all())
    own = Quantized(found.values[2:], found.scales[2:], 128)
    assert_same_bits(own, plain_TNV[2:])
    return splits


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads", SHAPES)
@pytest.mark.parametrize("join", [4, 0], ids=["joined by the last", "joined apart"])
def test_decodes(join: int, heads: Heads, dtype: torch.dtype) -> None:
    """Rows of one chunk and of several, and of padding: zeros."""
    tiles = DecodeTiles(unit=16, tile=16, join=join)
    lengths = [1, 0, 17, 33, 70]
    chunks = check_decode(
        lengths, heads, dtype, "cpu", capacity=9, tiles=tiles, has_sinks=heads is THREE
    )
    assert chunks >= {1, 2, 3}


@pytest.mark.interpreter
@pytest.mark.parametrize("join", [4, 0])
def test_decodes_over_a_cache_of_eight_bits(join: int) -> None:
    tiles = DecodeTiles(unit=16, tile=16, join=join)
    check_decode([5, 40, 64], ONE, torch.bfloat16, "cpu", capacity=9, tiles=tiles, cache_dtype=FP8)


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads", SHAPES)
@pytest.mark.parametrize("fill", [0, 20], ids=["whole", "split"])
def test_prefills(fill: int, heads: Heads, dtype: torch.dtype) -> None:
    rows = [(90, 5), (5, 1), (0, 13)]
    tiles = PrefillTiles(block_m=16, block_n=16, unit=16)
    splits = check_prefill(
        rows, heads, dtype, "cpu", tiles=tiles, fill=fill, has_sinks=heads is THREE
    )
    assert splits == {0} if not fill else {0} < splits


@pytest.mark.interpreter
def test_prefills_with_a_window_and_over_a_cache_of_eight_bits() -> None:
    rows, tiles = [(40, 5), (0, 13)], PrefillTiles(block_m=16, block_n=16)
    check_prefill(rows, ONE, torch.float16, "cpu", tiles=tiles, window=7)
    check_prefill(rows, ONE, torch.bfloat16, "cpu", tiles=tiles, cache_dtype=FP8)


@pytest.mark.interpreter
def test_heads_that_are_no_whole_groups_are_refused() -> None:
    heads = Heads(num=4, kv=2, dim=16, v_dim=64, block_size=16)
    with pytest.raises(AssertionError, match="a head of 64 in groups of 128"):
        check_decode([5], heads, torch.float16, "cpu", capacity=4, tiles=DecodeTiles(join=0))


@pytest.mark.gpu
@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, FP8])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("dim", [128, 256])
@pytest.mark.parametrize("num_rows", [1, 12, 60, 200])
def test_decodes_of_real_shapes(
    num_rows: int, dim: int, has_sinks: bool, cache_dtype: torch.dtype
) -> None:
    heads = Heads(num=32, kv=4, dim=dim, block_size=16)
    lengths = [5000, *np.random.default_rng(0).integers(0, 700, num_rows - 1).tolist()]
    check_decode(
        lengths, heads, torch.bfloat16, "cuda",
        capacity=decode_capacity(num_rows, heads.kv, 132),
        tiles=decode_tiles(num_rows, fp8=cache_dtype == FP8, width=dim),
        cache_dtype=cache_dtype, has_sinks=has_sinks,
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, FP8])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("dim", [128, 256])
@pytest.mark.parametrize(("num_tokens", "fill"), [(8192, 0), (2000, 0), (2000, 66)])
def test_prefills_of_real_shapes(
    num_tokens: int, fill: int, dim: int, has_sinks: bool, cache_dtype: torch.dtype
) -> None:
    heads = Heads(num=32, kv=4, dim=dim, block_size=16)
    rows = [(5000, 100), (1, 1), (0, 30), (900, 1), (0, 400)]
    check_prefill(
        rows, heads, torch.bfloat16, "cuda",
        tiles=prefill_tiles(num_tokens, fp8=cache_dtype == FP8, width=dim),
        fill=fill, cache_dtype=cache_dtype, has_sinks=has_sinks,
    )  # fmt: skip


@pytest.mark.gpu
def test_prefills_with_a_window_of_real_shapes() -> None:
    rows = [(5000, 100), (1, 1), (0, 30), (900, 1), (0, 400)]
    tiles = prefill_tiles(8192)
    check_prefill(rows, REAL, torch.bfloat16, "cuda", tiles=tiles, window=128)
