"""Routers: which experts a token goes to, and with what weight.

Owns the gate's weight and the selection rules, one function a kind. Does not know where experts
are. Formulas follow transformers' modelling code of the architecture named at each function.
T tokens, H hidden, E experts, K experts per token, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from moe.base.checkpoint_slice import CheckpointSlice, whole
from moe.base.context import KernelContext
from moe.base.gemm import linear_parts
from moe.base.weight import Weight
from moe.config import MoEConfig
from moe.kernels.topk import TopKRule, make_choice, select_experts
from moe.routes import TopK

Selection = Callable[[torch.Tensor, torch.Tensor | None, MoEConfig], TopK]

_SIGMOIDS = ("sigmoid", "noaux_tc")


class TopKRouter(nn.Module):
    """hidden [T,H] → `TopK`, ties to the lower id. The same weight on every rank."""

    def __init__(
        self,
        config: MoEConfig,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        context: KernelContext | None = None,
    ) -> None:
        super().__init__()
        self.context = context
        self.config = config
        self.rule = topk_rule(config)
        self.logits_dtype = torch.float32 if config.fp32_gate else dtype
        shape = (config.num_experts, config.hidden_size)
        self.weight = nn.Parameter(
            torch.empty(shape, dtype=self.logits_dtype, device=device), requires_grad=False
        )
        self.e_score_correction_bias: nn.Parameter | None = None
        if config.has_correction_bias:
            bias = torch.empty(config.num_experts, dtype=torch.float32, device=device)
            self.e_score_correction_bias = nn.Parameter(bias, requires_grad=False)

    def forward(
        self,
        hidden_TH: torch.Tensor,
        num_valid: torch.Tensor | None = None,
        out_ids_P: torch.Tensor | None = None,
        *,
        defer: bool = False,
        logits_STE: torch.Tensor | None = None,
    ) -> TopK:
        """Logits in the model's dtype, or with `fp32_gate` in fp32; everything after in fp32.

        Tokens from `num_valid`, int32 [1] on the device, on are padding: ids −1, weights 0.
        `out_ids_P` [T·K] int32 takes the ids. With `defer`, for kernels alone, whoever computes the
        experts chooses them, by `TopK.choice`. `logits_STE`, for kernels too: parts of the logits
        that someone has made.
        """
        if self.context is not None:
            if logits_STE is None:
                logits_STE = self._logits(hidden_TH, self.context)
            return self._kernels(logits_STE, num_valid, out_ids_P, defer, self.context)
        assert logits_STE is None
        topk = self._select(hidden_TH)
        if num_valid is not None:
            is_pad_T1 = torch.arange(len(hidden_TH), device=hidden_TH.device)[:, None] >= num_valid
            topk = TopK(
                topk.weights.masked_fill(is_pad_T1, 0.0), topk.ids.masked_fill(is_pad_T1, -1)
            )
        if out_ids_P is not None:
            out_ids_P.copy_(topk.ids.flatten())
        return topk

    def _logits(self, hidden_TH: torch.Tensor, context: KernelContext) -> torch.Tensor:
        """In parts."""
        return linear_parts(
            hidden_TH, Weight(self.weight), context, "router", dtype=self.logits_dtype
        )

    def _kernels(
        self,
        logits_STE: torch.Tensor,
        num_valid: torch.Tensor | None,
        out_ids_P: torch.Tensor | None,
        defer: bool,
        context: KernelContext,
    ) -> TopK:
        shape = (logits_STE.shape[1], self.config.num_experts_per_tok)
        take = context.workspace.take
        ids_TK = take("ids", shape, torch.int32) if out_ids_P is None else out_ids_P.view(shape)
        weights_TK = take("weights", shape, torch.float32)
        dtype = self.logits_dtype
        how = self.rule, self.e_score_correction_bias, num_valid
        if defer:
            return TopK(weights_TK, ids_TK, make_choice(logits_STE, *how, dtype))
        weights, ids = select_experts(
            logits_STE,
            *how,
            logits_dtype=dtype,
            out_weights_TK=weights_TK,
            out_ids_TK=ids_TK,
            pdl=context.pdl,
        )
        return TopK(weights, ids)

    def _select(self, hidden_TH: torch.Tensor) -> TopK:
        logits_TE = F.linear(hidden_TH.to(self.weight.dtype), self.weight).float()
        return SELECTIONS[self.config.router](logits_TE, self.e_score_correction_bias, self.config)

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        """The weight, and the bias where the kind has one; `prefix` is that of the block."""
        names = self.config.names
        yield whole(f"{prefix}{names.gate}", self.weight)
        if self.e_score_correction_bias is not None:
            bias = self.e_score_correction_bias
            target = bias.unsqueeze(0) if names.bias_has_row else bias
            yield whole(f"{prefix}{names.correction_bias}", target)


def scores_of(logits_TE: torch.Tensor, config: MoEConfig) -> torch.Tensor:
    """What a correction bias is added to, and weights are made of: sigmoids or the softmax."""
    if config.router not in _SIGMOIDS:
        return logits_TE.softmax(dim=-1)
    if config.logit_softcap:
        logits_TE = (logits_TE / config.logit_softcap).tanh() * config.logit_softcap
    return logits_TE.sigmoid()


def topk_rule(config: MoEConfig) -> TopKRule:
    """The kernel's form of the selection function of `config.router`."""
    kind = config.router
    sigmoid = kind in _SIGMOIDS
    may_renormalise = sigmoid or kind in ("softmax", "softmax_groups")
    unscaled = kind in ("softmax", "softmax_bias", "sparsemixer")
    return TopKRule(
        k=config.num_experts_per_tok,
        sigmoid=sigmoid,
        renormalise=kind == "softmax_bias" or (config.norm_topk_prob and may_renormalise),
        scale=1.0 if unscaled else config.routed_scaling_factor,
        num_groups=config.n_group if config.grouped else 1,
        kept_groups=config.topk_group if config.grouped else 1,
        group_best=2 if sigmoid or kind == "softmax_groups" else 1,
        softcap=config.logit_softcap if sigmoid else 0.0,
        norm_min=config.norm_min if kind == "softmax_bias" else 0.0,
        mix_distance=2 * config.router_jitter_noise if kind == "sparsemixer" else None,
    )


