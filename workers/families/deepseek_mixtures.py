"""Mixtures as config.json files of DeepSeek's kind describe them, and of those like them."""

from __future__ import annotations

import dataclasses

from workers.config_json.model_types import MoEKeys

ROUTED_MIXTURES = MoEKeys(
    num_experts=("num_local_experts", "n_routed_experts"),
    n_group="n_group",
    topk_group="topk_group",
    routed_scaling_factor="routed_scaling_factor",
    num_shared="n_shared_experts",
    first_sparse="first_k_dense_replace",
    fp32_gate=True,
)

DEEPSEEK_MIXTURES = dataclasses.replace(
    ROUTED_MIXTURES, num_experts=("num_local_experts", "num_experts", "n_routed_experts")
)

SIGMOID_ROUTER: dict[str, tuple[str | None, ...]] = {
    "scoring_func": (None, "sigmoid"),
    "topk_method": (None, "noaux_tc"),
}
"""What keys that choose a router may say."""
