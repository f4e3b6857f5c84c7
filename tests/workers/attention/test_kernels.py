"""Paged attention kernels against plain torch in fp32, over caches that hold NaN wherever a row
has no business. Shapes: S rows, T query tokens, L context, N query heads, K key heads."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch

from workers.attention.kernels.decode_attention import DecodeWorkspace, decode_attention
from workers.attention.kernels.prefill_attention import PrefillWorkspace, prefill_attention
from workers.attention.kv_cache import FP8, SCALE_DTYPE, LayerCache
from workers.attention.plan import (
    CHUNK_FIELDS,
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
from workers.attention.prefill_split import NUM_SPLITS, SPLIT_FIELDS, split_tiles

pytestmark = pytest.mark.interpreter

# Dtype and block size.
CACHES = [(torch.float32, 4), (torch.float32, 5), (torch.float32, 16), (torch.float16, 16)]
# Query heads a key head and head_dim: the caches of the default run, each with two of these.
SIZES = {(1, 8): (0, 1), (2, 128): (2, 3), (3, 24): (1, 3), (8, 16): (0, 2)}
CASES = [
    pytest.param(*cache, group, dim, marks=() if number in usual else pytest.mark.grid)
    for (group, dim), usual in SIZES.items()
    for number, cache in enumerate(CACHES)
]

# Largest error of a row over the row's largest value.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """N, K, D, the cache's block size, and numbers of a value; None: D."""

    num: int
    kv: int
    dim: int
    block_size: int
    v_dim: int | None = None

    @property
    def dims(self) -> tuple[int, int]:
        """Numbers of a key and of a value."""
        return self.dim, self.dim if self.v_dim is None else self.v_dim


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a layer's attention has besides; scale None: 1 / sqrt(D)."""

    scale: float | None = None
    window: int | None = None
    sinks_N: torch.Tensor | None = None

    def scale_of(self, head_dim: int) -> float:
        return head_dim**-0.5 if self.scale is None else self.scale


PLAIN = Options()
REAL = Heads(num=32, kv=4, dim=128, block_size=16)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Paged:
    """A cache with the contexts of some rows, and what it holds of those, in one piece."""

    layer: LayerCache
    tables: torch.Tensor
    slots: np.ndarray
    k_LKD: list[torch.Tensor]
    v_LKD: list[torch.Tensor]


def nowhere(num_blocks: int, heads: Heads, dtype: torch.dtype, device: str) -> LayerCache:
    """A cache of NaN."""
    shape = (num_blocks, heads.block_size, heads.kv)
    keys, values = (
        torch.full((*shape, dim), torch.nan, dtype=torch.float32, device=device).to(dtype)
        for dim in heads.dims
    )
    scales = None
    if dtype == FP8:
        shape = (num_blocks, heads.kv, heads.block_size, 2)
        scales = torch.full(shape, torch.nan, dtype=SCALE_DTYPE, device=device)
    return LayerCache(keys, values, scales)