def select_softmax(logits_TE: torch.Tensor, bias_E: torch.Tensor | None, config: MoEConfig) -> TopK:
    """Qwen2-MoE, Qwen3-MoE, OLMoE, Mixtral: softmax, top-K, divided by their sum iff
    `norm_topk_prob`. Then it is GraniteMoe's softmax over the logits of the top K, too.
    """
    assert bias_E is None
    scores_TE = logits_TE.softmax(dim=-1)
    ids_TK = _top(scores_TE, config.num_experts_per_tok)
    weights_TK = scores_TE.gather(1, ids_TK)
    if config.norm_topk_prob:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return TopK(weights_TK, ids_TK.int())


def select_softmax_groups(
    logits_TE: torch.Tensor, bias_E: torch.Tensor | None, config: MoEConfig
) -> TopK:
    """Mistral4TopkRouter: `select_sigmoid` with softmax in the sigmoid's place."""
    assert bias_E is None
    return _grouped(scores_of(logits_TE, config), None, config)


def select_softmax_bias(
    logits_TE: torch.Tensor, bias_E: torch.Tensor | None, config: MoEConfig
) -> TopK:
    """Ernie4_5_MoeTopKRouter: chosen by softmax + bias, weighted by softmax, divided by their sum,
    or by `norm_min` where that is more.
    """
    assert bias_E is not None
    scores_TE = scores_of(logits_TE, config)
    ids_TK = _top(scores_TE + bias_E, config.num_experts_per_tok)
    weights_TK = scores_TE.gather(1, ids_TK)
    total_T1 = weights_TK.sum(dim=-1, keepdim=True).clamp(min=config.norm_min)
    return TopK(weights_TK / total_T1, ids_TK.int())


