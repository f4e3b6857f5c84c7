"""Blocks of every kind of router, with shared experts and without, on a GPU: captured in a graph
they allocate nothing, and they compute what plain torch does."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from moe.base.context import KernelContext, make_context
from moe.base.parallel import resolve_parallel
from moe.config import MoEConfig
from moe.groups import ExpertGroups
from moe.layer import SparseMoeBlock
from moe.router import TopKRouter
from moe.routes import TopK
from moe.runner import fused_experts
from moe.shared import SharedExperts

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-4}
DTYPES = [torch.bfloat16, torch.float32]


def make_config(num_experts: int, num_experts_per_tok: int, **kind: Any) -> MoEConfig:
    """The real numbers of experts and groups; widths are smaller."""
    numbers: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 128}
    return MoEConfig(
        num_experts=num_experts, num_experts_per_tok=num_experts_per_tok, **(numbers | kind)
    )


V3 = {
    "router": "noaux_tc", "norm_topk_prob": True, "routed_scaling_factor": 2.5, "fp32_gate": True,
}  # fmt: skip
MODELS = {
    "deepseek-v3": make_config(256, 8, **V3, n_group=8, topk_group=4, shared_expert_size=256),
    "kimi-k2": make_config(384, 8, **V3, n_group=1, topk_group=1, shared_expert_size=128),
    "deepseek-v2": make_config(
        160, 6, router="group_limited_greedy", n_group=8, topk_group=3,
        routed_scaling_factor=16.0, shared_expert_size=256, fp32_gate=True,
    ),
    "deepseek-v2-lite": make_config(
        64, 6, router="greedy", shared_expert_size=256, fp32_gate=True
    ),
    "qwen3-next": make_config(
        512, 10, norm_topk_prob=True, shared_expert_size=512, shared_expert_gated=True
    ),
    "sigmoid": make_config(
        64, 4, router="sigmoid", norm_topk_prob=True, n_group=4, topk_group=2,
        use_correction_bias=True,
    ),
    "ernie-4.5": make_config(
        64, 6, router="softmax_bias", norm_min=1e-12, shared_expert_size=256, fp32_gate=True
    ),
    "laguna": make_config(
        256, 8, router="sigmoid", norm_topk_prob=True, use_correction_bias=True, logit_softcap=30.0
    ),
    "phi-3.5-moe": make_config(16, 2, router="sparsemixer", router_jitter_noise=0.01),
}  # fmt: skip
# Routers of fp32 from bf16 inputs, at their real hidden size.
FP32_GATES = {
    "deepseek-v3": 7168, "kimi-k2": 7168, "deepseek-v2": 5120, "deepseek-v2-lite": 2048,
    "ernie-4.5": 2560,
}  # fmt: skip


def randomize(module: torch.nn.Module) -> None:
    """Weights of a size that keeps activations near 1."""
    for parameter in module.parameters():
        fan_in = parameter.shape[-1] if parameter.ndim > 1 else 25
        parameter.copy_(torch.randn(parameter.shape, device=DEVICE) * fan_in**-0.5)


def make_block(
    config: MoEConfig, dtype: torch.dtype, context: KernelContext, out_ids_P: torch.Tensor
) -> SparseMoeBlock:
    parallel = resolve_parallel(tp=1, dp=1, ep=None, backend="auto", has_experts=True)
    block = SparseMoeBlock(
        config, parallel, ExpertGroups(), "fused",
        dtype=dtype, device=DEVICE, context=context, out_ids_P=out_ids_P,
    )  # fmt: skip
    randomize(block)
    return block


def expected(block: SparseMoeBlock, hidden_TH: torch.Tensor, topk: TopK) -> torch.Tensor:
    """fp32 [T,H] of plain torch, for routes given."""
    experts = block.experts
    out = fused_experts(hidden_TH, topk, experts.w13, experts.w2, None, None)
    if block.shared_experts is not None:
        plain = SharedExperts(experts.config, dtype=hidden_TH.dtype, device=DEVICE)
        plain.load_state_dict(block.shared_experts.state_dict())
        out = out.plus(plain(hidden_TH))
    return out.total(torch.float32)


def allocations() -> int:
    return int(torch.cuda.memory_stats()["allocation.all.allocated"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 24, 300])
@pytest.mark.parametrize("model", MODELS)
@torch.inference_mode()
def test_a_captured_block_allocates_nothing(
    model: str, num_tokens: int, dtype: torch.dtype
) -> None:
    """And its replays have the bits of single launches, over changing tokens and padding."""
    config, context = MODELS[model], make_context(torch.device(DEVICE), dtype)
    shape = (num_tokens, config.num_experts_per_tok)
    out_ids = torch.full((shape[0] * shape[1],), -7, dtype=torch.int32, device=DEVICE)
    block = make_block(config, dtype, context, out_ids)
    hidden = torch.randn(num_tokens, config.hidden_size, device=DEVICE).to(dtype)
    num_valid = torch.full((1,), num_tokens, dtype=torch.int32, device=DEVICE)

    def run() -> torch.Tensor:
        return block(hidden, num_tokens, num_valid).total(dtype, context)

    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        run()
        torch.cuda.synchronize()
        context.workspace.freeze()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            before = allocations()
            out = run()
            taken = allocations() - before
        finally:
            graph.capture_end()
        assert taken == 0
        for count in (num_tokens, num_tokens // 2, 0, num_tokens):
            hidden.normal_()
            num_valid.fill_(count)
            graph.replay()
            replayed, ids = out.clone(), out_ids.view(shape).clone()
            assert torch.equal(replayed, run())
            assert ids[count:].eq(-1).all()
            assert ((ids[:count] >= 0) & (ids[:count] < config.num_experts)).all()
            topk = block.gate(hidden, num_valid, torch.empty_like(out_ids))
            assert torch.equal(topk.ids, ids)
            assert topk.weights[count:].eq(0.0).all()
            reference = expected(block, hidden, TopK(topk.weights.clone(), ids))
            error = (replayed.float() - reference).abs().max()
            assert error <= TOLERANCE[dtype] * reference.abs().max().clamp(min=1e-3)
    torch.cuda.synchronize()


@pytest.mark.parametrize("num_tokens", [1, 24, 300])
@pytest.mark.parametrize("model", MODELS)
@torch.inference_mode()
def test_routes_in_fp32(model: str, num_tokens: int) -> None:
    check_routes(MODELS[model], num_tokens, torch.float32)


@pytest.mark.parametrize("num_tokens", [1, 64, 100, 1000])
@pytest.mark.parametrize("model", FP32_GATES)
@torch.inference_mode()
def test_routes_of_bf16_by_gates_of_fp32(model: str, num_tokens: int) -> None:
    config = dataclasses.replace(MODELS[model], hidden_size=FP32_GATES[model])
    check_routes(config, num_tokens, torch.bfloat16)


def check_routes(config: MoEConfig, num_tokens: int, dtype: torch.dtype) -> None:
    """As plain torch's, but for rows where a rounding of the logits decides."""
    context = make_context(torch.device(DEVICE), dtype)
    ours = TopKRouter(config, dtype=dtype, device=DEVICE, context=context)
    plain = TopKRouter(config, dtype=dtype, device=DEVICE)
    randomize(ours)
    plain.load_state_dict(ours.state_dict())
    hidden = torch.randn(num_tokens, config.hidden_size, device=DEVICE).to(dtype)
    (our_weights, our_ids), (weights, ids) = by_id(ours(hidden)), by_id(plain(hidden))
    same = (our_ids == ids).all(dim=1)
    assert same.float().mean() >= 0.95
    torch.testing.assert_close(our_weights[same], weights[same], rtol=1e-4, atol=1e-6)


def by_id(topk: TopK) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and ids in order of ids."""
    ids, order = topk.ids.sort(dim=1)
    return topk.weights.gather(1, order), ids