def paged(
    lengths: list[int], heads: Heads, dtype: torch.dtype, device: str, seed: int = 0
) -> Paged:
    """Rows in shuffled slots and blocks; NaN in all other blocks and behind each length; table
    entries behind a row's own name blocks of NaN. What FP8 holds is of any size."""
    generator = torch.Generator(device).manual_seed(seed)
    rng = np.random.default_rng(seed)
    counts = [-(-length // heads.block_size) for length in lengths]
    num_blocks = sum(counts) + 3
    layer = nowhere(num_blocks, heads, dtype, device)
    blocks = rng.permutation(num_blocks)
    slots = rng.permutation(len(lengths) + 2)[: len(lengths)]
    foreign = blocks[sum(counts) :]
    tables = rng.choice(foreign, (len(lengths) + 2, max(counts) + 2)).astype(np.int32)
    k_LKD, v_LKD = [], []
    start = 0
    for slot, length, count in zip(slots, lengths, counts, strict=True):
        own = blocks[start : start + count]
        start += count
        tables[slot, :count] = own
        at = torch.arange(length, device=device)
        at_block = torch.from_numpy(own).to(device)[at // heads.block_size]
        pieces = [
            torch.randn((length, heads.kv, dim), generator=generator, device=device)
            for dim in heads.dims
        ]
        if dtype == FP8:
            size = (length, heads.kv, 1)
            pieces[1] *= (4 * torch.randn(size, generator=generator, device=device)).exp2()
        else:
            pieces = [piece.to(dtype) for piece in pieces]
        layer.write(at_block * heads.block_size + at % heads.block_size, *pieces)
        held_dtype = torch.float64 if dtype == FP8 else dtype
        k, v = layer.read(torch.from_numpy(own).to(device), held_dtype)
        k_LKD.append(k.flatten(0, 1)[:length])
        v_LKD.append(v.flatten(0, 1)[:length])
    return Paged(
        layer=layer,
        tables=torch.from_numpy(tables).to(device),
        slots=slots,
        k_LKD=k_LKD,
        v_LKD=v_LKD,
    )


def queries(num_tokens: int, heads: Heads, dtype: torch.dtype, device: str) -> torch.Tensor:
    """``[T, N, D]`` in the middle of longer rows, as a fused projection leaves them; large
    enough that few keys take most of the weight."""
    generator = torch.Generator(device).manual_seed(num_tokens)
    wide = torch.randn(
        (num_tokens, heads.num + 2 * heads.kv, heads.dim), generator=generator, device=device
    )
    return (2 * wide).to(dtype)[:, : heads.num]


def oracle(
    q_TND: torch.Tensor, k_LKD: torch.Tensor, v_LKD: torch.Tensor, options: Options = PLAIN
) -> torch.Tensor:
    """Causal attention of the last T tokens of a context ``[T, N, V]``, in fp32, or in fp64 where
    keys and values are; windows as in transformers' `sliding_window_overlay`, sinks as in
    `eager_attention_forward` of its gpt_oss."""
    dtype = torch.promote_types(k_LKD.dtype, torch.float32)
    num_tokens, num_heads, head_dim = q_TND.shape
    length, kv_heads, _ = k_LKD.shape
    group = num_heads // kv_heads
    k_LND = k_LKD.to(dtype).repeat_interleave(group, 1)
    v_LND = v_LKD.to(dtype).repeat_interleave(group, 1)
    scores_NTL = torch.einsum("tnd,lnd->ntl", q_TND.to(dtype), k_LND) * options.scale_of(head_dim)
    at_L = torch.arange(length, device=q_TND.device)
    at_T = at_L[length - num_tokens :, None]
    hidden_TL = at_L > at_T
    if options.window is not None:
        hidden_TL |= at_L <= at_T - options.window
    scores_NTL = scores_NTL.masked_fill(hidden_TL, -math.inf)
    if options.sinks_N is not None:
        sinks_NT1 = options.sinks_N.to(dtype)[:, None, None].expand(-1, num_tokens, 1)
        scores_NTL = torch.cat((scores_NTL, sinks_NT1), -1)
    weights_NTL = scores_NTL.softmax(-1)[..., :length]
    return torch.einsum("ntl,lnd->tnd", weights_NTL, v_LND)


def assert_close(ours_TND: torch.Tensor, expected_TND: torch.Tensor) -> None:
    error_T = (ours_TND.float() - expected_TND).abs().amax((1, 2))
    bound_T = TOLERANCE[ours_TND.dtype] * expected_TND.abs().amax((1, 2))
    assert bool((error_T <= bound_T).all()), (error_T / bound_T).tolist()


def check_decode(
    lengths: list[int],
    heads: Heads,
    dtype: torch.dtype,
    device: str,
    *,
    capacity: int,
    tiles: DecodeTiles,
    cache_dtype: torch.dtype | None = None,
    options: Options = PLAIN,
) -> np.ndarray:
    """Attend, compare, attend again, and give the number of chunks of each row."""
    cache = paged(lengths, heads, cache_dtype or dtype, device)
    q_SND = queries(len(lengths), heads, dtype, device)
    plan = plan_decode(np.array(lengths), cache.slots, capacity, tiles.unit, options.window)
    workspace = DecodeWorkspace.allocate(
        len(lengths), capacity, heads.num, heads.kv, heads.dims[1], device
    )
    workspace.partials_CNV.fill_(torch.nan)
    workspace.lse_CN.fill_(torch.nan)
    shape = (*q_SND.shape[:2], heads.dims[1])
    out = torch.full(shape, torch.nan, dtype=dtype, device=device)
    launch = functools.partial(
        decode_attention,
        q_SND,
        cache.layer,
        cache.tables,
        torch.from_numpy(plan).to(device),
        scale=options.scale_of(heads.dim),
        sinks_N=options.sinks_N,
        tiles=tiles,
    )
    ours = launch(out=out, workspace=workspace)
    assert ours is out
    assert not workspace.finished_SK.any()
    for row, length in enumerate(lengths):
        if length == 0:
            assert not out[row].any()
            continue
        expected = oracle(q_SND[row : row + 1], cache.k_LKD[row], cache.v_LKD[row], options)
        assert_close(out[row : row + 1], expected)
    for kept in (workspace, None):
        assert torch.equal(launch(workspace=kept), out)
    return np.bincount(plan[:, CHUNK_ROW] + 1, minlength=len(lengths) + 1)[1:]


SMALL = DecodeTiles(unit=16, tile=16, join=4, max_registers=128)


@pytest.mark.parametrize(("dtype", "block_size", "group", "dim"), CASES)
def test_decode_of_mixed_rows(dtype: torch.dtype, block_size: int, group: int, dim: int) -> None:
    """Lengths of 1, at and beside the edges of blocks, tiles and chunks; two padding rows."""
    heads = Heads(num=2 * group, kv=2, dim=dim, block_size=block_size)
    lengths = [1, 0, block_size, block_size + 1, 17, 32, 0, 33, 70]
    counts = check_decode(lengths, heads, dtype, "cpu", capacity=12, tiles=SMALL)
    assert set(counts) == {1, 2, 3}


@pytest.mark.parametrize("length", [1, 15, 16, 33, 200])
def test_decode_of_a_single_row(length: int) -> None:
    """As many chunks as tiles."""
    heads = Heads(num=8, kv=1, dim=16, block_size=16)
    counts = check_decode([length], heads, torch.float32, "cpu", capacity=40, tiles=SMALL)
    assert counts[0] == -(-length // 16)


@pytest.mark.parametrize(("join", "chunks"), [(1, 3), (2, 5), (16, 18), (128, 3)])
def test_decode_joins_chunks_in_blocks_of_any_size(join: int, chunks: int) -> None:
    heads = Heads(num=6, kv=2, dim=8, block_size=4)
    tiles = DecodeTiles(unit=16, tile=16, join=join)
    lengths = [16 * (chunks - 1) + 3, 5, 16 * 2]
    counts = check_decode(lengths, heads, torch.float32, "cpu", capacity=chunks + 7, tiles=tiles)
    assert counts.tolist() == [chunks, 1, 2]


@pytest.mark.parametrize(("unit", "tile"), [(16, 64), (64, 16), (32, 32)])
def test_decode_tiles_need_not_divide_chunks(unit: int, tile: int) -> None:
    heads = Heads(num=4, kv=2, dim=16, block_size=16)
    tiles = DecodeTiles(unit=unit, tile=tile, join=4)
    lengths = [16, 100, 0, 130, 1]
    counts = check_decode(lengths, heads, torch.float32, "cpu", capacity=9, tiles=tiles)
    assert counts.max() > 1


def test_decode_without_room_for_splits() -> None:
    heads = Heads(num=2, kv=1, dim=8, block_size=16)
    counts = check_decode([40, 0, 3], heads, torch.float32, "cpu", capacity=3, tiles=SMALL)
    assert counts.tolist() == [1, 1, 1]


def check_prefill(
    rows: list[tuple[int, int]],
    heads: Heads,
    dtype: torch.dtype,
    device: str,
    *,
    tiles: PrefillTiles,
    first_token: int = 2,
    fill: int = 0,
    cache_dtype: torch.dtype | None = None,
    options: Options = PLAIN,
) -> int:
    """Rows of (position, tokens), behind ``first_token`` tokens that are none of prefill's; with
    ``fill`` again with split tiles and padding. Gives the most parts of a tile."""
    lengths = [position + tokens for position, tokens in rows]
    cache = paged(lengths, heads, cache_dtype or dtype, device)
    num_tokens = np.array([tokens for _, tokens in rows])
    firsts = first_token + np.cumsum(num_tokens) - num_tokens
    q_TND = queries(first_token + int(num_tokens.sum()), heads, dtype, device)
    plan = plan_prefill(
        num_tokens,
        np.array([position for position, _ in rows]),
        firsts,
        cache.slots,
        prefill_tile_tokens(tiles.block_m, heads.num, heads.kv),
    )
    shape = (*q_TND.shape[:2], heads.dims[1])
    out = torch.full(shape, 7.0, dtype=dtype, device=device)
    launch = functools.partial(
        prefill_attention,
        q_TND,
        cache.layer,
        cache.tables,
        scale=options.scale_of(heads.dim),
        window=options.window,
        sinks_N=options.sinks_N,
        tiles=tiles,
    )
    assert launch(torch.from_numpy(plan).to(device), out=out) is out
    assert bool((out[:first_token] == 7).all())
    for row, (first, tokens) in enumerate(zip(firsts, num_tokens, strict=True)):
        q_own = q_TND[first : first + tokens]
        expected = oracle(q_own, cache.k_LKD[row], cache.v_LKD[row], options)
        assert_close(out[first : first + tokens], expected)
    return check_split(launch, plan, out, heads, tiles, fill) if fill else 1


def check_split(
    launch: functools.partial[torch.Tensor],
    plan: np.ndarray,
    whole_TND: torch.Tensor,
    heads: Heads,
    tiles: PrefillTiles,
    fill: int,
) -> int:
    """Whole tiles give the same bits as without SPLIT, joined ones nearly; twice the same."""
    entries = split_tiles(plan, fill, tiles.unit)
    padded = np.concatenate((entries, np.zeros((3, SPLIT_FIELDS), np.int32)))
    device = whole_TND.device
    shape = (2 * fill, heads.kv, tiles.block_m, heads.dims[1])
    workspace = PrefillWorkspace(
        partials_CKMV=torch.full(shape, torch.nan, device=device),
        lse_CKM=torch.full(shape[:3], torch.nan, device=device),
        finished_CK=torch.zeros(shape[:2], dtype=torch.int32, device=device),
    )
    outs = []
    for _ in range(2):
        out = torch.full_like(whole_TND, 7.0)
        launch(torch.from_numpy(padded).to(device), out=out, workspace=workspace)
        assert not workspace.finished_CK.any()
        outs.append(out)
    assert torch.equal(*outs)
    split_T = torch.zeros(len(whole_TND), dtype=torch.bool, device=device)
    for first, count in entries[entries[:, NUM_SPLITS] > 0, :2]:
        split_T[first : first + count] = True
    assert torch.equal(out[~split_T], whole_TND[~split_T])
    assert_close(out[split_T], whole_TND[split_T].float())
    return int(entries[:, NUM_SPLITS].max())


@pytest.mark.parametrize(("dtype", "block_size", "group", "dim"), CASES)
def test_prefill_of_split_tiles(dtype: torch.dtype, block_size: int, group: int, dim: int) -> None:
    """Chunks deep in long contexts beside one-token rows, some of them long, and a prompt; keys of
    the last part that the first queries of a tile must not see."""
    heads = Heads(num=2 * group, kv=2, dim=dim, block_size=block_size)
    rows = [(170, 5), (5, 1), (70, 1), (0, 3), (60, 3)]
    tiles = PrefillTiles(block_m=16, block_n=16, unit=16)
    parts = check_prefill(rows, heads, dtype, "cpu", tiles=tiles, fill=30)
    assert parts >= 3


@pytest.mark.parametrize(("block_m", "block_n"), [(16, 64), (64, 16), (32, 32)])
def test_split_tiles_of_any_size(block_m: int, block_n: int) -> None:
    heads = Heads(num=6, kv=2, dim=16, block_size=16)
    rows = [(0, 5), (330, 9), (200, 1)]
    tiles = PrefillTiles(block_m=block_m, block_n=block_n, unit=block_n)
    assert check_prefill(rows, heads, torch.float32, "cpu", tiles=tiles, fill=40) > 1


@pytest.mark.parametrize(("dtype", "block_size", "group", "dim"), CASES)
def test_prefill_of_mixed_rows(dtype: torch.dtype, block_size: int, group: int, dim: int) -> None:
    """Whole prompts and chunks behind a context, of one token and more than a tile."""
    heads = Heads(num=2 * group, kv=2, dim=dim, block_size=block_size)
    rows = [(0, 1), (0, 37), (20, 1), (15, 6), (33, 18)]
    check_prefill(rows, heads, dtype, "cpu", tiles=PrefillTiles(block_m=16, block_n=16))


@pytest.mark.parametrize(("block_m", "block_n"), [(16, 64), (64, 16), (32, 32), (128, 64)])
def test_prefill_tiles_of_any_size(block_m: int, block_n: int) -> None:
    heads = Heads(num=6, kv=2, dim=16, block_size=16)
    rows = [(0, 70), (50, 33), (64, 1), (63, 2)]
    tiles = PrefillTiles(block_m=block_m, block_n=block_n, max_registers=128)
    check_prefill(rows, heads, torch.float32, "cpu", tiles=tiles)


def test_prefill_of_nothing_launches_nothing() -> None:
    heads = Heads(num=2, kv=1, dim=8, block_size=16)
    cache = paged([5], heads, torch.float32, "cpu")
    q_TND = queries(3, heads, torch.float32, "cpu")
    out = torch.full(q_TND.shape, 7.0)
    plan = torch.zeros((0, 4), dtype=torch.int32)
    prefill_attention(q_TND, cache.layer, cache.tables, plan, scale=1.0, out=out)
    assert bool((out == 7).all())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "lengths",
    [
        [32768],
        [1],
        [1100],
        [0, 32768, 0, *range(1, 200)],
        np.random.default_rng(0).integers(1, 2049, 256).tolist(),
    ],
    ids=["32k", "1", "1100", "skew", "256"],
)
def test_decode_of_real_shapes(dtype: torch.dtype, lengths: list[int]) -> None:
    capacity = decode_capacity(len(lengths), REAL.kv, 132)
    tiles = decode_tiles(len(lengths))
    check_decode(lengths, REAL, dtype, "cuda", capacity=capacity, tiles=tiles)


@pytest.mark.gpu
def test_decodes_in_a_graph_of_chained_launches() -> None:
    """Launches that overlap, replayed for other plans: what one leaves the next may build on."""
    rng = np.random.default_rng(0)
    num_rows, capacity, tiles = 12, 90, decode_tiles(12)
    cache = paged([2048] * num_rows, REAL, torch.bfloat16, "cuda")
    q_SND = queries(num_rows, REAL, torch.bfloat16, "cuda")
    workspace = DecodeWorkspace.allocate(num_rows, capacity, REAL.num, REAL.kv, REAL.dim, "cuda")
    chunks = torch.zeros((capacity, CHUNK_FIELDS), dtype=torch.int32, device="cuda")
    chunks[:, CHUNK_ROW] = -1
    out_LSND = torch.empty((4, *q_SND.shape), dtype=torch.bfloat16, device="cuda")

    def launch() -> None:
        for out in out_LSND:
            decode_attention(
                q_SND, cache.layer, cache.tables, chunks, scale=REAL.dim**-0.5,
                out=out, workspace=workspace, pdl=True, tiles=tiles,
            )  # fmt: skip

    launch()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    for _ in range(20):
        lengths = rng.integers(0, 2049, num_rows)
        plan = plan_decode(lengths, cache.slots, capacity, tiles.unit)
        chunks.copy_(torch.from_numpy(plan))
        torch.cuda.synchronize()
        graph.replay()
        assert not workspace.finished_SK.any()
        assert (out_LSND == out_LSND[0]).all()
        for row in np.flatnonzero(lengths):
            k_LKD, v_LKD = (kv[row][: lengths[row]] for kv in (cache.k_LKD, cache.v_LKD))
            expected = oracle(q_SND[row : row + 1], k_LKD, v_LKD)
            assert_close(out_LSND[0, row : row + 1], expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "tiles",
    [prefill_tiles(8192), prefill_tiles(1), PrefillTiles(block_m=64, num_warps=4)],
    ids=["many", "few", "64"],
)
@pytest.mark.parametrize(
    "rows",
    [[(0, 1024)] * 4, [(3000, 700)], [(0, 1), (5, 1), (0, 300), (2047, 129)]],
    ids=["prompts", "chunk", "mixed"],
)
def test_prefill_of_real_shapes(
    rows: list[tuple[int, int]], tiles: PrefillTiles, dtype: torch.dtype
) -> None:
    check_prefill(rows, REAL, dtype, "cuda", tiles=tiles)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_split_tiles_of_real_shapes(dtype: torch.dtype) -> None:
    rows = [(8000, 100), (1, 1), (0, 30), *((900 + n, 1) for n in range(60)), (3000, 1)]
    assert check_prefill(rows, REAL, dtype, "cuda", tiles=prefill_tiles(200), fill=66) >= 3


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [(1, 1, 24, 5), (6, 2, 8, 4), (8, 1, 16, 16), (16, 8, 64, 16)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_odd_shapes_on_the_gpu(dtype: torch.dtype, heads: tuple[int, int, int, int]) -> None:
    """What the interpreter cannot show: that such shapes compile, and bf16."""
    shape = Heads(num=heads[0], kv=heads[1], dim=heads[2], block_size=heads[3])
    check_decode([1, 0, 70, 17, 500], shape, dtype, "cuda", capacity=14, tiles=SMALL)
    rows = [(0, 1), (0, 137), (20, 1), (33, 18)]
    for block_m in (16, 64):
        tiles = PrefillTiles(block_m=block_m, num_warps=4)
        check_prefill(rows, shape, dtype, "cuda", tiles=tiles)
