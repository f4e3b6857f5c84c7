"""Routes of other ranks: their weights become 0, and nobody reads what stands in their rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.base.context import KernelContext
from moe.base.parallel import resolve_parallel
from moe.base.tiles import TileTable
from moe.base.workspace import Workspace
from moe.config import MoEConfig
from moe.groups import ExpertGroups
from moe.kernels.foreign import drop_foreign
from moe.layer import SparseMoeBlock
from moe.placement import ExpertPlacement
from moe.routes import TopK
from moe.runner import fused_experts
from tests.moe.builders import fill, make_weights
from tests.moe.configs import AG_RS, DEEPSEEK, QWEN3, QWEN3_NEXT
from tests.moe.kernels.grouped import make_experts, make_ids
from tests.moe.ranks import Case, RankPool, check

pytestmark = pytest.mark.interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# On a GPU each shape is compiled.
EXAMPLES = 20 if DEVICE == "cpu" else 4


@pytest.mark.parametrize("P", [1, 255, 256, 257, 600])
def test_weights(P: int) -> None:
    """Also weights that are no numbers, and ids of −1."""
    ids = torch.randint(-1, 9, (P, 1), dtype=torch.int32, device=DEVICE)
    index = ExpertPlacement(num_experts=9, num_ranks=4, rank=1).expert_map(DEVICE)
    weights = torch.rand(P, 1, device=DEVICE)
    is_foreign = (ids < 0) | (index[ids.clamp(min=0).long()] < 0)
    weights[is_foreign & (torch.rand(P, 1, device=DEVICE) < 0.5)] = torch.nan
    out = torch.full_like(weights, torch.nan)
    drop_foreign(weights, ids, index, out_TK=out, pdl=False)
    assert torch.equal(out, weights.masked_fill(is_foreign, 0.0))


def make_kernels(spoil: dict[str, int]) -> KernelContext:
    """A context in fp32 whose buffers of these sizes hold NaN."""
    workspace = Workspace(DEVICE)
    for name, size in spoil.items():
        workspace.take(name, (size,), torch.float32).fill_(torch.nan)
    book = TileTable(dtype="float32", item_size=4, shared_bytes=100_000)
    return KernelContext(workspace=workspace, tiles=book, pdl=False, num_cores=2)


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, int]:
    num_experts = draw(st.integers(1, 9))
    return {
        "num_experts": num_experts,
        "k": draw(st.integers(1, min(4, num_experts))),
        "num_tokens": draw(st.sampled_from([1, 2, 3, 9, 17])),
        "hidden": draw(st.integers(1, 40)),
        "width": draw(st.integers(1, 40)),
        "seed": draw(st.integers(0, 2**31)),
    }


@given(shape=shapes(), num_ranks=st.integers(1, 4), data=st.data())
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
def test_experts_equal_plain_torch(shape: dict[str, int], num_ranks: int, data: Any) -> None:
    """One of several ranks; what foreign routes' rows hold does not show."""
    torch.manual_seed(shape["seed"])
    T, K, H, width = (shape[name] for name in ("num_tokens", "k", "hidden", "width"))
    rank = data.draw(st.integers(0, num_ranks - 1))
    place = ExpertPlacement(num_experts=shape["num_experts"], num_ranks=num_ranks, rank=rank)
    w13, w2 = make_experts(place.num_local, H, width, torch.float32, DEVICE)
    hidden = torch.randn(T, H, device=DEVICE)
    ids = make_ids(T, shape["num_experts"], K, DEVICE)
    topk = TopK(torch.rand(T, K, device=DEVICE), ids)
    context = make_kernels({"inner": T * K * width, "routes": T * K * H})
    index = place.expert_map(DEVICE)
    ours = fused_experts(hidden, topk, w13, w2, index, context).total(torch.float32, context)
    plain = fused_experts(hidden, topk, w13, w2, index).total(torch.float32)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def make_block(config: MoEConfig, context: KernelContext | None) -> SparseMoeBlock:
    parallel = resolve_parallel(tp=1, dp=1, ep=None, backend="auto", has_experts=True)
    block = SparseMoeBlock(
        config, parallel, ExpertGroups(), "fused",
        dtype=torch.float32, device=DEVICE, context=context,
    )  # fmt: skip
    weights = make_weights(config)
    assert fill(block.checkpoint_slices(""), weights) == set(weights)
    return block


@given(shape=shapes(), renormalise=st.booleans(), num_pads=st.integers(0, 3))
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
def test_the_layer_equals_plain_torch(
    shape: dict[str, int], renormalise: bool, num_pads: int
) -> None:
    """Router, experts and sum, the last tokens padding: theirs is 0, whatever their rows hold."""
    torch.manual_seed(shape["seed"])
    T, K, H = shape["num_tokens"], shape["k"], shape["hidden"]
    config = MoEConfig(
        hidden_size=H,
        intermediate_size=shape["width"],
        num_experts=shape["num_experts"],
        num_experts_per_tok=K,
        norm_topk_prob=renormalise,
    )
    context = make_kernels({"inner": T * K * shape["width"], "routes": T * K * H})
    hidden = torch.randn(T, H, device=DEVICE)
    num_valid = torch.tensor([max(0, T - num_pads)], dtype=torch.int32, device=DEVICE)
    with torch.inference_mode():
        ours = make_block(config, context)(hidden, T, num_valid).total(torch.float32, context)
        plain = make_block(config, None)(hidden, T, num_valid).total(torch.float32)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    assert ours[int(num_valid) :].eq(0).all()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    ranks = RankPool(tmp_path_factory.mktemp("ranks"), size=2)
    ranks.start()
    yield ranks
    ranks.stop()


@pytest.mark.processes
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are interpreted on CPUs alone")
@pytest.mark.parametrize(
    ("tp", "dp", "counts", "backend"),
    [(2, 1, (5,), backend) for backend in ("disabled", "local_allreduce", AG_RS, "all_to_all")]
    + [(1, 2, (0, 13), backend) for backend in ("disabled", AG_RS, "all_to_all")],
)
def test_every_exchange(
    pool: RankPool, tp: int, dp: int, counts: tuple[int, ...], backend: str
) -> None:
    """Two ranks whose kernels are interpreted add up to the oracle's layer."""
    for config in (QWEN3, QWEN3_NEXT, DEEPSEEK):
        check(pool, Case(tp=tp, dp=dp, backend=backend, counts=counts, config=config, kernels=True))
