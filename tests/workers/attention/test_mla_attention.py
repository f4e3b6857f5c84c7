"""Attention kernels over latents against plain torch in fp32, over caches that hold NaN wherever a
row has no business. Shapes: T query tokens, L context, N query heads, E width of an entry, C of its
latent."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from workers.attention.kernels.decode_attention import DecodeWorkspace
from workers.attention.kernels.mla_absorb import Halves
from workers.attention.kernels.mla_decode import decode_latents
from workers.attention.kernels.mla_new import attend_new
from workers.attention.kernels.mla_prefill import prefill_latents
from workers.attention.kernels.prefill_attention import PrefillWorkspace
from workers.attention.kv_cache import LayerCache
from workers.attention.mla_spec import head_groups
from workers.attention.plan import CHUNK_ROW, plan_decode, plan_prefill, prefill_tile_tokens
from workers.attention.prefill_split import NUM_SPLITS, SPLIT_FIELDS, split_tiles

pytestmark = pytest.mark.interpreter

SCALE = 0.3
UNIT = 16
# Largest error of a row over the row's largest value.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}
# Query heads, C, R, block size, dtype: few heads and many, one group of them and two, widths that
# are no powers of two.
SHAPES = [
    (2, 32, 16, 4, torch.float32),
    (20, 24, 8, 5, torch.float32),
    (66, 16, 4, 16, torch.float16),
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Rows in shuffled slots and blocks; NaN in all other blocks and behind each length."""

    cache: LayerCache
    tables: torch.Tensor
    slots: np.ndarray
    entries: list[torch.Tensor]
    q_TNE: torch.Tensor
    latent_width: int

    @classmethod
    def make(
        cls, lengths: list[int], num_tokens: int, shape: tuple[int, int, int, int, torch.dtype]
    ) -> Case:
        num_heads, latent_width, turned, block_size, dtype = shape
        width = latent_width + turned
        rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
        counts = [-(-length // block_size) for length in lengths]
        num_blocks = sum(counts) + 3
        keys = torch.full((num_blocks, block_size, 1, width), torch.nan, dtype=dtype)
        blocks = torch.from_numpy(rng.permutation(num_blocks)).int()
        *own, foreign = blocks.split([*counts, 3])
        tables = foreign[:1].repeat(len(lengths) + 2, max(counts) + 2)
        slots = rng.permutation(len(tables))[: len(lengths)]
        entries = []
        for slot, length, mine in zip(slots, lengths, own, strict=True):
            tables[slot, : len(mine)] = mine
            held = torch.randn(length, width, generator=generator).to(dtype)
            places = torch.arange(length)
            keys[mine[places // block_size].long(), places % block_size, 0] = held
            entries.append(held)
        q_TNE = torch.randn(num_tokens, num_heads, width, generator=generator).to(dtype)
        cache = LayerCache(keys, keys[..., :0].contiguous())
        return cls(
            cache=cache,
            tables=tables,
            slots=slots,
            entries=entries,
            q_TNE=q_TNE,
            latent_width=latent_width,
        )

    @property
    def groups(self) -> int:
        return head_groups(self.q_TNE.shape[1])

    def out(self) -> torch.Tensor:
        shape = (*self.q_TNE.shape[:2], self.latent_width)
        return torch.full(shape, 7.0, dtype=self.q_TNE.dtype)

    def check(
        self,
        out_TNC: torch.Tensor,
        row: int,
        first: int,
        num_tokens: int,
        lse_TN: torch.Tensor | None = None,
    ) -> None:
        """The last tokens of a row's context, which stand in the batch from ``first`` on; with
        ``lse_TN`` they saw what is before the first of them."""
        own = slice(first, first + num_tokens)
        entries_LE = self.entries[row].float()
        scores_TNL = SCALE * torch.einsum("tne,le->tnl", self.q_TNE[own].float(), entries_LE)
        seen_TL = torch.ones(num_tokens, len(entries_LE), dtype=torch.bool)
        seen_TL = seen_TL.tril(len(entries_LE) - num_tokens)
        if lse_TN is not None:
            seen_TL[:, len(entries_LE) - num_tokens :] = False
        scores_TNL = scores_TNL.masked_fill(~seen_TL[:, None], float("-inf"))
        latents_LC = entries_LE[:, : self.latent_width]
        weights_TNL = scores_TNL.softmax(-1).nan_to_num(0.0)
        expected_TNC = torch.einsum("tnl,lc->tnc", weights_TNL, latents_LC)
        error_T = (out_TNC[own] - expected_TNC).abs().amax((1, 2))
        bound_T = TOLERANCE[self.q_TNE.dtype] * expected_TNC.abs().amax((1, 2))
        assert bool((error_T <= bound_T).all()), (error_T / bound_T).tolist()
        if lse_TN is not None:
            expected_TN = scores_TNL.logsumexp(-1) / math.log(2)
            torch.testing.assert_close(lse_TN[own], expected_TN, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("join", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_decode_of_mixed_rows(shape: tuple[int, int, int, int, torch.dtype], join: bool) -> None:
    """Lengths of 1, at and beside the edges of blocks, tiles and chunks; two padding rows."""
    lengths = [1, 0, 16, 17, 0, 65, 130]
    case = Case.make(lengths, len(lengths), shape)
    plan = plan_decode(np.array(lengths), case.slots, 12, UNIT)
    chunks = torch.from_numpy(plan)
    workspace = DecodeWorkspace.allocate(
        len(lengths), len(chunks), shape[0], case.groups, case.latent_width, "cpu"
    )
    workspace.partials_CNV.fill_(torch.nan)
    workspace.lse_CN.fill_(torch.nan)
    outs = []
    for _ in range(2):
        out = case.out()
        assert decode_latents(
            case.q_TNE, case.cache, case.tables, chunks,
            scale=SCALE, out_SNC=out, workspace=workspace, join=join,
        ) is out  # fmt: skip
        assert not workspace.finished_SK.any()
        outs.append(out)
    assert torch.equal(*outs)
    for row, length in enumerate(lengths):
        if length:
            case.check(outs[0], row, row, 1)
        else:
            assert not outs[0][row].any()
    assert np.bincount(plan[:, CHUNK_ROW] + 1)[1:].max() > 1


@pytest.mark.parametrize(
    ("shape", "old"),
    [
        *((shape, old) for shape in SHAPES[:2] for old in (False, True)),
        (SHAPES[2], True),
        pytest.param(SHAPES[2], False, marks=pytest.mark.grid),
    ],
)
def test_prefill_of_mixed_rows(shape: tuple[int, int, int, int, torch.dtype], old: bool) -> None:
    """Prompts and chunks behind a context, whole and split, behind tokens that are decodes'; all
    that they may see, or what is older than the step."""
    rows = [(0, 5), (150, 7), (5, 1), (60, 3), (0, 70 if old and shape[0] < 64 else 20)]
    firsts = np.cumsum([2, *(tokens for _, tokens in rows)])
    case = Case.make([position + tokens for position, tokens in rows], firsts[-1], shape)
    positions, num_tokens = (np.array(each) for each in zip(*rows, strict=True))
    plan = plan_prefill(
        num_tokens,
        positions,
        firsts[:-1],
        case.slots,
        prefill_tile_tokens(64, shape[0], case.groups),
    )
    starts_T = torch.from_numpy(np.repeat([0, *positions], [2, *num_tokens])).int()
    entries = split_tiles(plan, 100, UNIT)
    padded = np.concatenate((entries, np.zeros((3, SPLIT_FIELDS), np.int32)))
    assert entries[:, NUM_SPLITS].max() > 1
    parts = (200, case.groups, 64)
    workspace = PrefillWorkspace(
        partials_CKMV=torch.full((*parts, case.latent_width), torch.nan),
        lse_CKM=torch.full(parts, torch.nan),
        finished_CK=torch.zeros(parts[:2], dtype=torch.int32),
    )
    for each in (plan, padded, padded):
        out, lse_TN = case.out(), torch.full(case.q_TNE.shape[:2], torch.nan)
        prefill_latents(
            case.q_TNE, case.cache, case.tables, torch.from_numpy(each),
            scale=SCALE, out_TNC=out, workspace=workspace, block_m=64,
            starts_T=starts_T if old else None, out_lse_TN=lse_TN if old else None,
        )  # fmt: skip
        assert bool((out[:2] == 7).all())
        assert not workspace.finished_CK.any()
        for row, (_, tokens) in enumerate(rows):
            case.check(out, row, int(firsts[row]), tokens, lse_TN if old else None)


def test_prefill_of_larger_tiles() -> None:
    """A tile of 128 rows takes two programs, the last of which may have nothing to do."""
    rows = [(3, 9), (0, 70), (0, 1)]
    case = Case.make([position + tokens for position, tokens in rows], 80, SHAPES[0])
    positions, num_tokens = (np.array(each) for each in zip(*rows, strict=True))
    plan = plan_prefill(
        num_tokens,
        positions,
        np.array([0, 9, 79]),
        case.slots,
        prefill_tile_tokens(128, SHAPES[0][0], case.groups),
    )
    out = case.out()
    prefill_latents(
        case.q_TNE, case.cache, case.tables, torch.from_numpy(plan),
        scale=SCALE, out_TNC=out, block_m=128,
    )  # fmt: skip
    for row, first in enumerate((0, 9, 79)):
        case.check(out, row, first, rows[row][1])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_new_tokens_see_their_own_row(dtype: torch.dtype) -> None:
    """Rows that begin within a block, some of them late; padding; decodes before are left out."""
    counts, N, P, R, V, C, first = [70, 3, 60, 30], 2, 24, 8, 20, 16, 2
    T = first + sum(counts) + 2
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    q_TNE, kv_TW, turned_TR = made(T, N, C + R), made(T, N * (P + V)), made(T, R)
    halves = Halves(made(T, N, P), made(T, N, V), *torch.full((2, T, N), -math.inf))
    starts = torch.tensor([9, 4, 5, 0, 31, 6, 0, 0])
    sizes = torch.tensor([1, 1, *counts, 1, 1])
    places = torch.cat([torch.arange(int(each)) for each in sizes])
    starts_T = starts.repeat_interleave(sizes).int()
    positions_T = (starts_T + places).int()
    before = halves.new_TNV[:first].clone()
    attend_new(q_TNE, kv_TW, turned_TR, positions_T, starts_T, halves, first=first, scale=SCALE)
    assert torch.equal(halves.new_TNV[:first], before)
    assert bool((halves.new_lse_TN[:first] == -math.inf).all())
    k_TNP, v_TNV = kv_TW.float().unflatten(1, (N, -1)).split([P, V], dim=-1)
    scores_NTL = torch.einsum("tnp,lnp->ntl", halves.q_TNP.float(), k_TNP)
    scores_NTL = scores_NTL + torch.einsum("tnr,lr->ntl", q_TNE[..., C:].float(), turned_TR.float())
    row_T = torch.arange(len(sizes)).repeat_interleave(sizes)
    seen_TL = (row_T[:, None] == row_T).tril()
    scores_NTL = (SCALE * scores_NTL).masked_fill(~seen_TL, -math.inf)
    expected_TNV = torch.einsum("ntl,lnv->tnv", scores_NTL.softmax(-1), v_TNV)
    error = (halves.new_TNV - expected_TNV)[first:].abs().max() / expected_TNV.abs().max()
    assert error <= TOLERANCE[dtype]
    lse_TN = scores_NTL.logsumexp(-1).T / math.log(2)
    torch.testing.assert_close(halves.new_lse_TN[first:], lse_TN[first:], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (64, 1), (66, 2), (128, 2), (67, 67)])
def test_groups_divide_heads(heads: int, groups: int) -> None:
    assert head_groups(heads) == groups
