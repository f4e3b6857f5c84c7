"""The same promises on a GPU: right, without a host sync, and the same inside a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from moe.placement import ExpertPlacement
from moe.reference import reference_experts
from moe.routes import TopK
from moe.runner import RUNNERS, fused_experts
from tests.moe.ranks import Case, RankPool
from tests.moe.test_dispatch import AG_RS, DEEPSEEK, QWEN3, QWEN3_NEXT, check

pytestmark = pytest.mark.gpu

E, K, H, I = 16, 4, 256, 128
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-3}


def make_experts(dtype: torch.dtype, width: int = I) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of the second of two ranks."""
    w13 = torch.randn(E // 2, 2 * width, H, device="cuda") * H**-0.5
    w2 = torch.randn(E // 2, H, width, device="cuda") * width**-0.5
    return w13.to(dtype), w2.to(dtype)


def make_routes(num_tokens: int, first: int = 0, last: int = E) -> TopK:
    """Routes to experts in [first, last)."""
    ids = first + torch.rand(num_tokens, last - first, device="cuda").argsort(dim=1)[:, :K]
    return TopK(torch.rand(num_tokens, K, device="cuda"), ids.int())


def expert_map() -> torch.Tensor:
    return ExpertPlacement(num_experts=E, num_ranks=2, rank=1).expert_map("cuda")


def expected(hidden: torch.Tensor, topk: TopK, w13: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
    ids = torch.where(topk.ids >= E // 2, topk.ids - E // 2, -1)
    return reference_experts(hidden, topk.weights, ids, *w13.chunk(2, dim=1), w2)


@pytest.mark.parametrize("name", list(RUNNERS))
@pytest.mark.parametrize("num_tokens", [0, 1, 5, 200])
@pytest.mark.parametrize(
    ("dtype", "width"), [(torch.bfloat16, I), (torch.bfloat16, 49), (torch.float32, I)]
)
def test_runner(name: str, num_tokens: int, dtype: torch.dtype, width: int) -> None:
    w13, w2 = make_experts(dtype, width)
    hidden, topk = torch.randn(num_tokens, H, device="cuda").to(dtype), make_routes(num_tokens)
    out = RUNNERS[name](hidden, topk, w13, w2, expert_map())
    reference = expected(hidden, topk, w13, w2)
    torch.testing.assert_close(
        out.double(), reference, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_replay_equals_eager_without_a_sync(dtype: torch.dtype) -> None:
    """Over changing routes, also when all are foreign, all local, or all one expert's."""
    w13, w2 = make_experts(dtype)
    index = expert_map()
    hidden, topk = torch.randn(24, H, device="cuda").to(dtype), make_routes(24)
    fused_experts(hidden, topk, w13, w2, index)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = fused_experts(hidden, topk, w13, w2, index)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for first, last in ((0, E), (0, E // 2), (E // 2, E), (E - K, E), (0, E)):
        hidden.normal_()
        fresh = make_routes(24, first, last)
        topk.weights.copy_(fresh.weights)
        topk.ids.copy_(fresh.ids)
        graph.replay()
        assert torch.equal(out, fused_experts(hidden, topk, w13, w2, index))
        if last == E // 2:
            assert out.eq(0).all()
        else:
            assert out.ne(0).any()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    ranks = RankPool(tmp_path_factory.mktemp("ranks"), size=2, on_cuda=True)
    ranks.start()
    yield ranks
    ranks.stop()


@pytest.mark.multirank
@pytest.mark.parametrize(
    ("tp", "dp", "counts", "backend"),
    [(2, 1, (5,), backend) for backend in ("disabled", "local_allreduce", AG_RS, "all_to_all")]
    + [(1, 2, (0, 4), backend) for backend in ("disabled", AG_RS, "all_to_all")],
)
def test_nccl(pool: RankPool, tp: int, dp: int, counts: tuple[int, ...], backend: str) -> None:
    for config in (QWEN3, QWEN3_NEXT, DEEPSEEK):
        check(pool, Case(tp=tp, dp=dp, backend=backend, counts=counts, config=config))
