"""Runners, and each way the fused one may take, against the oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe import runner as runner_module
from moe.base.deferred_sum import weighted_sum
from moe.base.weight import Weight
from moe.placement import ExpertPlacement
from moe.reference import reference_experts
from moe.routes import TopK
from moe.runner import RUNNERS

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
# What fused_experts chooses from without kernels.
WAYS = ("_vector_routes", "_sorted_routes")


def make_experts(
    num_experts: int, hidden: int, width: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    w13 = torch.randn(num_experts, 2 * width, hidden) * hidden**-0.5
    w2 = torch.randn(num_experts, hidden, width) * width**-0.5
    return w13.to(dtype), w2.to(dtype)


def make_routes(num_tokens: int, num_experts: int, k: int, padding: float = 0.0) -> TopK:
    ids = torch.rand(num_tokens, num_experts).argsort(dim=1)[:, :k].int()
    ids[torch.rand(num_tokens) < padding] = -1
    return TopK(torch.rand(num_tokens, k), ids)


def expected(
    hidden: torch.Tensor, topk: TopK, w13: torch.Tensor, w2: torch.Tensor, start: int = 0
) -> torch.Tensor:
    """The oracle over experts `start`, `start` + 1, …, all other routes skipped."""
    local = topk.ids - start
    ids = torch.where((topk.ids >= 0) & (local >= 0) & (local < len(w13)), local, -1)
    gate, up = w13.chunk(2, dim=1)
    return reference_experts(hidden, topk.weights, ids, gate, up, w2)


def assert_close(out: torch.Tensor, reference: torch.Tensor) -> None:
    tolerance = TOLERANCE[out.dtype]
    torch.testing.assert_close(out.double(), reference, rtol=tolerance, atol=tolerance)


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, int]:
    num_experts = draw(st.integers(1, 9))
    num_ranks = draw(st.integers(1, 4))
    return {
        "num_experts": num_experts,
        "k": draw(st.integers(1, num_experts)),
        "num_ranks": num_ranks,
        "rank": draw(st.integers(0, num_ranks - 1)),
        "num_tokens": draw(st.sampled_from([0, 1, 2, 3, 17, 40])),
        "hidden": draw(st.integers(1, 33)),
        "width": draw(st.integers(1, 33)),
        "seed": draw(st.integers(0, 2**31)),
    }


@pytest.mark.parametrize("name", list(RUNNERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(shape=shapes())
@settings(max_examples=40, deadline=None)
def test_random_shapes(name: str, dtype: torch.dtype, shape: dict[str, int]) -> None:
    torch.manual_seed(shape["seed"])
    num_experts, num_tokens = shape["num_experts"], shape["num_tokens"]
    placement = ExpertPlacement(
        num_experts=num_experts, num_ranks=shape["num_ranks"], rank=shape["rank"]
    )
    w13, w2 = make_experts(placement.num_local, shape["hidden"], shape["width"], dtype)
    hidden = torch.randn(num_tokens, shape["hidden"]).to(dtype)
    topk = make_routes(num_tokens, num_experts, shape["k"], padding=0.2)
    out = RUNNERS[name](
        hidden, topk, Weight(w13), Weight(w2), placement.expert_map("cpu"), None
    ).total(dtype)
    assert (out.shape, out.dtype) == (hidden.shape, dtype)
    assert_close(out, expected(hidden, topk, w13, w2, placement.start))


@pytest.mark.parametrize("name", list(RUNNERS))
def test_without_a_map_every_expert_is_local(name: str) -> None:
    w13, w2 = make_experts(5, 16, 24, torch.float32)
    hidden, topk = torch.randn(7, 16), make_routes(7, 5, 3, padding=0.3)
    out = RUNNERS[name](hidden, topk, Weight(w13), Weight(w2), None, None).total(torch.float32)
    assert_close(out, expected(hidden, topk, w13, w2))


@pytest.mark.parametrize("name", list(RUNNERS))
@pytest.mark.parametrize("num_tokens", [1, 30])
def test_one_expert_takes_all(name: str, num_tokens: int) -> None:
    w13, w2 = make_experts(7, 16, 24, torch.float32)
    hidden = torch.randn(num_tokens, 16)
    topk = TopK(torch.rand(num_tokens, 1), torch.full((num_tokens, 1), 4, dtype=torch.int32))
    out = RUNNERS[name](hidden, topk, Weight(w13), Weight(w2), None, None).total(torch.float32)
    assert_close(out, expected(hidden, topk, w13, w2))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 3, 50])
def test_each_way(way: str, dtype: torch.dtype, num_tokens: int) -> None:
    w13, w2 = make_experts(6, 16, 24, dtype)
    hidden = torch.randn(num_tokens, 16).to(dtype)
    topk = make_routes(num_tokens, 6, 3)
    local = torch.where(topk.ids == 2, -1, topk.ids)
    routes = getattr(runner_module, way)(hidden, local.flatten(), Weight(w13), Weight(w2))
    out = weighted_sum(routes.view(num_tokens, 3, 16), topk.weights, dtype)
    assert_close(out, expected(hidden, TopK(topk.weights, local), w13, w2))
    assert routes[local.flatten() < 0].eq(0).all()


@pytest.mark.parametrize("name", list(RUNNERS))
def test_foreign_routes_are_exactly_zero(name: str) -> None:
    """Neither the rows, the weights nor the memory of foreign routes may show."""
    w13, w2 = make_experts(2, 16, 24, torch.float32)
    placement = ExpertPlacement(num_experts=8, num_ranks=4, rank=1)
    ids = torch.tensor([[0, 1], [6, 7], [-1, -1]], dtype=torch.int32).repeat(5, 1)
    weights = torch.full((15, 2), torch.nan)
    hidden = torch.randn(15, 16)
    hidden[2::3] = torch.inf
    expert_map = placement.expert_map("cpu")
    out = RUNNERS[name](hidden, TopK(weights, ids), Weight(w13), Weight(w2), expert_map, None)
    assert out.total(torch.float32).eq(0).all()


def test_sum_over_k_is_in_order() -> None:
    """1 + 2⁻²⁴ + 2⁻²⁴ is 1 in fp32 when added from the left, more when added from the right."""
    routes = torch.tensor([1.0, 2**-24, 2**-24]).view(1, 3, 1)
    assert weighted_sum(routes, torch.ones(1, 3), torch.float32).item() == 1.0
    assert weighted_sum(routes.flip(1), torch.ones(1, 3), torch.float32).item() > 1.0


def test_accumulation_is_fp32() -> None:
    routes = torch.tensor([256.0, 1.0, 1.0], dtype=torch.bfloat16).view(1, 3, 1)
    assert weighted_sum(routes, torch.ones(1, 3), torch.bfloat16).item() == 258.0
