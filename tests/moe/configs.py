"""Sparse layers of three architectures, small enough for ranks on one machine."""

from __future__ import annotations

from typing import Any

from moe.config import MoEConfig

AG_RS = "allgather_reducescatter"
H, I, K = 32, 32, 3


def make_config(num_experts: int = 7, **changes: Any) -> MoEConfig:
    return MoEConfig(
        hidden_size=H,
        intermediate_size=I,
        num_experts=num_experts,
        num_experts_per_tok=changes.pop("num_experts_per_tok", K),
        norm_topk_prob=True,
        **changes,
    )


QWEN3 = make_config()
QWEN3_NEXT = make_config(shared_expert_size=24, shared_expert_gated=True)
DEEPSEEK = make_config(
    8, router="noaux_tc", n_group=4, topk_group=2, shared_expert_size=24, routed_scaling_factor=1.5
)
