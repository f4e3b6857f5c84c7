"""qk_rope against RMSNorm, rotate and LayerCache.write."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from workers.attention.kernels import qk_rope as module
from workers.attention.kernels.qk_rope import qk_rope
from workers.attention.kv_cache import FP8, CacheSizes, KVCache, LayerCache
from workers.layers.norm import RMSNorm
from workers.layers.rope_spec import RopeSpec
from workers.layers.rotary import RotaryEmbedding, rotate

pytestmark = pytest.mark.interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6
BLOCK, MAX_BLOCKS = 4, 5
SMALL = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}


@dataclasses.dataclass
class Case:
    """Inputs of one launch: distinct sequences with blocks of their own."""

    T: int
    N: int
    K: int
    D: int
    dtype: torch.dtype
    device: str

    def __post_init__(self) -> None:
        device, kind = torch.device(self.device), {"device": self.device, "dtype": torch.int32}
        num_slots = self.T + 2
        self.slots = torch.randperm(num_slots, device=device)[: self.T].int()
        self.positions = torch.randint(0, BLOCK * MAX_BLOCKS, (self.T,), **kind)
        blocks = torch.randperm(num_slots * MAX_BLOCKS, device=device).int()
        self.tables = blocks.view(num_slots, MAX_BLOCKS)
        self.rotary = RotaryEmbedding(RopeSpec(dim=self.D, theta=1e4), BLOCK * MAX_BLOCKS, device)
        self.norms = [RMSNorm(self.D, EPS, self.dtype, device) for _ in range(2)]
        for norm in self.norms:
            torch.nn.init.normal_(norm.weight, mean=1.0)
        shape = (num_slots * MAX_BLOCKS, BLOCK, self.K, self.D)
        self.caches = [torch.randn(shape, device=device).to(self.dtype) for _ in range(2)]
        self.width = (self.N + 2 * self.K) * self.D

    def cache(self, dtype: torch.dtype) -> LayerCache:
        """With other tokens' entries everywhere."""
        if dtype != FP8:
            return LayerCache(*(cache.clone() for cache in self.caches))
        num_blocks = len(self.caches[0])
        sizes = CacheSizes(
            num_layers=1,
            block_size=BLOCK,
            num_kv_heads=self.K,
            head_dim=self.D,
            v_head_dim=self.D,
            dtype=FP8,
        )
        layer = KVCache(sizes, num_blocks, torch.device(self.device)).layers[0]
        rows = torch.arange(num_blocks * BLOCK, device=self.device)
        layer.write(rows, *(cache.flatten(0, 1) for cache in self.caches))
        return layer

    def run(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, cache = self.launch(qkv, self.dtype)
        return q, cache.keys, cache.values

    def launch(
        self, qkv: torch.Tensor, cache_dtype: torch.dtype
    ) -> tuple[torch.Tensor, LayerCache]:
        cache = self.cache(cache_dtype)
        out = torch.empty(self.T, self.N, self.D, dtype=self.dtype, device=self.device)
        q_norm, k_norm = self.norms
        qk_rope(
            qkv, q_norm.weight, k_norm.weight, EPS, self.rotary.cos, self.rotary.sin,
            self.positions, self.slots, self.tables, cache, out_q_TND=out,
        )  # fmt: skip
        return out, cache

    def expected(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, cache = self.plain(qkv, self.dtype)
        return q, cache.keys, cache.values

    def plain(self, qkv: torch.Tensor, cache_dtype: torch.dtype) -> tuple[torch.Tensor, LayerCache]:
        total = qkv[0].float()
        for part in qkv[1:]:
            total = total + part.float()
        heads = total.to(self.dtype).unflatten(1, (-1, self.D))
        q, k, v = heads.split([self.N, self.K, self.K], dim=1)
        turn = self.rotary(torch.where(self.slots < 0, 0, self.positions))
        q, k = (rotate(norm(x), *turn) for norm, x in zip(self.norms, (q, k), strict=True))
        cache = self.cache(cache_dtype)
        real = self.slots >= 0
        slots, positions = self.slots[real].long(), self.positions[real].long()
        blocks = self.tables[slots, positions // BLOCK].long()
        cache.write(blocks * BLOCK + positions % BLOCK, k[real], v[real])
        return q, cache

    def assert_as_plain_torch(self, qkv: torch.Tensor) -> None:
        small = SMALL[self.dtype]
        for out, expected in zip(self.run(qkv), self.expected(qkv), strict=True):
            torch.testing.assert_close(out, expected, rtol=small, atol=small, equal_nan=True)

    def parts(self, S: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(S, self.T, self.width, device=self.device).to(dtype)


SHAPES = [(1, 4, 2, 8), (5, 3, 1, 24), (3, 1, 1, 6), (4, 6, 3, 2), (2, 32, 4, 128), (33, 5, 2, 16)]


@pytest.fixture(params=[False, True], ids=["narrow", "wide"])
def each_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of few tokens and that of many, whatever their number."""
    monkeypatch.setattr(module, "_ONE_WAVE_TOKENS", 0 if request.param else 1 << 30)


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("T", "N", "K", "D"), SHAPES)
def test_projection(T: int, N: int, K: int, D: int, dtype: torch.dtype) -> None:
    case = Case(T, N, K, D, dtype, DEVICE)
    case.assert_as_plain_torch(case.parts(1, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("S", [1, 2, 5])
def test_parts(S: int, dtype: torch.dtype) -> None:
    case = Case(3, 4, 2, 24, dtype, DEVICE)
    case.assert_as_plain_torch(case.parts(S, torch.float32))


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("T", [6, 35])
def test_padding_writes_nothing(T: int) -> None:
    """Whatever a padding's position: its q is that of position 0, its k and v go nowhere."""
    case = Case(T, 4, 2, 8, torch.float32, DEVICE)
    case.slots[1::2] = -1
    case.positions[1::2] = 1 << 30
    case.assert_as_plain_torch(case.parts(1, torch.float32))


@pytest.mark.usefixtures("each_kernel")
def test_all_padding() -> None:
    case = Case(3, 4, 2, 8, torch.float32, DEVICE)
    case.slots.fill_(-1)
    case.assert_as_plain_torch(case.parts(1, torch.float32))


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_not_finite_is_stored_as_zero(dtype: torch.dtype) -> None:
    case = Case(4, 3, 2, 16, dtype, DEVICE)
    qkv = case.parts(1, torch.float32)
    qkv[0, 0, -3:] = torch.tensor([torch.nan, torch.inf, -torch.inf])  # v
    qkv[0, 1, 3 * 16 + 5] = torch.nan  # k
    qkv[0, 2, 2] = torch.inf  # q
    qkv[0, 3] = 1e30  # past fp16, so that its sum is infinite where fp32's is not
    case.assert_as_plain_torch(qkv)
    q, keys, values = case.run(qkv)
    assert q[2, 0].isnan().any()
    assert keys.isfinite().all()
    assert values.isfinite().all()


@pytest.mark.usefixtures("each_kernel")
def test_casts() -> None:
    """Each cast where plain torch has it: others agree within a rounding, seldom to the bit."""
    case = Case(4, 3, 2, 64, torch.float16, DEVICE)
    qkv = case.parts(1, torch.float32)
    for out, expected in zip(case.run(qkv), case.expected(qkv), strict=True):
        assert (out == expected).float().mean() > 0.97


@pytest.mark.usefixtures("each_kernel")
def test_strided_rows() -> None:
    case = Case(5, 4, 2, 8, torch.float32, DEVICE)
    wide = torch.randn(2, 5, case.width + 16, device=DEVICE)
    case.assert_as_plain_torch(wide[:, :, : case.width])
    case.assert_as_plain_torch(wide[:1, :, : case.width])


def test_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than run in one wave: few do here, for the interpreter's sake."""
    monkeypatch.setattr(module, "_ONE_WAVE_TOKENS", 34)
    case = Case(37, 2, 1, 8, torch.float32, DEVICE)
    case.assert_as_plain_torch(case.parts(1, torch.float32))


@pytest.mark.gpu
@pytest.mark.parametrize("T", [1, 33, 256, 600, 8192])
@pytest.mark.parametrize(("N", "K"), [(32, 4), (16, 2), (64, 4)])
@pytest.mark.parametrize(
    ("S", "dtype"), [(1, torch.bfloat16), (1, torch.float32), (6, torch.float32)]
)
def test_real_shapes(T: int, N: int, K: int, S: int, dtype: torch.dtype) -> None:
    case = Case(T, N, K, 128, torch.bfloat16, "cuda")
    case.assert_as_plain_torch(case.parts(S, dtype))
