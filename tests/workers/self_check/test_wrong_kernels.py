"""A kernel that is wrong is found, and by name, whatever is wrong with it."""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from moe.base.quantized import Quantized
from moe.base.sum_norm import RouterLogits
from moe.base.tiles import MANY_ROWS
from moe.base.weight import Weight
from moe.layer import SparseMoeBlock
from tests.workers.config_json.test_int4_methods import GPTQ
from tests.workers.self_check.rank import QWEN3_NEXT, TRINITY, first_wrong, make_rank
from workers.layers.embedding import Embedding, LMHead
from workers.layers.norm import RMSNorm
from workers.models.attention import Attention
from workers.models.delta_net import DeltaNet
from workers.models.dense_mlp import DenseMLP
from workers.models.end_norms import EndNormLayer
from workers.sampling.kernels.draw import Kept
from workers.self_check.sampling import check_sampler
from workers.self_check.setting import Setting

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted"),
]

Launcher = Callable[..., Any]
Breaks = Callable[[Launcher], Launcher]
FP16, FP8 = {"dtype": torch.float16}, {"dtype": torch.float16, "fp8": True}


def placed(place: int, change: Callable[[Any], Any]) -> Breaks:
    """One operand is another."""

    def breaks(launch: Launcher) -> Launcher:
        return lambda *args, **kwargs: launch(
            *args[:place], change(args[place]), *args[place + 1 :], **kwargs
        )

    return breaks


def spoilt(get: Callable[..., torch.Tensor], change: Callable[[torch.Tensor], Any]) -> Breaks:
    """What it has written is another."""

    def breaks(launch: Launcher) -> Launcher:
        def launch_and_spoil(*args: Any, **kwargs: Any) -> Any:
            result = launch(*args, **kwargs)
            tensor = get(*args, **kwargs)
            tensor.copy_(change(tensor))
            return result

        return launch_and_spoil

    return breaks


INT4 = {"dtype": torch.float16, "said": {**GPTQ, "group_size": 32}}
# Routes that tiles take.
MANY_FP16, MANY_FP8 = FP16 | {"max_tokens": 12}, FP8 | {"max_tokens": 12}
END_NORMS = {"config": TRINITY, "max_tokens": 3}
HYBRID = {"config": QWEN3_NEXT, "max_tokens": 70}


def spoilt_result(change: Callable[[torch.Tensor], torch.Tensor]) -> Breaks:
    """What it returns is another."""

    def breaks(launch: Launcher) -> Launcher:
        return lambda *args, **kwargs: change(launch(*args, **kwargs))

    return breaks


def without_scales(weight: Weight) -> Weight:
    assert weight.scales is not None
    return dataclasses.replace(weight, scales=torch.full_like(weight.scales, weight.scales.mean()))


def other_scales(weight: Weight) -> Weight:
    """Each block has its neighbour's."""
    assert weight.scales is not None
    scales = torch.empty_like(weight.scales).copy_(weight.scales.roll((1, 1), (-1, -2)))
    return dataclasses.replace(weight, scales=scales)


def scales_of(*_: Any, out: torch.Tensor | Quantized, **__: Any) -> torch.Tensor:
    """Of what attention wrote; nothing of a step whose rows stay as they are."""
    return out.scales if isinstance(out, Quantized) else out[:0]


def logits_of(
    *_: Any, out_residual: torch.Tensor, router: RouterLogits | None, **__: Any
) -> torch.Tensor:
    """Of a router, which a norm wrote; nothing of a norm that has none."""
    return out_residual[:0] if router is None else router.out_TE


def swapped(weight: Weight) -> Weight:
    """Up in the place of gate."""
    gate, up = weight.values.chunk(2, dim=1)
    return dataclasses.replace(weight, values=torch.cat((up, gate), dim=1))


