"""The FP8 cache: what it makes of keys and values, and attention over it, by kernels and in plain
torch, against fp64 over what it holds. Shapes: T tokens, K key heads, D head_dim."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.workers.attention.test_kernels import (
    REAL,
    TOLERANCE,
    Heads,
    check_decode,
    check_prefill,
    oracle,
    paged,
    queries,
)
from tests.workers.attention.test_qk_rope import Case
from workers.attention.kernels import qk_rope as qk_rope_module
from workers.attention.kv_cache import FP8, CacheSizes, KVCache, quantize
from workers.attention.layer import AttentionBatch, paged_attention
from workers.attention.plan import (
    DecodeTiles,
    PrefillTiles,
    decode_capacity,
    decode_tiles,
    prefill_tiles,
)

LARGEST = 448.0
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def test_a_scale_is_the_least_power_of_two_that_is_enough() -> None:
    """Also at its edges, 448 times a power of two, and for zeros."""
    sizes = torch.arange(-60, 100).double().exp2()
    tops = torch.cat((448 * sizes, 448.001 * sizes, 256 * sizes, 1.7 * sizes, torch.zeros(1)))
    x_TKD = (tops[:, None, None] * torch.tensor([0.3, -1.0, 0.01, 0.0])).float()
    values_TKD, scales_TK = quantize(x_TKD)
    assert values_TKD.dtype == FP8
    fraction_TK, exponent_TK = torch.frexp(x_TKD.abs().amax(-1).double())
    # A top of f * 2^e with f in [0.5, 1) needs e - 9, one more above 448 = 0.875 * 2^9.
    wanted = exponent_TK - 9 + (fraction_TK > 0.875).int()
    wanted = torch.where(fraction_TK == 0, -63, wanted).clamp(min=-63)
    expected = torch.ones_like(fraction_TK).ldexp(wanted)
    assert torch.equal(scales_TK.double(), expected)
    held = values_TKD.double() * expected[..., None]
    assert (held.abs().amax(-1) <= LARGEST * expected).all()
    # Half of the last of four digits; below 2^-6, half of 2^-9.
    bound = (x_TKD.double().abs() / 16).maximum(expected[..., None] / 1024)
    assert ((held - x_TKD).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read(dtype: torch.dtype) -> None:
    sizes = CacheSizes(
        num_layers=1, block_size=5, num_kv_heads=3, head_dim=8, v_head_dim=8, dtype=FP8
    )
    layer = KVCache(sizes, 7, torch.device("cpu")).layers[0]
    rows_T = torch.randperm(35)[:20]
    k, v = (torch.randn(2, 20, 3, 8) * (5 * torch.randn(2, 20, 3, 1)).exp2()).to(dtype)
    v[3, 1, 2] = torch.nan
    v[4] = torch.inf
    layer.write(rows_T, k, v)
    held = [each.flatten(0, 1)[rows_T] for each in layer.read(torch.arange(7), dtype)]
    for ours, (values, scales), source in zip(
        held, (quantize(k), quantize(v.nan_to_num(0, 0, 0))), (k, v), strict=True
    ):
        assert ours.dtype == dtype
        assert torch.equal(ours.double(), values.double() * scales.double()[..., None])
        finite = source.isfinite()
        error = (ours - source)[finite].abs()
        top = source.nan_to_num(0, 0, 0).abs().amax(-1, keepdim=True).expand_as(source)[finite]
        assert (error <= (source[finite].abs() / 15).maximum(top * 2**-17)).all()
    assert not held[1][4].any()


def test_an_fp8_block_is_half_of_bfloat16_s_and_its_scales() -> None:
    """Qwen3-30B-A3B's: 128 numbers and a scale of two bytes for each key and value."""
    sizes = {
        dtype: CacheSizes(
            num_layers=48, block_size=16, num_kv_heads=4, head_dim=128, v_head_dim=128, dtype=dtype
        )
        for dtype in (torch.bfloat16, FP8)
    }
    assert sizes[torch.bfloat16].bytes_per_block == 48 * 16 * 2 * 4 * 256
    assert sizes[FP8].bytes_per_block == 48 * 16 * 2 * 4 * 130
    layer = KVCache(sizes[FP8], 3, torch.device("cpu")).layers[0]
    assert layer.scales is not None
    held = sum(each.nbytes for each in (layer.keys, layer.values, layer.scales))
    assert 48 * held == 3 * sizes[FP8].bytes_per_block