def select_sparsemixer(
    logits_TE: torch.Tensor, bias_E: torch.Tensor | None, config: MoEConfig
) -> TopK:
    """PhimoeTopKRouter's `sparsemixer`, as it is outside of training.

    The two best, each weighted by the softmax of logits near it, of which the second has not the
    first: those whose distance from it is at most 2 · `router_jitter_noise` of the larger of it and
    their own size.
    """
    assert bias_E is None
    ids_TK = _top(logits_TE, config.num_experts_per_tok)
    left_TE, weights = logits_TE, []
    for id_T1 in ids_TK.split(1, dim=1):
        best_T1 = logits_TE.gather(1, id_T1)
        distance_TE = (best_T1 - logits_TE) / torch.maximum(logits_TE.abs(), best_T1)
        near_TE = left_TE.masked_fill(distance_TE > 2 * config.router_jitter_noise, -torch.inf)
        weights.append(near_TE.softmax(dim=-1).gather(1, id_T1))
        left_TE = left_TE.scatter(1, id_T1, -torch.inf)
    return TopK(torch.cat(weights, dim=1), ids_TK.int())


def select_greedy(logits_TE: torch.Tensor, bias_E: torch.Tensor | None, config: MoEConfig) -> TopK:
    """DeepSeek-V2: softmax, top-K, × `routed_scaling_factor`; never normalised.

    group_limited_greedy keeps `topk_group` groups by their best expert first.
    """
    assert bias_E is None
    scores_TE = logits_TE.softmax(dim=-1)
    choice_TE = _keep_groups(scores_TE, config, best=1) if config.grouped else scores_TE
    ids_TK = _top(choice_TE, config.num_experts_per_tok)
    return TopK(scores_TE.gather(1, ids_TK) * config.routed_scaling_factor, ids_TK.int())


def select_sigmoid(logits_TE: torch.Tensor, bias_E: torch.Tensor | None, config: MoEConfig) -> TopK:
    """DeepSeek-V3, GLM-4.5, MiniMax-M2, Laguna: chosen by σ + bias, weighted by σ.

    Groups are kept by the sum of their two best; weights are normalised iff `norm_topk_prob`, then
    × `routed_scaling_factor`. Laguna's `logit_softcap` c makes logits c · tanh(logit / c).
    """
    return _grouped(scores_of(logits_TE, config), bias_E, config)


SELECTIONS: dict[str, Selection] = {
    "softmax": select_softmax,
    "softmax_groups": select_softmax_groups,
    "softmax_bias": select_softmax_bias,
    "greedy": select_greedy,
    "group_limited_greedy": select_greedy,
    "sigmoid": select_sigmoid,
    "noaux_tc": select_sigmoid,
    "sparsemixer": select_sparsemixer,
}


def _grouped(scores_TE: torch.Tensor, bias_E: torch.Tensor | None, config: MoEConfig) -> TopK:
    """Chosen by score + bias in the groups kept, weighted by score, normalised, scaled."""
    choice_TE = scores_TE if bias_E is None else scores_TE + bias_E
    if config.grouped:
        choice_TE = _keep_groups(choice_TE, config, best=2)
    ids_TK = _top(choice_TE, config.num_experts_per_tok)
    weights_TK = scores_TE.gather(1, ids_TK)
    if config.norm_topk_prob:
        weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + 1e-20)
    return TopK(weights_TK * config.routed_scaling_factor, ids_TK.int())


def _top(scores_TE: torch.Tensor, count: int) -> torch.Tensor:
    """int64 [T,count]: best columns first, by a stable sort: torch.topk breaks ties freely."""
    return scores_TE.sort(dim=-1, descending=True, stable=True).indices[:, :count]


def _keep_groups(choice_TE: torch.Tensor, config: MoEConfig, *, best: int) -> torch.Tensor:
    """−∞ outside the `topk_group` groups whose `best` highest scores add up to most."""
    choice_TGe = choice_TE.view(-1, config.n_group, choice_TE.shape[1] // config.n_group)
    count = min(best, choice_TGe.shape[-1])
    score_TG = choice_TGe.topk(count, dim=-1).values.sum(dim=-1)
    kept_TG = torch.zeros_like(score_TG, dtype=torch.bool)
    kept_TG.scatter_(1, _top(score_TG, config.topk_group), True)
    return choice_TGe.masked_fill(~kept_TG.unsqueeze(-1), -torch.inf).flatten(1)