def one_input_less(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[:, -1] = 0.0
    return x


def one_wrong(x: torch.Tensor) -> torch.Tensor:
    """The last number of the last row has the value of another."""
    x = x.clone()
    x.view(-1)[-1] = -x.view(-1)[-1]
    return x


GEMM, EXPERTS, NORM = "moe.base.gemm.", "moe.kernels.experts.", "workers.layers.norm."
ATTENTION = "workers.attention.layer."
DELTA = "workers.models.delta_net."
EIGHT_BITS = "moe.kernels.eight_bits."
ROPE, SWIGLU = "workers.models.heads.qk_rope", "workers.self_check.dense.swiglu"
CASES: list[tuple[str, type[nn.Module], dict[str, Any], str, Breaks]] = [
    ("embedding of 97", Embedding, {}, "workers.layers.embedding.embed",
     spoilt(lambda *_, out_TH, **__: out_TH, lambda out: out.roll(1, 1))),
    ("embedding of 97", Embedding, {}, "workers.layers.embedding.embed",
     placed(2, lambda last_token: last_token.flip(0))),
    ("gate and up", DenseMLP, {}, GEMM + "_vector",
     spoilt(lambda x, w, out, *_: out, lambda out: 1.01 * out)),
    ("gate and up", DenseMLP, FP16, GEMM + "_tiled", placed(0, one_input_less)),
    ("gate and up", DenseMLP, FP16, GEMM + "_tiled",
     spoilt(lambda x, w, out, *_: out, one_wrong)),
    ("gate and up", DenseMLP, FP8, GEMM + "_vector", placed(1, without_scales)),
    ("gate and up", DenseMLP, FP8, GEMM + "_tiled", placed(1, other_scales)),
    ("gate and up", DenseMLP, FP16 | {"hidden_size": 512}, GEMM + "_tiled",
     spoilt(lambda x, w, out, *_: out[1:], torch.zeros_like)),
    ("SwiGLU", DenseMLP, FP16 | {"hidden_size": 512}, SWIGLU, placed(0, lambda parts: parts[:1])),
    ("SwiGLU", DenseMLP, {}, SWIGLU, placed(0, lambda x: torch.cat(x.chunk(2, -1)[::-1], -1))),
    ("head", LMHead, {}, GEMM + "_vector",
     spoilt(lambda x, w, out, *_: out, lambda out: out.roll(1, -1))),
    ("sum of down", DenseMLP, {}, NORM + "sum_norm", placed(2, lambda residual: None)),
    ("norm behind down", DenseMLP, {}, NORM + "sum_norm", placed(4, lambda eps: 1.0)),
    ("norm, 1 row", RMSNorm, {}, NORM + "sum_norm", placed(3, lambda weight: 2.0 * weight)),
    ("norm and rotation", Attention, {}, ROPE, placed(6, lambda positions: positions + 1)),
    ("norm and rotation", Attention, {}, ROPE, placed(1, lambda weight: 1.1 * weight)),
    ("keys of float32", Attention, {}, ROPE, placed(2, lambda weight: 1.1 * weight)),
    ("keys of float32", Attention, {}, ROPE, placed(8, lambda tables: tables - 1)),
    ("values of float8_e4m3fn", Attention, {"fp8_cache": True}, ROPE,
     spoilt(lambda *args, **_: args[9].scales[..., 1], lambda scales: 2.0 * scales)),
    ("prefill attention", Attention, {}, ATTENTION + "prefill_attention",
     placed(0, lambda q: 1.1 * q)),
    ("prefill attention", Attention, {}, ATTENTION + "prefill_attention",
     placed(2, lambda tables: tables.roll(1, 0))),
    ("decode attention", Attention, {}, ATTENTION + "decode_attention",
     placed(3, lambda chunks: chunks - (torch.arange(8) == 3).int())),
    ("decode attention", Attention, {"fp8_cache": True}, ATTENTION + "decode_attention",
     spoilt(lambda *_, out, **__: out, lambda out: out.roll(1, 1))),
    ("output projection", Attention, FP8, "workers.self_check.dense.linear_parts",
     spoilt_result(lambda parts: parts * 1.02)),
    ("what tokens read, decode", DeltaNet, HYBRID, DELTA + "decode_delta",
     placed(3, lambda rates: rates + 1.0)),
    ("states, decode", DeltaNet, HYBRID, DELTA + "decode_delta",
     spoilt(lambda *args, **_: args[6].recurrent, lambda states: 1.01 * states)),
    ("what tokens read, prefill", DeltaNet, HYBRID, DELTA + "prefill_delta",
     placed(9, lambda starts: starts + 1)),
    ("router 6 x 64", SparseMoeBlock, {"dp": 2}, GEMM + "_vector",
     spoilt(lambda x, w, out, *_: out, lambda out: out.roll(1, -1))),
    ("router beside its norm", Attention, {"moe": True}, NORM + "sum_norm",
     spoilt(logits_of, lambda logits: logits.roll(1, -1))),
    ("top 3 of 6 experts, 1 row, choices", SparseMoeBlock, {}, "moe.router.select_experts",
     spoilt(lambda *_, out_ids_TK, **__: out_ids_TK, lambda ids: (ids + 1) % 6)),
    ("top 3 of 6 experts, 1 row, ids", SparseMoeBlock, {}, "moe.router.select_experts",
     spoilt(lambda *_, out_ids_TK, **__: out_ids_TK, lambda ids: ids - 6)),
    ("top 3 of 6 experts, 1 row, weights", SparseMoeBlock, {}, "moe.router.select_experts",
     spoilt(lambda *_, out_weights_TK, **__: out_weights_TK, lambda x: x.roll(1, 1))),
    ("norm of a sum", EndNormLayer, END_NORMS, NORM + "sum_norm", placed(4, lambda eps: 1.0)),
    ("norm of a sum", EndNormLayer, END_NORMS, NORM + "sum_norm",
     placed(0, lambda parts: parts[:, 1:])),
    ("experts 6", SparseMoeBlock, FP8, "moe.router.make_choice", placed(0, torch.neg)),
    ("sum of experts", SparseMoeBlock, {}, EXPERTS + "gate_up_vector", placed(1, swapped)),
    ("sum of experts", SparseMoeBlock, {}, EXPERTS + "down_vector",
     placed(2, lambda ids: ids.roll(1, 1))),
    ("sum of experts", SparseMoeBlock, MANY_FP8, EXPERTS + "gate_up", placed(1, swapped)),
    ("sum of experts", SparseMoeBlock, MANY_FP8, EXPERTS + "gate_up", placed(1, other_scales)),
    ("sum of experts", SparseMoeBlock, INT4, EXPERTS + "gate_up_vector", placed(1, other_scales)),
    ("sum of experts", SparseMoeBlock, MANY_FP8, EXPERTS + "down", placed(1, without_scales)),
    ("sum of experts", SparseMoeBlock, MANY_FP16, EXPERTS + "down",
     spoilt(lambda *_, out_PH, **__: out_PH, one_wrong)),
    ("sum of experts", SparseMoeBlock, MANY_FP16, EXPERTS + "align",
     spoilt(lambda *_, out, **__: out.tile_expert, lambda e: torch.where(e < 0, e, (e + 1) % 6))),
    ("sum of experts", SparseMoeBlock, {}, NORM + "sum_norm",
     placed(1, lambda weights: None if weights is None else torch.ones_like(weights))),
    ("sum of experts", SparseMoeBlock, {"tp": 2}, EXPERTS + "drop_foreign",
     spoilt(lambda *_, out_TK, **__: out_TK, lambda weights: weights + 0.1)),
    ("sum of experts", SparseMoeBlock, {"tp": 2}, "moe.base.deferred_sum.sum_norm",
     spoilt(lambda *_, out_residual, **__: out_residual, lambda out: 0.9 * out)),
]  # fmt: skip
# Steps of so many tokens that activations have eight bits: one kernel after the other is wrong.
WIDE_CASES: list[tuple[str, type[nn.Module], str, Breaks]] = [
    ("gate and up", DenseMLP, GEMM + "linear_fp8", placed(1, other_scales)),
    ("prefill attention", Attention, ATTENTION + "prefill_attention",
     spoilt(scales_of, lambda scales: scales.roll(1, 1))),
    ("SwiGLU", DenseMLP, SWIGLU,
     spoilt(lambda *_, out_TI, **__: out_TI.scales, lambda scales: scales.roll(1, 1))),
    ("norm behind down", DenseMLP, NORM + "sum_norm",
     spoilt(lambda *_, out_quantized, **__: out_quantized.scales, lambda scales: 1.2 * scales)),
    ("sum of experts", SparseMoeBlock, EIGHT_BITS + "gate_up_fp8", placed(1, swapped)),
    ("sum of experts", SparseMoeBlock, EIGHT_BITS + "gate_up_fp8",
     spoilt(lambda *_, out_PI, **__: out_PI.scales, lambda scales: 1.3 * scales)),
    ("sum of experts", SparseMoeBlock, EIGHT_BITS + "down_fp8", placed(1, without_scales)),
]  # fmt: skip


def a_third(cases: list[Any]) -> list[Any]:
    """All cases, of which the default run takes each third."""
    marks = [(), pytest.mark.grid, pytest.mark.grid]
    return [pytest.param(*case, marks=marks[place % 3]) for place, case in enumerate(cases)]


@pytest.mark.parametrize(("what", "kind", "settings", "launcher", "breaks"), a_third(CASES))
def test_a_wrong_kernel_is_found(
    what: str,
    kind: type[nn.Module],
    settings: dict[str, Any],
    launcher: str,
    breaks: Breaks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first comparison that fails names it."""
    moe = kind is SparseMoeBlock
    rank = make_rank(**{"moe": moe, "max_batch_size": 3, "max_tokens": 5} | settings)
    monkeypatch.setattr(launcher, breaks(pkgutil.resolve_name(launcher)))
    assert rank.first_wrong(kind).startswith(what)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "kind", "launcher", "breaks"), a_third(WIDE_CASES))
def test_a_wrong_kernel_of_eight_bits_is_found(
    what: str,
    kind: type[nn.Module],
    launcher: str,
    breaks: Breaks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rank = make_rank(
        moe=kind is SparseMoeBlock, fp8=True, dtype=torch.float16, max_tokens=MANY_ROWS,
        max_batch_size=1, hidden_size=128, moe_intermediate_size=128, intermediate_size=256,
        head_dim=128, max_position_embeddings=2 * MANY_ROWS,
    )  # fmt: skip
    monkeypatch.setattr(Setting, "steps", [MANY_ROWS])
    monkeypatch.setattr(launcher, breaks(pkgutil.resolve_name(launcher)))
    assert rank.first_wrong(kind).startswith(what)


def all_kept(kept: Kept) -> Kept:
    return dataclasses.replace(kept, threshold_D=torch.full_like(kept.threshold_D, -torch.inf))


SAMPLER = "workers.sampling.triton_sampler."
DRAWS: list[tuple[str, str, Breaks]] = [
    ("greedy draw of 97, 1 row", "draw",
     spoilt(lambda *_, out_D, **__: out_D, lambda tokens: tokens + 1)),
    ("filtered draw of 97, 3 rows, what is kept", "suppress", lambda launch: lambda *_, **__: None),
    ("filtered draw of 97, 3 rows, what is kept", "filter_logits",
     lambda launch: lambda *args, **kwargs: all_kept(launch(*args, **kwargs))),
    ("filtered draw of 97, 3 rows, tokens", "draw",
     placed(1, lambda rows: dataclasses.replace(rows, position_D=rows.position_D + 1))),
]  # fmt: skip


@torch.inference_mode()
def test_right_draws_pass() -> None:
    rank = make_rank(moe=False, max_batch_size=3, max_tokens=5)
    sampler = rank.factory.sampler.triton
    assert sampler is not None
    assert not first_wrong(check_sampler(sampler, 97, rank.setting))


@pytest.mark.parametrize(("what", "launcher", "breaks"), DRAWS)
@torch.inference_mode()
def test_a_wrong_draw_is_found(
    what: str, launcher: str, breaks: Breaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = make_rank(moe=False, max_batch_size=3, max_tokens=5)
    sampler = rank.factory.sampler.triton
    assert sampler is not None
    launcher = SAMPLER + launcher
    monkeypatch.setattr(launcher, breaks(pkgutil.resolve_name(launcher)))
    assert first_wrong(check_sampler(sampler, 97, rank.setting)) == what
