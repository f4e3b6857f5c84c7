"""Every option of qk_rope and qk_squares against plain torch."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
import torch

from workers.attention.head_options import HeadOptions
from workers.attention.kernels import qk_rope as module
from workers.attention.kernels.qk_rope import qk_rope
from workers.attention.kernels.qk_squares import qk_squares
from workers.attention.kv_cache import FP8, CacheSizes, KVCache, LayerCache
from workers.layers.norm import RMSNorm
from workers.layers.rope_spec import RopeSpec
from workers.layers.rotary import RotaryEmbedding
from workers.models.heads import Heads, finish_heads, split_heads, squares

pytestmark = pytest.mark.interpreter

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS, BLOCK, MAX_BLOCKS = 1e-5, 4, 3
SMALL = {torch.float32: 1e-5, torch.float16: 4e-3}
NORMS = ("none", "head", "head_after_rotary", "all_heads")


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of a rank: tokens, parts, heads and widths; R dimensions are turned."""

    T: int = 3
    S: int = 1
    N: int = 3
    K: int = 2
    D: int = 8
    V: int = 8
    R: int = 8


@dataclasses.dataclass(frozen=True)
class Case:
    """One launch: what is asked of it, and in which types."""

    shape: Shape
    options: HeadOptions
    has_bias: bool = False
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype | None = None
    seed: int = 0

    def check(self) -> None:
        """The kernel's q and cache, as plain torch makes them."""
        torch.manual_seed(self.seed)
        shape, options = self.shape, self.options
        T, N, K, D, V = shape.T, shape.N, shape.K, shape.D, shape.V
        width = (N + K) * D + K * V
        parts = (
            self.numbers(shape.S, T, width).float() if shape.S > 1 else self.numbers(1, T, width)
        )
        bias = self.numbers(width) if self.has_bias else None
        norms = None
        if options.norm != "none":
            sizes = (N * D, K * D) if options.norm == "all_heads" else (D, D)
            norms = (self.norm(sizes[0]), self.norm(sizes[1]))
        rotary = None
        if shape.R:
            spec = RopeSpec(dim=shape.R, theta=1e4, interleaved=options.interleaved)
            rotary = RotaryEmbedding(spec, BLOCK * MAX_BLOCKS, DEVICE)
        slots = torch.arange(T, device=DEVICE, dtype=torch.int32)
        positions = torch.randint(0, BLOCK * MAX_BLOCKS, (T,), device=DEVICE, dtype=torch.int32)
        tables = torch.randperm(T * MAX_BLOCKS, device=DEVICE).int().view(T, MAX_BLOCKS)
        total = parts[0].float()
        for part in parts[1:]:
            total = total + part.float()
        # A bias joins before the sum is rounded, which `split_heads` has no second chance for.
        rounded = (total if bias is None else total + bias.float()).to(self.dtype)
        heads = split_heads(rounded, None, (N, K), D)
        sums = squares(heads) if options.norm == "all_heads" else None
        found = None
        if sums is not None:
            found = qk_squares(
                parts, (N * D, K * D), bias, heads[0], out_T2=torch.empty(T, 2, device=DEVICE)
            )
            torch.testing.assert_close(found, sums, rtol=1e-4, atol=1e-4)
            sums, found = 2 * sums, 2 * found  # as if another rank had added as much
        angles = None if rotary is None else rotary(positions)
        q, k, v = finish_heads(heads, norms, angles, options, sums)
        ours, expected = self.cache(), self.cache()
        blocks = tables[slots.long(), positions.long() // BLOCK].long()
        expected.write(blocks * BLOCK + positions % BLOCK, k, v)
        out = torch.empty(T, N, D, dtype=self.dtype, device=DEVICE)
        q_norm, k_norm = (None, None) if norms is None else (each.weight for each in norms)
        qk_rope(
            parts, q_norm, k_norm, EPS, None if rotary is None else rotary.cos,
            None if rotary is None else rotary.sin, positions, slots, tables, ours,
            out_q_TND=out, options=options, bias_W=bias, squares_T2=found,
        )  # fmt: skip
        small = SMALL[self.dtype]
        torch.testing.assert_close(out, q, rtol=small, atol=small)
        self.assert_same_caches(ours, expected, small)

    def assert_same_caches(self, ours: LayerCache, expected: LayerCache, small: float) -> None:
        everything = torch.arange(len(ours.keys), device=DEVICE)
        if ours.scales is not None and expected.scales is not None:
            # Of FP8 a number that was near a tie may be the next one: one part in eight.
            assert (ours.scales == expected.scales).float().mean() > 0.9
            small = 0.13
        pairs = zip(
            ours.read(everything, torch.float32), expected.read(everything, torch.float32),
            strict=True,
        )  # fmt: skip
        for found, wanted in pairs:
            torch.testing.assert_close(found, wanted, rtol=small, atol=small)

    def numbers(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=DEVICE).to(self.dtype)

    def norm(self, size: int) -> RMSNorm:
        norm = RMSNorm(size, EPS, self.dtype, DEVICE)
        torch.nn.init.normal_(norm.weight, mean=1.0)
        return norm

    def cache(self) -> LayerCache:
        shape = self.shape
        sizes = CacheSizes(
            num_layers=1, block_size=BLOCK, num_kv_heads=shape.K, head_dim=shape.D,
            v_head_dim=shape.V, dtype=self.cache_dtype or self.dtype,
        )  # fmt: skip
        return KVCache(sizes, shape.T * MAX_BLOCKS, DEVICE).layers[0]


def made_up(seed: int) -> Case:
    """Any options with any shape."""
    rng = random.Random(seed)
    D = 4 * rng.randint(1, 6)
    V = D if rng.random() < 0.6 else 4 * rng.randint(1, 6)
    N, K = (rng.choice([1, 2]) * (k := rng.randint(1, 3)), k)
    shape = Shape(
        T=rng.randint(1, 4), S=rng.choice([1, 1, 3]), N=N, K=K, D=D, V=V,
        R=rng.choice([0, D, D, 2 * rng.randint(1, D // 2)]),
    )  # fmt: skip
    widths = (2 * N * D, 2 * K * D)
    options = HeadOptions(
        norm=rng.choice(NORMS),
        clip=rng.choice([None, 0.7]),
        interleaved=rng.random() < 0.5,
        norm_widths=widths,
    )
    return Case(
        shape, options, rng.random() < 0.5, rng.choice([torch.float32, torch.float16]),
        rng.choice([None, FP8]), seed,
    )  # fmt: skip


@pytest.fixture(params=[False, True], ids=["narrow", "wide"])
def each_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of few tokens and that of many, whatever their number."""
    monkeypatch.setattr(module, "_ONE_WAVE_TOKENS", 0 if request.param else 1 << 30)


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("seed", range(12))
def test_made_up_options(seed: int) -> None:
    made_up(seed).check()


@pytest.mark.grid
@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("seed", range(12, 120))
def test_more_made_up_options(seed: int) -> None:
    made_up(seed).check()


COMBINATIONS = list(
    itertools.product(NORMS, (None, 0.7), (False, True), (0, 4, 8), (False, True), (8, 12))
)


@pytest.mark.grid
@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize(("norm", "clip", "interleaved", "R", "has_bias", "V"), COMBINATIONS)
def test_every_combination(
    norm: str, clip: float | None, interleaved: bool, R: int, has_bias: bool, V: int
) -> None:
    options = HeadOptions(norm=norm, clip=clip, interleaved=interleaved, norm_widths=(48, 32))
    Case(Shape(T=2, R=R, V=V), options, has_bias).check()


# Families: GLM-4.5, Qwen2-MoE, OLMoE, ERNIE 4.5, MiniMax-M2, Hunyuan, Phi-3.5-MoE.
FAMILIES = [
    Case(Shape(T=1, N=2, K=1, D=16, V=16, R=8), HeadOptions(norm="head"), has_bias=True),
    Case(Shape(T=2, S=2, N=2, K=2), HeadOptions(norm="none"), has_bias=True),
    Case(Shape(T=2, N=2, K=2), HeadOptions(norm="all_heads", clip=1.0, norm_widths=(32, 32))),
    Case(Shape(T=2, N=4, K=2), HeadOptions(norm="none", interleaved=True)),
    Case(
        Shape(T=1, N=3, K=1, D=16, V=16, R=8), HeadOptions(norm="all_heads", norm_widths=(96, 32))
    ),
    Case(Shape(T=2, N=4, K=1), HeadOptions(norm="head_after_rotary")),
    Case(Shape(T=1, N=2, K=1, D=192, V=128, R=192), HeadOptions(norm="none")),
    Case(Shape(T=1, N=1, K=1, D=80, V=96, R=32), HeadOptions(norm="head")),
    Case(Shape(T=1, N=1, K=1, D=256, V=256, R=256), HeadOptions(norm="head")),
]


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: f"{case.options.norm}-{case.shape.D}")
def test_families(case: Case) -> None:
    case.check()


def test_keys_that_another_rank_counts() -> None:
    qkv = torch.randn(1, 2, 24, device=DEVICE)
    out = torch.full((2, 2), torch.nan, device=DEVICE)
    qk_squares(qkv, (16, 4), None, qkv, out_T2=out, counts_keys=False)
    torch.testing.assert_close(out[:, 0], qkv[0, :, :16].square().sum(1))
    assert out[:, 1].tolist() == [0, 0]


def test_more_numbers_than_a_program_holds_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.attention.kernels.qk_squares._BLOCK", 8)
    qkv = torch.randn(1, 2, 40, device=DEVICE)
    out = qk_squares(qkv, (20, 11), None, qkv, out_T2=torch.empty(2, 2, device=DEVICE))
    torch.testing.assert_close(out[:, 0], qkv[0, :, :20].square().sum(1))
    torch.testing.assert_close(out[:, 1], qkv[0, :, 20:31].square().sum(1))


def test_what_is_not_finite_spoils_no_other_dimension() -> None:
    """A part of a head that is not turned passes as it is, infinite or not."""
    heads: Heads = split_heads(torch.full((1, 24), torch.inf), None, (1, 1), 8)
    spec = RopeSpec(dim=4, theta=1e4)
    angles = RotaryEmbedding(spec, 4, torch.device("cpu"))(torch.tensor([1]))
    q, _, _ = finish_heads(heads, None, angles, HeadOptions(norm="none"))
    assert q[0, 0, 4:].tolist() == [torch.inf] * 4