@pytest.fixture(params=[False, True], ids=["narrow", "wide"])
def each_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of few tokens and that of many, whatever their number."""
    monkeypatch.setattr(qk_rope_module, "_ONE_WAVE_TOKENS", 0 if request.param else 1 << 30)


def check_entries(case: Case, qkv: torch.Tensor) -> None:
    """Values, which nothing is done to, to the bit; keys but for roundings of their last bit."""
    q, ours = case.launch(qkv, FP8)
    q_expected, expected = case.plain(qkv, FP8)
    assert torch.equal(q, case.run(qkv)[0])
    torch.testing.assert_close(q, q_expected, rtol=4e-2, atol=4e-2, equal_nan=True)
    assert ours.scales is not None
    assert expected.scales is not None
    assert torch.equal(ours.values.view(torch.uint8), expected.values.view(torch.uint8))
    assert torch.equal(ours.scales[..., 1], expected.scales[..., 1])
    same = ours.keys.view(torch.uint8) == expected.keys.view(torch.uint8)
    assert same.float().mean() > 0.97
    blocks = torch.arange(len(ours.keys), device=ours.keys.device)
    k, k_expected = (each.read(blocks, torch.float32)[0] for each in (ours, expected))
    torch.testing.assert_close(k, k_expected, rtol=0.13, atol=0.01)


@pytest.mark.interpreter
@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize(
    ("T", "N", "K", "D", "dtype"),
    [
        *((5, 3, 1, 24, dtype) for dtype in DTYPES),
        *((4, 6, 3, 4, dtype) for dtype in DTYPES),
        (33, 5, 2, 16, torch.float32),
        *(pytest.param(33, 5, 2, 16, dtype, marks=pytest.mark.grid) for dtype in DTYPES[1:]),
    ],
)
def test_entries_of_tokens(T: int, N: int, K: int, D: int, dtype: torch.dtype) -> None:
    case = Case(T, N, K, D, dtype, "cpu")
    qkv = case.parts(1, dtype)
    qkv *= (4 * torch.randn(1, T, 1)).exp2()
    check_entries(case, qkv)


@pytest.mark.interpreter
@pytest.mark.usefixtures("each_kernel")
def test_padding_leaves_entries_and_what_is_not_finite_is_zero() -> None:
    case = Case(6, 4, 2, 8, torch.float32, "cpu")
    case.slots[1::2] = -1
    case.positions[1::2] = 1 << 30
    qkv = case.parts(1, torch.float32)
    qkv[0, 0, -3:] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    qkv[0, 2, 4 * 8 + 5] = torch.nan
    check_entries(case, qkv)


SMALL = DecodeTiles(unit=16, tile=16, join=4)


def random_heads(rng: np.random.Generator) -> Heads:
    kv = int(rng.integers(1, 4))
    return Heads(
        num=kv * int(rng.choice([1, 2, 3, 8])),
        kv=kv,
        dim=int(rng.choice([4, 8, 16, 24, 64, 128])),
        block_size=int(rng.choice([1, 4, 5, 16, 32])),
    )


SEEDS = [pytest.param(n, marks=() if n < 6 else pytest.mark.grid) for n in range(40)]


@pytest.mark.interpreter
@pytest.mark.parametrize("seed", SEEDS)
def test_decode_over_fp8(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 90, int(rng.integers(1, 6))).tolist()
    tiles = DecodeTiles(unit=16, tile=int(rng.choice([16, 64])), join=int(rng.choice([0, 4])))
    capacity = len(lengths) + int(rng.integers(0, 6))
    check_decode(
        lengths, random_heads(rng), DTYPES[seed % 3], "cpu",
        capacity=capacity, tiles=tiles, cache_dtype=FP8,
    )  # fmt: skip


@pytest.mark.interpreter
@pytest.mark.parametrize("seed", SEEDS)
def test_prefill_over_fp8(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [(int(rng.integers(0, 70)), int(rng.integers(1, 20))) for _ in range(3)]
    tiles = PrefillTiles(block_m=16, block_n=int(rng.choice([16, 32])), unit=32)
    check_prefill(
        rows, random_heads(rng), DTYPES[seed % 3], "cpu", tiles=tiles, fill=20, cache_dtype=FP8
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_torch_attends_to_what_the_cache_holds(dtype: torch.dtype) -> None:
    """Two decodes, the second far longer, and a chunk behind a context."""
    heads = Heads(num=6, kv=2, dim=16, block_size=4)
    lengths, num_tokens = [3, 41, 30], [1, 1, 7]
    cache = paged(lengths, heads, FP8, "cpu")
    assert cache.layer.scales is not None
    for held in (cache.layer.keys, cache.layer.values, cache.layer.scales):
        held.copy_(held.float().nan_to_num(0.0))  # a cache begins as zeros, and no NaN is written
    q_TND = queries(9, heads, dtype, "cpu")
    # The last tokens are written again as they are.
    pairs = zip(cache.k_LKD, cache.v_LKD, num_tokens, strict=True)
    own = [(k[-n:], v[-n:]) for k, v, n in pairs]
    k_TKD, v_TKD = (torch.cat(pieces).float() for pieces in zip(*own, strict=True))
    positions = [
        length - n + i for length, n in zip(lengths, num_tokens, strict=True) for i in range(n)
    ]
    batch = AttentionBatch(
        positions_T=torch.tensor(positions, dtype=torch.int32),
        slots_T=torch.from_numpy(np.repeat(cache.slots, num_tokens)).int(),
        tables=cache.tables,
        slots=cache.slots.tolist(),
        lengths=lengths,
        num_tokens=num_tokens,
        num_decodes=2,
    )
    out = paged_attention(q_TND, k_TKD, v_TKD, cache.layer, batch, scale=0.25).unflatten(1, (6, 16))
    firsts = np.cumsum(num_tokens) - num_tokens
    for row, (first, count) in enumerate(zip(firsts, num_tokens, strict=True)):
        expected = oracle(q_TND[first : first + count], cache.k_LKD[row], cache.v_LKD[row])
        error = (out[first : first + count].double() - expected).abs().max()
        assert error <= TOLERANCE[dtype] * expected.abs().max()


def test_a_written_entry_is_a_fixed_point() -> None:
    """What the cache holds of a token has itself for its entry: replays and reuse rely on it."""
    x = torch.randn(50, 2, 16) * (5 * torch.randn(50, 2, 1)).exp2()
    values, scales = quantize(x)
    again, same = quantize(values.float() * scales.float()[..., None])
    assert torch.equal(
        again.double() * same.double()[..., None], values.double() * scales.double()[..., None]
    )


@pytest.mark.parametrize("width", [16, 64, 96, 128, 192, 256])
def test_tiles_differ_by_cache_only_where_plans_do_not_see_it(width: int) -> None:
    for size in (1, 16, 17, 64, 65, 256, 4096, 4097, 8192):
        usual = decode_tiles(size)
        for fp8 in (False, True):
            tiles = decode_tiles(size, fp8=fp8, width=width)
            assert (tiles.unit, tiles.join > 0) == (usual.unit, usual.join > 0)
            own, other = prefill_tiles(size), prefill_tiles(size, fp8=fp8, width=width)
            assert (own.block_m, own.unit) == (other.block_m, other.unit)
            assert other.unit is None or other.unit % other.block_n == 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "lengths",
    [
        [32768],
        [1],
        [1100],
        [0, 32768, 0, *range(1, 50)],
        [0, 32768, 0, *range(1, 200)],
        np.random.default_rng(0).integers(1, 2049, 256).tolist(),
    ],
    ids=["32k", "1", "1100", "skew", "more", "256"],
)
def test_decode_of_real_shapes(dtype: torch.dtype, lengths: list[int]) -> None:
    capacity = decode_capacity(len(lengths), REAL.kv, 132)
    tiles = decode_tiles(len(lengths), fp8=True)
    check_decode(lengths, REAL, dtype, "cuda", capacity=capacity, tiles=tiles, cache_dtype=FP8)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [8192, 1], ids=["many", "few"])
@pytest.mark.parametrize(
    "rows",
    [[(0, 1024)] * 4, [(3000, 700)], [(0, 1), (5, 1), (0, 300), (2047, 129)]],
    ids=["prompts", "chunk", "mixed"],
)
def test_prefill_of_real_shapes(rows: list[tuple[int, int]], size: int, dtype: torch.dtype) -> None:
    tiles = prefill_tiles(size, fp8=True)
    check_prefill(rows, REAL, dtype, "cuda", tiles=tiles, cache_dtype=FP8)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_split_tiles_of_real_shapes(dtype: torch.dtype) -> None:
    rows = [(8000, 100), (1, 1), (0, 30), *((900 + n, 1) for n in range(60)), (3000, 1)]
    tiles = prefill_tiles(200, fp8=True)
    assert check_prefill(rows, REAL, dtype, "cuda", tiles=tiles, fill=66, cache_dtype=FP8) >= 3


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(30))
def test_random_shapes_on_the_gpu(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dtype = [torch.bfloat16, torch.float32][seed % 2]
    heads = random_heads(rng)
    lengths = rng.integers(0, 900, int(rng.integers(1, 9))).tolist()
    check_decode(
        lengths, heads, dtype, "cuda", capacity=len(lengths) + 5, tiles=SMALL, cache_dtype=FP8
    )
    rows = [(int(rng.integers(0, 700)), int(rng.integers(1, 200))) for _ in range(3)]
    tiles = PrefillTiles(block_m=32, block_n=32, num_warps=4, unit=64)
    check_prefill(rows, heads, dtype, "cuda", tiles=tiles, fill=40, cache_dtype=FP8)


@pytest.mark.gpu
@pytest.mark.parametrize("T", [1, 33, 600, 8192])
@pytest.mark.parametrize(("N", "K"), [(32, 4), (16, 2), (64, 4)])
@pytest.mark.parametrize(
    ("S", "dtype"), [(1, torch.bfloat16), (1, torch.float32), (6, torch.float32)]
)
def test_entries_of_real_shapes(T: int, N: int, K: int, S: int, dtype: torch.dtype) -> None:
    case = Case(T, N, K, 128, torch.bfloat16, "cuda")
    check_entries(case, case.parts(S, dtype))
