"""What lies between the projections of latent attention and its attention, against plain torch.

Shapes: T tokens, S parts, N heads, P and R widths of a query's parts, C of a latent, V of a value.
"""

from __future__ import annotations

import pytest
import torch

from moe.base.fp8_format import Fp8Format
from moe.base.quantize import empty_weight, quantize
from moe.base.weight import Weight
from moe.base.weight_format import WeightFormat
from workers.attention.kernels.mla_absorb import absorb_queries, project_values
from workers.attention.kernels.mla_latent import store_latents
from workers.attention.kv_cache import LayerCache
from workers.attention.mla_spec import QueryGrowth
from workers.layers.norm import RMSNorm
from workers.layers.rope_spec import RopeSpec
from workers.layers.rotary import RotaryEmbedding, rotate

pytestmark = pytest.mark.interpreter

CPU = torch.device("cpu")
EPS = 1e-6
POSITIONS = 24
BLOCK = 4
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3}
DTYPES = [torch.float32, torch.float16]


def made_rotary(dim: int) -> RotaryEmbedding:
    rotary = RotaryEmbedding(RopeSpec(dim=dim, theta=100.0), POSITIONS, CPU)
    rotary.cover(POSITIONS)
    return rotary


def made_norm(size: int, dtype: torch.dtype) -> RMSNorm:
    norm = RMSNorm(size, EPS, dtype, CPU)
    torch.nn.init.normal_(norm.weight, mean=1.0)
    return norm


def turned(
    x_TNR: torch.Tensor, rotary: RotaryEmbedding, positions_T: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    if interleaved:
        x_TNR = x_TNR.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    return rotate(x_TNR, *rotary(positions_T))


def assert_close(ours: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    bound = TOLERANCE[dtype] * float(expected.float().abs().max())
    assert float((ours.float() - expected.float()).abs().max()) <= bound


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("parts", "q_width", "interleaved"), [(1, 20, True), (3, 0, False)])
def test_entries_are_stored(
    parts: int, q_width: int, interleaved: bool, dtype: torch.dtype
) -> None:
    """With columns before and behind an entry; padding stores nothing, NaN is stored as 0."""
    torch.manual_seed(parts)
    T, C, R, first = 5, 24, 8, max(q_width, 6)
    down_STW = torch.randn(parts, T, first + C + R + 3)
    down_STW[0, 3, first + C + 1] = torch.nan
    positions_T = torch.randint(POSITIONS, (T,)).int()
    slots_T = torch.tensor([3, 0, -1, 1, 2], dtype=torch.int32)
    tables = torch.randperm(4 * POSITIONS // BLOCK).int().view(4, -1)
    keys = torch.randn(tables.numel(), BLOCK, 1, C + R).to(dtype)
    cache = LayerCache(keys, keys[..., :0].contiguous())
    rotary, kv_norm = made_rotary(R), made_norm(C, dtype)
    q_norm = made_norm(q_width, dtype) if q_width else None
    before = keys.clone()
    q_TQ = torch.full((T, q_width), torch.nan, dtype=dtype)
    store_latents(
        down_STW, kv_norm.weight, EPS, rotary.cos, rotary.sin, positions_T, slots_T, tables, cache,
        first=first, interleaved=interleaved,
        q_norm_Q=None if q_norm is None else q_norm.weight,
        out_q_TQ=None if q_norm is None else q_TQ,
    )  # fmt: skip
    down_TW = down_STW.sum(0).to(dtype)
    latent_TC = kv_norm(down_TW[:, first : first + C])
    k_T1R = turned(down_TW[:, None, first + C :][..., :R], rotary, positions_T, interleaved)
    expected_TE = torch.cat((latent_TC, k_T1R[:, 0]), -1).nan_to_num(0.0)
    own_T = slots_T >= 0
    blocks_T = tables[slots_T.clamp(min=0), positions_T // BLOCK].long()
    places = blocks_T[own_T], (positions_T % BLOCK)[own_T].long()
    assert_close(keys[*places, 0], expected_TE[own_T], dtype)
    before[places] = keys[places]
    assert torch.equal(keys, before)
    if q_norm is not None:
        assert_close(q_TQ, q_norm(down_TW[:, :q_width]), dtype)


def made_weight(rows: int, columns: int, dtype: torch.dtype, kind: WeightFormat | None) -> Weight:
    plain = torch.randn(rows, columns) / columns**0.5
    if kind is None:
        return Weight(plain.to(dtype))
    weight = empty_weight((rows, columns), kind, dtype=dtype, device=CPU)
    quantize(plain, weight)
    return weight


FORMATS = [None, Fp8Format(block=(16, 16)), Fp8Format()]
# T, N, P, R, C, V and parts; of blocks of 16 that heads do not end at.
SIZES = [(3, 2, 24, 8, 32, 8, 1), (70, 3, 16, 4, 80, 32, 2)]


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_products(
    sizes: tuple[int, ...], dtype: torch.dtype, weight_format: WeightFormat | None
) -> None:
    T, N, P, R, C, V, parts = sizes
    torch.manual_seed(T)
    weight = made_weight(N * (P + V), C, dtype, weight_format)
    by_head = weight.plain(dtype).float().unflatten(0, (N, -1))
    rotary = made_rotary(R)
    wide = torch.randn(parts, T, 5 + N * (P + R))
    positions_T = torch.randint(POSITIONS, (T,)).int()
    growth = QueryGrowth(beta=0.5, length=5) if parts > 1 else None
    out_TNE = torch.full((T, N, C + R), torch.nan, dtype=dtype)
    assert absorb_queries(
        wide[..., 5:], weight, rotary.cos, rotary.sin, positions_T,
        value_width=V, interleaved=parts > 1, growth=growth, num_cores=40, out_TNE=out_TNE,
    ) is out_TNE  # fmt: skip
    q_TNQ = wide[..., 5:].sum(0).to(dtype).unflatten(1, (N, -1))
    if growth is not None:
        factor_T = 1 + growth.beta * torch.log1p((positions_T // growth.length).float())
        q_TNQ = q_TNQ * factor_T[:, None, None].to(dtype)
    q_TNC = torch.einsum("tnp,npc->tnc", q_TNQ[..., :P].float(), by_head[:, :P])
    assert_close(out_TNE[..., :C], q_TNC, dtype)
    assert_close(out_TNE[..., C:], turned(q_TNQ[..., P:], rotary, positions_T, parts > 1), dtype)

    found_TNC = torch.randn(T, N, C).to(dtype)
    out_TW = torch.full((T, N * V), torch.nan, dtype=dtype)
    assert project_values(found_TNC, weight, num_cores=40, out_TW=out_TW) is out_TW
    values_TNV = torch.einsum("tnc,nvc->tnv", found_TNC.float(), by_head[:, P:])
    assert_close(out_TW, values_TNV.flatten(1), dtype)
