"""The mathematics of a sparse block as numbers, checked once.

Owns `MoEConfig` and the choice of a router and a runner; `moe.base.parallel` chooses the
dispatcher. Imports no torch, so that a launcher can check its flags before anything heavy starts.
Knows config.json only by the four keys that choose a router.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe.base.parallel import ParallelConfig
from moe.names import QWEN_NAMES, Mlp, MoENames

ROUTER_KINDS = (
    "softmax",
    "softmax_groups",
    "softmax_bias",
    "greedy",
    "group_limited_greedy",
    "sigmoid",
    "noaux_tc",
    "sparsemixer",
)
RUNNER_NAMES = ("fused", "legacy")

_ROUTER_ALIASES = {"fused_gate": "noaux_tc"}
_GREEDY_METHODS = ("greedy", "group_limited_greedy")


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEConfig:
    """One sparse block's mathematics. Raises ValueError when the numbers contradict each other.

    `intermediate_size` is the width I of one routed expert, `shared_expert_size` that of all shared
    experts together (0: none). `shared_expert_gated` is Qwen3-Next's sigmoid gate on them.
    Kinds read what transformers does for the architectures they come from. `n_group` and
    `topk_group`: softmax_groups, group_limited_greedy, noaux_tc, and sigmoid when `n_group` > 1.
    `routed_scaling_factor`: all but softmax, softmax_bias and sparsemixer. `norm_topk_prob`:
    softmax, softmax_groups, sigmoid and noaux_tc. `use_correction_bias` gives a sigmoid router the
    bias that noaux_tc and softmax_bias always have. `norm_min` is the least sum that softmax_bias
    divides weights by. `logit_softcap` bounds the logits of sigmoids; 0: none.
    `router_jitter_noise` says which logits sparsemixer takes to be near the best. With `fp32_gate`
    the router's weight is held in fp32 whatever the model's dtype, and its logits are of fp32.
    """

    hidden_size: int
    intermediate_size: int
    num_experts: int
    num_experts_per_tok: int
    router: str = "softmax"
    norm_topk_prob: bool = False
    n_group: int = 0
    topk_group: int = 0
    routed_scaling_factor: float = 1.0
    use_correction_bias: bool = False
    norm_min: float = 0.0
    logit_softcap: float = 0.0
    router_jitter_noise: float = 0.0
    fp32_gate: bool = False
    shared_expert_size: int = 0
    shared_expert_gated: bool = False
    names: MoENames = QWEN_NAMES

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "num_experts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                f"num_experts_per_tok must be in 1..num_experts={self.num_experts}, "
                f"got {self.num_experts_per_tok}"
            )
        if self.router not in ROUTER_KINDS:
            raise ValueError(_unknown("router", self.router, ROUTER_KINDS))
        for name in ("shared_expert_size", "norm_min", "logit_softcap", "router_jitter_noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative: {getattr(self, name)}")
        if self.router == "sparsemixer" and self.num_experts_per_tok != 2:
            raise ValueError(
                f"router sparsemixer chooses 2 experts: num_experts_per_tok must be 2, "
                f"got {self.num_experts_per_tok}"
            )
        if self.shared_expert_gated and not self.shared_expert_size:
            raise ValueError("shared_expert_gated needs shared_expert_size > 0, got 0")
        if self.grouped:
            self._check_groups()

    @property
    def grouped(self) -> bool:
        """Whether the router first chooses among groups of experts."""
        always = self.router in ("softmax_groups", "group_limited_greedy", "noaux_tc")
        return always or (self.router == "sigmoid" and self.n_group > 1)

    @property
    def has_correction_bias(self) -> bool:
        """Whether the checkpoint holds a bias that counts for the choice of experts only."""
        always = self.router in ("noaux_tc", "softmax_bias")
        return always or (self.router == "sigmoid" and self.use_correction_bias)

    @property
    def shared_modules(self) -> Mlp:
        """What a checkpoint calls gate, up and down of the shared experts."""
        return self.names.shared_modules(is_gated=self.shared_expert_gated)

    def _check_groups(self) -> None:
        if self.n_group < 1 or self.num_experts % self.n_group:
            raise ValueError(
                f"router {self.router}: n_group={self.n_group} must divide "
                f"num_experts={self.num_experts}"
            )
        if not 0 < self.topk_group <= self.n_group:
            raise ValueError(
                f"router {self.router}: topk_group must be in 1..n_group={self.n_group}, "
                f"got {self.topk_group}"
            )
        eligible = self.topk_group * (self.num_experts // self.n_group)
        if self.num_experts_per_tok > eligible:
            raise ValueError(
                f"router {self.router}: topk_group={self.topk_group} of n_group={self.n_group} "
                f"leaves {eligible} experts, fewer than "
                f"num_experts_per_tok={self.num_experts_per_tok}"
            )


def resolve_router(config: Mapping[str, Any]) -> str:
    """The router kind that a model's config.json asks for, one of `ROUTER_KINDS`.

    `moe_router_backend` decides, else `topk_method == "noaux_tc"`, else `scoring_func`, else
    softmax. A softmax with DeepSeek-V2's `topk_method` is the kind of that name. Raises ValueError.
    """
    method = config.get("topk_method")
    name = config.get("moe_router_backend")
    if name is None:
        name = method if method == "noaux_tc" else config.get("scoring_func") or "softmax"
    name = _ROUTER_ALIASES.get(name, name)
    if name not in ROUTER_KINDS:
        raise ValueError(_unknown("router", name, (*ROUTER_KINDS, *_ROUTER_ALIASES)))
    if name != "softmax" or method in (None, "noaux_tc"):
        return str(name)
    if method not in _GREEDY_METHODS:
        raise ValueError(_unknown("topk_method", method, (*_GREEDY_METHODS, "noaux_tc")))
    return str(method)


def check_widths(config: MoEConfig, parallel: ParallelConfig) -> None:
    """Raises ValueError where tp does not divide a width that the backend slices over tp."""
    sliced = {
        "moe_intermediate_size": config.intermediate_size if parallel.ep == 1 else 0,
        "the shared experts' width": config.shared_expert_size if parallel.tokens_replicated else 0,
    }
    for what, width in sliced.items():
        if width % parallel.tp:
            raise ValueError(
                f"--moe-ep-backend {parallel.backend} slices {what}={width} over tp ranks, and "
                f"--tp {parallel.tp} does not divide it: choose a --tp that does"
            )


def resolve_runner(name: str) -> str:
    """The expert runner that `--moe-runner` asks for; `auto` is the fused one."""
    chosen = name.strip().lower()
    if chosen not in ("auto", *RUNNER_NAMES):
        raise ValueError(_unknown("--moe-runner", name, ("auto", *RUNNER_NAMES)))
    return "fused" if chosen == "auto" else chosen


def _unknown(what: str, name: object, known: tuple[str, ...]) -> str:
    return f"unknown {what} {name!r}: choose one of {', '.join(known)}"
