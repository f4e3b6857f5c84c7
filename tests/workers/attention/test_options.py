"""Windows, sinks, scales, values of another width and heads of any width: both kernels and plain
torch against attention over all scores, over caches of NaN wherever a row has no business."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.workers.attention.test_kernels import (
    TOLERANCE,
    Heads,
    Options,
    check_decode,
    check_prefill,
    oracle,
    paged,
    queries,
)
from workers.attention.kv_cache import FP8, CacheSizes, KVCache
from workers.attention.layer import AttentionBatch, paged_attention
from workers.attention.plan import DecodeTiles, PrefillTiles

FEW = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
MANY = settings(FEW, max_examples=200)
LONGEST = 90

windows = st.sampled_from([None, 1, 2, 5, 16, 17, 40, 1000])
cache_dtypes = st.sampled_from([None, FP8])


@st.composite
def heads_of(draw: st.DrawFn) -> Heads:
    kv = draw(st.integers(1, 2))
    dim, v_dim = draw(
        st.sampled_from([(8, None), (16, 8), (24, 16), (24, None), (8, 24), (80, None), (96, 64)])
    )
    return Heads(
        num=kv * draw(st.sampled_from([1, 3, 8])),
        kv=kv,
        dim=dim,
        v_dim=v_dim,
        block_size=draw(st.sampled_from([1, 5, 16])),
    )


@st.composite
def options_of(draw: st.DrawFn, heads: Heads, windows: st.SearchStrategy[int | None]) -> Options:
    """Sinks from what takes little to what takes nearly all; scales that leave both a share."""
    sinks_N = None
    if draw(st.booleans()):
        sinks_N = torch.tensor(
            draw(st.lists(st.floats(-3, 9), min_size=heads.num, max_size=heads.num))
        )
    scale = draw(st.sampled_from([None, 0.02, 0.11]))
    return Options(scale=scale, window=draw(windows), sinks_N=sinks_N)


def check_any_decode(data: st.DataObject) -> None:
    heads = data.draw(heads_of())
    options = data.draw(options_of(heads, windows))
    lengths = data.draw(st.lists(st.integers(0, LONGEST), min_size=1, max_size=4))
    tiles = DecodeTiles(
        unit=16, tile=data.draw(st.sampled_from([16, 32])), join=data.draw(st.sampled_from([0, 2]))
    )
    check_decode(
        lengths,
        heads,
        torch.float32,
        "cpu",
        capacity=len(lengths) + data.draw(st.integers(0, 6)),
        tiles=tiles,
        cache_dtype=data.draw(cache_dtypes),
        options=options,
    )


def check_any_prefill(data: st.DataObject, windows: st.SearchStrategy[int | None]) -> None:
    heads = data.draw(heads_of())
    options = data.draw(options_of(heads, windows))
    row = st.tuples(st.integers(0, LONGEST), st.integers(1, 12))
    block_n = data.draw(st.sampled_from([16, 32])) if options.window else 16
    tiles = PrefillTiles(block_m=16, block_n=block_n, unit=block_n)
    check_prefill(
        data.draw(st.lists(row, min_size=1, max_size=2)),
        heads,
        torch.float32,
        "cpu",
        tiles=tiles,
        fill=0 if options.window is not None else 20,
        cache_dtype=data.draw(cache_dtypes),
        options=options,
    )


@pytest.mark.interpreter
@FEW
@given(st.data())
def test_decode(data: st.DataObject) -> None:
    check_any_decode(data)


@pytest.mark.interpreter
@FEW
@given(st.data())
def test_prefill_with_a_window(data: st.DataObject) -> None:
    check_any_prefill(data, windows.filter(lambda window: window is not None))


@pytest.mark.interpreter
@FEW
@given(st.data())
def test_prefill_whole_and_split(data: st.DataObject) -> None:
    check_any_prefill(data, st.none())


@pytest.mark.grid
@pytest.mark.interpreter
@MANY
@given(st.data())
def test_many(data: st.DataObject) -> None:
    check_any_decode(data)
    check_any_prefill(data, windows)


@pytest.mark.interpreter
@pytest.mark.parametrize("window", [None, 7])
def test_a_sink_that_is_all_or_nothing(window: int | None) -> None:
    """Far above every score nothing is left; far below nothing is taken. Chunks are joined, and
    tiles split where there is no window."""
    heads = Heads(num=2, kv=1, dim=8, block_size=4)
    options = Options(window=window, sinks_N=torch.tensor([3e4, -3e4]))
    tiles = DecodeTiles(unit=16, tile=16, join=2)
    check_decode([70, 1, 0], heads, torch.float32, "cpu", capacity=9, tiles=tiles, options=options)
    parts = check_prefill(
        [(60, 9), (0, 2)], heads, torch.float32, "cpu",
        tiles=PrefillTiles(block_m=16, block_n=16, unit=16),
        fill=0 if window else 30,
        options=options,
    )  # fmt: skip
    assert parts > 1 or window


@settings(FEW, max_examples=60)
@given(st.data())
def test_plain_torch(data: st.DataObject) -> None:
    heads = data.draw(heads_of())
    options = data.draw(options_of(heads, windows))
    num_decodes = data.draw(st.integers(0, 3))
    num_tokens = [1] * num_decodes + data.draw(st.lists(st.integers(1, 9), max_size=2))
    lengths = [tokens + data.draw(st.integers(0, LONGEST)) for tokens in num_tokens]
    if not lengths:
        return
    cache = paged(lengths, heads, data.draw(cache_dtypes) or torch.float32, "cpu")
    for held in (cache.layer.keys, cache.layer.values, cache.layer.scales):
        if held is not None:
            held.copy_(held.float().nan_to_num(0.0))  # as caches begin
    pairs = list(zip(cache.k_LKD, cache.v_LKD, num_tokens, strict=True))
    k_TKD, v_TKV = (torch.cat([pair[part][-pair[2] :] for pair in pairs]) for part in (0, 1))
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
        num_decodes=num_decodes,
    )
    q_TND = queries(len(positions), heads, torch.float32, "cpu")
    out = paged_attention(
        q_TND,
        k_TKD.float(),
        v_TKV.float(),
        cache.layer,
        batch,
        scale=options.scale_of(heads.dim),
        window=options.window,
        sinks_N=options.sinks_N,
    )
    assert out.shape == (len(positions), heads.num * heads.dims[1])
    out_TNV = out.unflatten(1, (heads.num, -1))
    for row, first in enumerate(np.cumsum(num_tokens) - num_tokens):
        own = slice(first, first + num_tokens[row])
        expected = oracle(q_TND[own], cache.k_LKD[row], cache.v_LKD[row], options)
        error = (out_TNV[own] - expected).abs().max()
        assert error <= TOLERANCE[torch.float32] * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, FP8])
@pytest.mark.parametrize("v_dim", [0, 4, 12])
def test_a_cache_of_values_of_another_width(dtype: torch.dtype, v_dim: int) -> None:
    sizes = CacheSizes(
        num_layers=1, block_size=4, num_kv_heads=2, head_dim=8, v_head_dim=v_dim, dtype=dtype
    )
    (layer,) = KVCache(sizes, 3, torch.device("cpu")).layers
    held = [each for each in (layer.keys, layer.values, layer.scales) if each is not None]
    assert sum(each.nbytes for each in held) == 3 * sizes.bytes_per_block
    k_TKD, v_TKV = torch.ones(5, 2, 8), torch.full((5, 2, v_dim), 2.0)
    layer.write(torch.arange(5), k_TKD, v_TKV)
    k, v = layer.read(torch.arange(3), torch.float32)
    assert torch.equal(k.flatten(0, 1)[:5], k_TKD)
    assert torch.equal(v.flatten(0, 1)[:5], v_TKV)
