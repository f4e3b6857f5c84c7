"""Settings of the MoE part: the shape of its layers, and how experts are spread over ranks.

Owns `MoEConfig`, `ParallelConfig`, and the flags' truth table, aliases and errors. Imports no
torch, so that a launcher can check its flags before anything heavy starts. It does not know
config.json beyond the four keys that choose a router, nor anything of attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ROUTER_KINDS = ("softmax", "greedy", "group_limited_greedy", "sigmoid", "noaux_tc")
BACKENDS = ("disabled", "local_allreduce", "allgather_reducescatter", "all_to_all", "deepep")
RUNNER_NAMES = ("fused", "legacy")

_ROUTER_ALIASES = {"fused_gate": "noaux_tc"}
_GREEDY_METHODS = ("greedy", "group_limited_greedy")
_BACKEND_ALIASES = {
    "": "auto",
    "none": "disabled",
    "off": "disabled",
    "standard": "disabled",
    "0": "disabled",
    "naive": "allgather_reducescatter",
    "ag_rs": "allgather_reducescatter",
    "all_gather_reduce_scatter": "allgather_reducescatter",
    "local_all_reduce": "local_allreduce",
    "tp_ep": "local_allreduce",
    "vllm_tp": "local_allreduce",
    "dp1": "local_allreduce",
    "a2a": "all_to_all",
    "alltoall": "all_to_all",
    "deep_ep": "deepep",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEConfig:
    """One sparse block's mathematics. Raises ValueError when the numbers contradict each other.

    `intermediate_size` is the width I of one routed expert, `shared_expert_size` that of all shared
    experts together (0: none). `shared_expert_gated` is Qwen3-Next's sigmoid gate on them.
    `n_group` and `topk_group` are read by group_limited_greedy and noaux_tc, and by sigmoid when
    `n_group` > 1. `use_correction_bias` gives a sigmoid router the bias that noaux_tc always has.
    `routed_scaling_factor` is read by all kinds but softmax, `norm_topk_prob` by softmax, sigmoid
    and noaux_tc: what transformers does for the architectures they come from.
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
    shared_expert_size: int = 0
    shared_expert_gated: bool = False

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
        if self.shared_expert_size < 0:
            raise ValueError(f"shared_expert_size must not be negative: {self.shared_expert_size}")
        if self.shared_expert_gated and not self.shared_expert_size:
            raise ValueError("shared_expert_gated needs shared_expert_size > 0, got 0")
        if self.grouped:
            self._check_groups()

    @property
    def grouped(self) -> bool:
        """Whether the router first chooses among groups of experts."""
        always = self.router in ("group_limited_greedy", "noaux_tc")
        return always or (self.router == "sigmoid" and self.n_group > 1)

    @property
    def has_correction_bias(self) -> bool:
        """Whether the checkpoint holds `gate.e_score_correction_bias`."""
        return self.router == "noaux_tc" or (self.router == "sigmoid" and self.use_correction_bias)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    """A layout that passed the truth table: `tp` × `dp` ranks, experts over `ep` of them."""

    tp: int
    dp: int
    ep: int
    backend: str
    reason: str

    @property
    def world_size(self) -> int:
        """Ranks of the whole group."""
        return self.tp * self.dp

    @property
    def tokens_replicated(self) -> bool:
        """Whether every tp rank gives the experts all of its replica's tokens, not a share."""
        return self.backend in ("disabled", "local_allreduce")

    @property
    def routes_vary(self) -> bool:
        """Whether the host must ask the device how many routes an exchange brought."""
        return self.backend == "all_to_all"

    @property
    def log_line(self) -> str:
        """The line every start logs; `reason` is the next."""
        return f"MoE EP backend: {self.backend}  TP={self.tp}  DP={self.dp}  EP={self.ep}"


def resolve_parallel(
    *, tp: int, dp: int, ep: int | None, backend: str, has_experts: bool
) -> ParallelConfig:
    """The layout that the flags `--tp --dp --ep --moe-ep-backend` ask for.

    `ep` None means unset; `backend` may be an alias, case and spaces do not matter. Raises
    ValueError with the numbers and the valid choices.
    """
    for flag, size in (("--tp", tp), ("--dp", dp), ("--ep", 1 if ep is None else ep)):
        if size < 1:
            raise ValueError(f"{flag} must be at least 1, got {size}")
    name = _canonical_backend(backend)
    if not has_experts:
        reason = "the model has no experts"
        return ParallelConfig(tp=tp, dp=dp, ep=1, backend="disabled", reason=reason)
    if name == "deepep":
        raise ValueError(DEEPEP_UNAVAILABLE)
    world = tp * dp
    size = (1 if name == "disabled" else world) if ep is None else ep
    if size not in (1, world):
        choices = "1" if world == 1 else f"1 or {world}"
        raise ValueError(f"--ep must be {choices} with --tp {tp} --dp {dp}, got {size}")
    if name == "auto":
        name, reason = _choose_backend(dp, size)
    else:
        reason = f"asked for by --moe-ep-backend {name}"
    _check_backend(name, tp, dp, size)
    return ParallelConfig(tp=tp, dp=dp, ep=size, backend=name, reason=reason)


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


def resolve_runner(name: str, *, preferred: str = "fused") -> str:
    """The expert runner that `--moe-runner` asks for; `auto` is the one the model prefers."""
    chosen = name.strip().lower()
    if chosen not in ("auto", *RUNNER_NAMES):
        raise ValueError(_unknown("--moe-runner", name, ("auto", *RUNNER_NAMES)))
    return preferred if chosen == "auto" else chosen


DEEPEP_UNAVAILABLE = (
    "--moe-ep-backend deepep is reserved, DeepEP is not installed: "
    "use all_to_all or allgather_reducescatter, or local_allreduce with --dp 1"
)


def _canonical_backend(backend: str) -> str:
    name = backend.strip().lower()
    name = _BACKEND_ALIASES.get(name, name)
    if name not in ("auto", *BACKENDS):
        raise ValueError(_unknown("--moe-ep-backend", backend, ("auto", *BACKENDS)))
    return name


def _choose_backend(dp: int, ep: int) -> tuple[str, str]:
    """Backend and reason of `auto`."""
    if ep == 1:
        return "disabled", "auto: ep = 1, experts are not spread"
    if dp == 1:
        return "local_allreduce", f"auto: ep = {ep}, dp = 1, tokens are replicated"
    return "allgather_reducescatter", f"auto: ep = {ep}, dp = {dp}, each replica has its own tokens"


def _check_backend(name: str, tp: int, dp: int, ep: int) -> None:
    sizes = f"--tp {tp} --dp {dp} --ep {ep}"
    if name == "disabled" and ep > 1:
        raise ValueError(
            f"--moe-ep-backend disabled keeps experts on every rank, got {sizes}: "
            f"leave --ep out or 1, or choose one of {', '.join(BACKENDS[1:4])}"
        )
    if name != "disabled" and ep == 1:
        raise ValueError(
            f"--moe-ep-backend {name} spreads experts over ranks, got {sizes}: "
            "it needs more than one rank and --ep tp·dp; choose auto or disabled"
        )
    if name == "local_allreduce" and dp > 1:
        raise ValueError(
            f"--moe-ep-backend local_allreduce needs replicated tokens (--dp 1), got {sizes}: "
            "choose allgather_reducescatter or all_to_all"
        )


def _unknown(what: str, name: object, known: tuple[str, ...]) -> str:
    return f"unknown {what} {name!r}: choose one of {', '.join(known)}"
