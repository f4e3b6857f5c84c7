"""Checks of what all models have: embedding, dense layers, sums, norms, head.

Owns what plain torch says of them, in fp32. Knows neither attention nor experts. T rows, S parts,
H hidden, I width, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from moe.base.deferred_sum import DeferredSum
from moe.base.gemm import linear_parts
from moe.base.quantized import Quantized
from moe.base.swiglu import swiglu
from moe.base.weight import Weight
from workers.layers.embedding import Embedding, LMHead
from workers.layers.linear import RowParallelLinear
from workers.layers.norm import Norm, Normed
from workers.models.dense_mlp import DenseMLP
from workers.models.end_norms import EndNormLayer
from workers.self_check.finding import (
    EIGHT_BITS,
    TENSOR_CORE_SUMS,
    Finding,
    Tolerance,
    compare,
    count,
    roundings,
    told,
)
from workers.self_check.setting import Setting

_ROWS_AT_ONCE = 4096  # of a matrix in fp32
_PARTS = 3


def check_embedding(embedding: Embedding, setting: Setting) -> Iterator[Finding]:
    """Rows of the table by given ids, its first and last among them, and by drawn tokens."""
    vocab_size, device = embedding.weight.shape[0], setting.device
    last_token = torch.tensor([vocab_size - 1, 1], dtype=torch.int32, device=device)
    for T in setting.steps:
        ids_T = (torch.arange(T, dtype=torch.int32, device=device) * 7919) % vocab_size
        drawn = torch.arange(T, device=device) % 3 == 0
        slots_T = torch.arange(T, dtype=torch.int32, device=device) % 2
        got_TH = embedding(ids_T.masked_fill(drawn, -1), slots_T, last_token)
        expected_TH = embedding.weight[torch.where(drawn, last_token[slots_T], ids_T)]
        what = f"embedding of {vocab_size}, {told(T)}"
        yield count(what, (got_TH != expected_TH) & expected_TH.isfinite())


def check_norm(norm: Norm, setting: Setting) -> Iterator[Finding]:
    """Of what no layer has added to yet."""
    for T in setting.steps:
        x_TH = setting.rows(T, norm.weight.shape[0])
        in_eight_bits = setting.attention.takes_quantized(T)
        normed = norm.add_for_readers(x_TH, None, in_eight_bits=in_eight_bits)
        yield from check_normed("norm", norm, x_TH, normed)


def check_end_norms(layer: EndNormLayer, setting: Setting) -> Iterator[Finding]:
    """The norm of a sum of parts that is added to nothing, and what a residual is with it."""
    norm = layer.mlp_end_norm
    for T in setting.steps:
        parts_TSH = setting.rows(_PARTS * T, norm.weight.shape[0]).view(T, _PARTS, -1)
        sum_TH = parts_TSH.float().sum(1).to(setting.dtype)
        update = norm.of_sum(DeferredSum(parts_TSH))
        what = f"norm of a sum, {told(T)} of {sum_TH.shape[1]}"
        yield check_rows(what, update.parts[:, 0], _normed(norm, sum_TH.float()), 2)
        residual_TH = sum_TH.clone()
        update.add_to(residual_TH, setting.context)
        expected_TH = sum_TH.float() + update.parts[:, 0].float()
        yield check_rows(f"residual with the {what}", residual_TH, expected_TH, 1)


def check_mlp(mlp: DenseMLP, setting: Setting) -> Iterator[Finding]:
    """Both projections, what lies between them, and the sum behind."""
    context, gate_up = setting.context, mlp.gate_up_proj.weight
    for T in setting.steps:
        x_TH = setting.rows(T, gate_up.shape[1])
        parts_STW = mlp.gate_up_proj(x_TH, setting.quantized(x_TH, wanted=mlp.takes_quantized(T)))
        yield check_parts("gate and up", x_TH, gate_up, parts_STW, setting)
        inner_TI = mlp.down_proj.rows(T, "inner")
        swiglu(parts_STW, out_TI=inner_TI, pdl=context.pdl)
        gate, up = parts_STW.float().sum(0).chunk(2, dim=-1)
        yield check_rows(f"SwiGLU of {gate.shape[1]}, {told(T)}", inner_TI, F.silu(gate) * up, 4)
        yield from check_row_parallel("down", mlp.down_proj, inner_TI, setting)


def check_head(head: LMHead, setting: Setting) -> Iterator[Finding]:
    """This rank's logits."""
    for T in setting.decodes:
        x_TH, weight = setting.rows(T, head.hidden_size), Weight(head.weight)
        parts_STV = linear_parts(x_TH, weight, setting.context, "head")
        logits_TV = head.summed(parts_STV, setting.context)
        expected_TV, num_roundings = product(x_TH, weight), 1
        if head.bias is not None:
            expected_TV, num_roundings = expected_TV + head.bias.float(), 2
        what = f"head {shape_of(weight)}, {told(T)}"
        yield check_rows(what, logits_TV, expected_TV, num_roundings)


