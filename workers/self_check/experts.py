"""Checks of a sparse layer: its router, its routed experts and those that see every token.

Owns what plain torch says of them, in fp32, on routes to some of the experts. Knows neither
collectives nor attention. T rows, E experts, K experts per token, H hidden, I expert width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from moe.base.gemm import linear_parts, makes_quantized
from moe.base.sum_norm import takes_router
from moe.base.weight import Weight
from moe.expert_load import expert_rows
from moe.experts import FusedMoeExperts
from moe.layer import SparseMoeBlock
from moe.router import SELECTIONS, TopKRouter, scores_of
from moe.routes import TopK, local_ids
from moe.shared import SharedExperts
from workers.self_check.dense import check_parts, check_update, product, shape_of
from workers.self_check.finding import (
    EXACT,
    SUMS_OF_EIGHT_BITS,
    Finding,
    Tolerance,
    compare,
    count,
    roundings,
    told,
)
from workers.self_check.setting import Setting

_LOCAL = 16  # experts of this rank that get routes
_FOREIGN = 4  # of other ranks
_FADE = 0.4  # each expert gets fewer routes than the one before, by this power of e
_PADDING_EVERY = 8
_LOGITS_BY_ONE = 64  # made-up ones


def check_sparse(block: SparseMoeBlock, setting: Setting) -> Iterator[Finding]:
    """All of a layer but its exchange."""
    for T in setting.steps:
        share = T if block.tokens_replicated else -(-T // setting.parallel.tp)
        yield from _check_router(block.gate, share, setting)
        yield from _check_experts(block, T, setting)
        if block.shared_experts is not None:
            yield from _check_shared(block.shared_experts, share, setting)


def _check_router(router: TopKRouter, T: int, setting: Setting) -> Iterator[Finding]:
    """The matrix, on rows of all columns, if no norm makes the logits; the choice, on rows of one
    column, whose logits are exact."""
    weight, config = Weight(router.weight), router.config
    E, H = weight.shape
    columns_T = torch.arange(T, device=setting.device) * 37 % H
    one_hot_TH = F.one_hot(columns_T, H).to(setting.dtype)
    logits_TE = weight.values.float().T[columns_T]
    if setting.router_EH is not None and takes_router(T, setting.router_EH):
        topk = router(one_hot_TH, logits_STE=logits_TE.unsqueeze(0))
    else:
        x_TH = setting.rows(T, H)
        parts_STE = linear_parts(x_TH, weight, setting.context, "router", dtype=router.logits_dtype)
        yield check_parts("router", x_TH, weight, parts_STE, setting)
        topk = router(one_hot_TH)
    what = f"top {config.num_experts_per_tok} of {E} experts, {told(T)}"
    yield count(f"{what}, ids", (topk.ids < 0) | (topk.ids >= E))
    bias_E = router.e_score_correction_bias
    expected = SELECTIONS[config.router](logits_TE, bias_E, config)
    # Logits may be so close that softmax gives both one score: either is right.
    scores_TE = logits_TE if bias_E is None else scores_of(logits_TE, config) + bias_E
    chosen, wanted = (
        scores_TE.gather(1, ids.clamp(0, E - 1).long()) for ids in (topk.ids, expected.ids)
    )
    yield compare(f"{what}, choices", chosen, wanted, EXACT)
    yield compare(f"{what}, weights", topk.weights, expected.weights, EXACT)


def _check_experts(block: SparseMoeBlock, T: int, setting: Setting) -> Iterator[Finding]:
    """Routes and their weighted sum."""
    experts, parallel = block.experts, setting.parallel
    if not experts.placement.num_local:
        return
    if block.needs_host_sync:  # a row of the exchange is one route
        per_row, num_rows = 1, -(-T * experts.config.num_experts_per_tok // parallel.tp)
    else:
        per_row, num_rows = experts.config.num_experts_per_tok, expert_rows(parallel, T, T)
    x_TH = setting.rows(num_rows, experts.config.hidden_size)
    topk = routes = made_up_routes(experts, num_rows, per_row, only_local=block.needs_host_sync)
    chooses = block.tokens_replicated and experts.chooses(T)
    if chooses:
        topk, routes = _left_to_the_kernels(block.gate, x_TH, setting)
    eight_bits = experts.takes_quantized(num_rows)
    quantized_TH = None
    if block.tokens_replicated:
        quantized_TH = setting.quantized(x_TH, wanted=block.takes_quantized(T))
    update = experts(x_TH, topk, quantized_TH)
    expected_TH = sum_of_experts(x_TH, routes, experts)
    what = f"experts {shape_of(experts.w13)}"
    if chooses:
        yield count(f"{what}, which choose, {told(T)}, ids", topk.ids != routes.ids)
    allowed = SUMS_OF_EIGHT_BITS if eight_bits else roundings(5, setting.dtype)
    sharing = parallel.tp if parallel.ep == 1 else parallel.world_size
    is_alone = block.tokens_replicated and sharing == 1
    yield from check_update(what, update, expected_TH, allowed, setting, is_alone=is_alone)


def _left_to_the_kernels(
    router: TopKRouter, x_TH: torch.Tensor, setting: Setting
) -> tuple[TopK, TopK]:
    """Routes that experts choose from logits themselves, and what plain torch chooses."""
    T, E = len(x_TH), router.config.num_experts
    generator = torch.Generator(setting.device).manual_seed(E)
    noise_TE = torch.rand((T, E), generator=generator, device=setting.device)
    # Each of a row has a logit of its own, which every type holds.
    logits_TE = (noise_TE.argsort(dim=1) - E // 2).float() / _LOGITS_BY_ONE
    select = SELECTIONS[router.config.router]
    expected = select(logits_TE, router.e_score_correction_bias, router.config)
    return router(x_TH, defer=True, logits_STE=logits_TE.unsqueeze(0)), expected


def _check_shared(shared: SharedExperts, T: int, setting: Setting) -> Iterator[Finding]:
    x_TH = setting.rows(T, shared.config.hidden_size)
    is_read = setting.parallel.tokens_replicated and setting.mlp.takes_quantized(T)
    quantized_TH = setting.quantized(x_TH, wanted=is_read)
    got_TH = shared(x_TH, quantized_TH).parts.float().sum(1)
    gate_TI, up_TI = product(x_TH, shared.w13).chunk(2, dim=-1)
    inner_TI = F.silu(gate_TI) * up_TI
    if shared.gate is not None:
        inner_TI = inner_TI * torch.sigmoid(x_TH.float() @ shared.gate.float().T)
    what = f"shared experts {shape_of(shared.w13)}, {told(T)}"
    allowed = _allowed(shared.w2, T, setting)
    yield compare(what, got_TH, product(inner_TI, shared.w2), allowed)


def _allowed(weight: Weight, num_rows: int, setting: Setting) -> Tolerance:
    """Of an MLP, whose inner rows may have eight bits, or are rounded four times."""
    eight_bits = makes_quantized(num_rows, weight, setting.context)
    return SUMS_OF_EIGHT_BITS if eight_bits else roundings(5, setting.dtype)


def made_up_routes(
    experts: FusedMoeExperts, num_rows: int, per_row: int, *, only_local: bool
) -> TopK:
    """Routes to a few experts of this rank, its first and last among them, and of others: to some
    in most rows, to others in few, so that tiles are full, short and many; rows without any."""
    device = experts.w13.device
    pool = torch.tensor(_pool(experts, per_row, only_local=only_local), device=device)
    generator = torch.Generator(device).manual_seed(len(pool))
    noise = torch.rand(num_rows, len(pool), generator=generator, device=device)
    scores = -(-noise.log()).log() - _FADE * torch.arange(len(pool), device=device)
    scores[0, 0] = torch.inf  # of this rank
    ids_TK = pool[scores.topk(per_row, dim=1).indices].int()
    weights_TK = 0.1 + torch.rand(num_rows, per_row, generator=generator, device=device)
    if not only_local:
        is_padding = torch.arange(num_rows, device=device) % _PADDING_EVERY == _PADDING_EVERY - 2
        ids_TK[is_padding], weights_TK[is_padding] = -1, 0.0
    return TopK(weights_TK, ids_TK)


def _pool(experts: FusedMoeExperts, per_row: int, *, only_local: bool) -> list[int]:
    """Global ids, those of this rank first."""
    held, all_experts = experts.placement, experts.config.num_experts
    local = _spread(range(held.start, held.stop), max(_LOCAL, per_row))
    if only_local:
        return local
    others = [each for each in range(all_experts) if not held.start <= each < held.stop]
    return local + _spread(others, max(_FOREIGN, per_row - len(local)))


def _spread(ids: range | list[int], count: int) -> list[int]:
    """At most so many, the first and the last among them."""
    if len(ids) <= count:
        return list(ids)
    return [ids[place * (len(ids) - 1) // (count - 1)] for place in range(count)]


def sum_of_experts(x_TH: torch.Tensor, topk: TopK, experts: FusedMoeExperts) -> torch.Tensor:
    """[T,H] in fp32: Σ_k weight · down·(silu(gate·x) · up·x) over the experts of this rank."""
    x_TH = x_TH.float()
    out_TH = torch.zeros_like(x_TH)
    local_TK = local_ids(topk.ids, experts.expert_map)
    for expert in local_TK.unique().tolist():
        if expert >= 0:
            tokens, ks = torch.where(local_TK == expert)
            gate, up = product(x_TH[tokens], experts.w13[expert]).chunk(2, dim=-1)
            y = product(F.silu(gate) * up, experts.w2[expert])
            out_TH.index_add_(0, tokens, topk.weights[tokens, ks, None] * y)
    return out_TH