def check_row_parallel(
    what: str,
    layer: RowParallelLinear,
    x_TK: torch.Tensor | Quantized,
    setting: Setting,
    *,
    before_mlp: bool = False,
) -> Iterator[Finding]:
    """The layer without its all-reduce, and the sum behind it, whose norm an MLP or the next
    attention reads."""
    parts_STH = linear_parts(x_TK, layer.weight, setting.context, "row_parallel")
    yield check_parts(what, x_TK, layer.weight, parts_STH, setting)
    update = DeferredSum(parts_STH.transpose(0, 1))
    expected_TH = parts_STH.float().sum(0)
    allowed = roundings(3, setting.dtype)
    is_alone = setting.parallel.tp == 1
    yield from check_update(
        what, update, expected_TH, allowed, setting, is_alone=is_alone, before_mlp=before_mlp
    )


def check_parts(
    what: str,
    x_MK: torch.Tensor | Quantized,
    weight_NK: Weight,
    parts_SMN: torch.Tensor,
    setting: Setting,
) -> Finding:
    """What `linear_parts` made of a matrix."""
    what = f"{what} {shape_of(weight_NK)}, {told(x_MK.shape[0])}"
    is_rounded = len(parts_SMN) == 1 and parts_SMN.dtype == setting.dtype
    allowed = roundings(1, setting.dtype) if is_rounded else TENSOR_CORE_SUMS
    return compare(what, parts_SMN.float().sum(0), product(x_MK, weight_NK), allowed)


def check_update(
    what: str,
    update: DeferredSum,
    expected_TH: torch.Tensor,
    allowed: Tolerance,
    setting: Setting,
    *,
    is_alone: bool,
    before_mlp: bool = False,
) -> Iterator[Finding]:
    """A sum as the next norm adds it to a residual of its size, and the norm.

    Args:
        is_alone: ranks have nothing to add to it before.
        before_mlp: an MLP reads the norm, else the next attention.
    """
    if not is_alone:
        update = DeferredSum.of(update.total(setting.dtype, setting.context))
    size = expected_TH.square().mean().sqrt()
    before_TH = (setting.rows(*expected_TH.shape).float() * size).to(setting.dtype)
    reader = setting.mlp if before_mlp else setting.attention
    normed = setting.norm.add_for_readers(
        before_TH.clone(),
        update,
        in_eight_bits=reader.takes_quantized(len(before_TH)),
        router_EH=setting.router_EH if before_mlp else None,
    )
    added = f"sum of {what}, {told(len(before_TH))}"
    yield compare(added, normed.residual, before_TH.float() + expected_TH, allowed)
    yield from check_normed(f"norm behind {what}", setting.norm, normed.residual, normed)
    if normed.logits is not None and setting.router_EH is not None:
        router = Weight(setting.router_EH)
        yield check_parts("router beside its norm", normed.rows, router, normed.logits, setting)


def check_normed(
    what: str,
    norm: Norm,
    x_TH: torch.Tensor,
    normed: Normed,
) -> Iterator[Finding]:
    """Rows and their norm, also in eight bits if it was made."""
    expected_TH = _normed(norm, x_TH.float())
    what = f"{what}, {told(len(x_TH))} of {x_TH.shape[1]}"
    yield check_rows(what, normed.rows, expected_TH, 2)
    if normed.quantized is not None:
        yield check_rows(f"{what}, in eight bits", normed.quantized, expected_TH, 2)


def check_rows(
    what: str, got: torch.Tensor | Quantized, expected: torch.Tensor, num_roundings: int
) -> Finding:
    """Rows that were rounded so often to their type, or made eight bits wide; what is a row, the
    expected ones say."""
    if isinstance(got, Quantized):
        return compare(what, got.plain().view(expected.shape), expected, EIGHT_BITS)
    return compare(what, got.view(expected.shape), expected, roundings(num_roundings, got.dtype))


def product(x_MK: torch.Tensor | Quantized, weight_NK: Weight) -> torch.Tensor:
    """x Wᵀ in fp32, some rows of W at a time."""
    x_MK = x_MK.plain() if isinstance(x_MK, Quantized) else x_MK.float()
    rows = 1 if weight_NK.block is None else weight_NK.block[0]
    size = max(rows, _ROWS_AT_ONCE // rows * rows)
    whole, rest = divmod(weight_NK.shape[0], size)
    parts = weight_NK.split([size] * whole + [rest] * (rest > 0))
    return torch.cat([x_MK @ each.plain(torch.float32).float().T for each in parts], dim=1)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of the last dimension in fp32."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def _normed(norm: Norm, x: torch.Tensor) -> torch.Tensor:
    """Of fp32 rows; LayerNorm is RMSNorm of rows less their mean, and a bias."""
    if norm.bias is None:
        return rms_norm(x, norm.weight, norm.eps)
    centred = x - x.mean(-1, keepdim=True)
    return rms_norm(centred, norm.weight, norm.eps) + norm.bias.float()


def shape_of(weight: Weight) -> str:
    """For people: sides of a weight and its type, with the sides of blocks that have a scale."""
    sides = " x ".join(map(str, weight.shape))
    dtype = weight.kind or str(weight.values.dtype).removeprefix("torch.")
    block = "" if weight.block is None else f" by {weight.block[0]} x {weight.block[1]}"
    return f"{sides} of {dtype}{block}"
