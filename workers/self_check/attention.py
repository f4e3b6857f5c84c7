"""Checks of attention: projections, what lies between them and the cache, prefill and decode.

Owns made-up steps on a small cache and what plain torch says of each stage, in fp32, given what the
stage before wrote. Knows nothing of MLPs. T tokens of the step, S parts, N query heads, K key/value
heads, D head_dim, L context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from moe.base.quantized import Quantized
from switchyard.worker.v1 import worker_pb2
from workers.attention.kernels.output_gate import output_gate
from workers.attention.kv_cache import KVCache, LayerCache
from workers.attention.layer import AttentionBatch
from workers.models.attention import Attention
from workers.models.mla import LatentAttention
from workers.models.output_gate import OutputGate, gated
from workers.self_check.dense import check_parts, check_row_parallel, check_rows
from workers.self_check.finding import EIGHT_BITS, Finding, compare, roundings, told
from workers.self_check.setting import Setting
from workers.step.block_tables import in_groups

_SEQUENCES = 64
_SHORT = 6  # the longest prompt but one
_CHUNK = 256  # tokens that go on with the longest, twice: few enough to be cut along their context
_QUERIES_AT_ONCE = 128  # whose scores are in memory together
_SPARE = 8  # positions that are left to decodes


AttentionT = TypeVar("AttentionT", Attention, LatentAttention)
CheckStep = Callable[[AttentionT, LayerCache, AttentionBatch, Setting], Iterator[Finding]]


@dataclasses.dataclass(slots=True)
class _Sequences:
    """Their lengths, by slot; the next block that nobody has."""

    lengths: list[int]
    num_blocks: int = 0


def check_attention(attention: Attention, setting: Setting) -> Iterator[Finding]:
    """All stages of it."""
    return check_steps(attention, setting, _check_step)


def check_steps(
    attention: AttentionT, setting: Setting, check_step: CheckStep[AttentionT]
) -> Iterator[Finding]:
    """A step of prompts, two that go on with the longest, and decodes; then the last projection."""
    most = most_blocks(setting)
    sizes = dataclasses.replace(setting.sizes, num_layers=1)
    num_groups = len(setting.builder.tables.groups)
    cache = KVCache(sizes, num_groups * most, setting.device).layers[0]
    for step in made_up_steps(setting, most):
        # The check's cache is one layer's, which has the first group's tables.
        in_groups(step, num_groups)
        batch = setting.builder.build(step).forward.attention
        yield from check_step(attention, cache, batch, setting)
    for T in setting.steps:
        x_TI = setting.rows(T, attention.o_proj.weight.shape[1])
        own = attention.rows(T, setting.context) if isinstance(attention, Attention) else x_TI
        as_served = setting.eight_bits(x_TI) if isinstance(own, Quantized) else x_TI
        yield from check_row_parallel(
            "output projection", attention.o_proj, as_served, setting, before_mlp=True
        )


def _check_step(
    attention: Attention, cache: LayerCache, batch: AttentionBatch, setting: Setting
) -> Iterator[Finding]:
    T, context, weight = len(batch.positions_T), setting.context, attention.qkv_proj.weight
    N, K, D = attention.num_heads, attention.num_kv_heads, attention.head_dim
    x_TH = setting.rows(T, weight.shape[1])
    qkv_STW = attention.qkv_proj(x_TH, setting.quantized(x_TH, wanted=attention.takes_quantized(T)))
    yield check_parts("q, k and v", x_TH, weight, qkv_STW, setting)
    heads, bias = attention.heads, attention.qkv_proj.bias
    q_TND = heads(qkv_STW, bias, cache, batch, context)
    q, k, v = heads.plain(qkv_STW.float().sum(0), bias, batch.positions_T)
    keys, values = _held(cache)
    rows_T = cache_rows(cache, batch.tables, batch.slots_T, batch.positions_T)
    dtype = str(cache.keys.dtype).removeprefix("torch.")
    what = f"{N} + {K} heads of {D}, {told(T)}"
    allowed = roundings(4, setting.dtype) if cache.scales is None else EIGHT_BITS
    yield check_rows(f"norm and rotation of {what}", q_TND, q, 4)
    yield compare(f"keys of {dtype}, {what}", keys[rows_T], k, allowed)
    yield compare(f"values of {dtype}, {what}", values[rows_T], v, allowed)
    attended = attention.attend(q_TND, cache, batch, context)
    kind = "decode" if batch.num_decodes else "prefill"
    longest = max(batch.lengths)
    expected = _attend(q_TND, keys, values, cache, batch, attention)
    what = f"{kind} attention over up to {longest} keys of {dtype}, {what}"
    yield check_rows(what, attended, expected, 3)
    if isinstance(attended, Quantized):  # the last layer's, of which some are picked, are not
        picked = dataclasses.replace(batch, drawn_R=batch.slots_T)
        plain = attention.attend(q_TND, cache, picked, context)
        yield check_rows(f"{what}, not of eight bits", plain, expected, 3)
    if attention.gate is not None:
        assert isinstance(attended, torch.Tensor)
        yield from _check_gate(attention.gate, x_TH, attended, setting)


def _check_gate(
    gate: OutputGate, x_TH: torch.Tensor, attended_TW: torch.Tensor, setting: Setting
) -> Iterator[Finding]:
    """``attended_TW`` is written."""
    parts_STG = gate.g_proj(
        x_TH, setting.quantized(x_TH, wanted=gate.g_proj.takes_quantized(len(x_TH)))
    )
    yield check_parts("gates", x_TH, gate.g_proj.weight, parts_STG, setting)
    expected = gated(attended_TW.float(), parts_STG.float().sum(0), gate.activation)
    found = output_gate(parts_STG, attended_TW, gate.activation, pdl=setting.context.pdl)
    yield check_rows(f"{parts_STG.shape[2]} gates, {told(len(x_TH))}", found, expected, 4)


def _held(cache: LayerCache) -> tuple[torch.Tensor, torch.Tensor]:
    """All keys and values of the cache ``[rows, K, D]`` in fp32."""
    blocks = torch.arange(len(cache.keys), device=cache.keys.device)
    keys, values = cache.read(blocks, torch.float32)
    return keys.float().flatten(0, 1), values.float().flatten(0, 1)


def cache_rows(
    cache: LayerCache, tables: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Where in the cache tokens stand."""
    size = cache.block_size
    return tables[slots, positions // size] * size + positions % size


def _attend(
    q_TND: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
    attention: Attention,
) -> torch.Tensor:
    """Causal attention of each sequence ``[T, N, V]``, in fp32."""
    spec, sinks_N = attention.spec, attention.sinks
    group = q_TND.shape[1] // keys.shape[1]
    outputs, start = [], 0
    for slot, length, count in zip(batch.slots, batch.lengths, batch.num_tokens, strict=True):
        positions_L = torch.arange(length, device=q_TND.device)
        rows_L = cache_rows(cache, batch.tables, positions_L.new_tensor(slot), positions_L)
        k_NDL = keys[rows_L].repeat_interleave(group, 1).permute(1, 2, 0)
        v_NLD = values[rows_L].repeat_interleave(group, 1).transpose(0, 1)
        positions_T = positions_L[length - count :]
        for own_T in positions_T.split(_QUERIES_AT_ONCE):
            q_NTD = q_TND[start : start + len(own_T)].float().transpose(0, 1)
            scores_NTL = q_NTD @ k_NDL * spec.scale
            ages_TL = own_T[:, None] - positions_L
            is_seen_TL = (ages_TL >= 0) & (ages_TL < (spec.window or length))
            scores_NTL.masked_fill_(~is_seen_TL, -torch.inf)
            if sinks_N is not None:
                sinks_NT1 = sinks_N[:, None, None].expand(-1, len(own_T), 1)
                scores_NTL = torch.cat((scores_NTL, sinks_NT1), dim=-1)
            weights_NTL = scores_NTL.softmax(-1)[..., :length]
            outputs.append((weights_NTL @ v_NLD).transpose(0, 1))
            start += len(own_T)
    return torch.cat(outputs)


def made_up_steps(setting: Setting, num_blocks: int) -> Iterator[worker_pb2.StepRequest]:
    """Blocks are given from the last one down, so that no sequence has the block of its number."""
    prompts = _prompts(setting)
    sequences = _Sequences([0] * len(prompts))

    def grow(step: worker_pb2.StepRequest, slot: int, num_tokens: int) -> None:
        """A row of the step."""
        before = sequences.lengths[slot]
        sequences.lengths[slot] += num_tokens
        size = setting.builder.block_size
        num_new = -(-(before + num_tokens) // size) - -(-before // size)
        first = num_blocks - 1 - sequences.num_blocks
        sequences.num_blocks += num_new
        step.slots.append(slot)
        step.positions.append(before)
        step.num_new_blocks.append(num_new)
        step.new_blocks.extend(range(first, first - num_new, -1))

    def add_prompt(step: worker_pb2.StepRequest, slot: int, num_tokens: int) -> None:
        grow(step, slot, num_tokens)
        step.num_tokens.append(num_tokens)
        step.token_ids.extend([0] * num_tokens)
        step.draws.append(False)

    step = worker_pb2.StepRequest(max_replica_tokens=sum(prompts))
    for slot, num_tokens in enumerate(prompts):
        step.new_sequences.add(slot=slot)
        add_prompt(step, slot, num_tokens)
    yield step
    for chunk in _chunks(setting, prompts[0]):
        step = worker_pb2.StepRequest(max_replica_tokens=chunk)
        add_prompt(step, 0, chunk)
        yield step
    for size in sorted({min(size, len(prompts)) for size in setting.decodes}):
        step = worker_pb2.StepRequest(num_decodes=size, max_replica_tokens=size)
        for slot in range(size):
            grow(step, slot, 1)
        yield step


def _prompts(setting: Setting) -> list[int]:
    """Tokens of each, of which the first takes what the others leave."""
    count = min(_SEQUENCES, setting.builder.num_slots, max(1, setting.prefill // (2 * _SHORT)))
    room = max(1, setting.max_positions - _SPARE)
    others = [min(room, 1 + slot % _SHORT) for slot in range(1, count)]
    return [min(room, setting.prefill - sum(others)), *others]


def _chunks(setting: Setting, length: int) -> list[int]:
    """Tokens that go on with the first sequence."""
    chunk = min(_CHUNK, setting.max_tokens)
    room = setting.max_positions - _SPARE - length
    return [chunk] * min(2, room // chunk)


def most_blocks(setting: Setting) -> int:
    """Blocks that all made-up steps take, and one that none does."""
    size, prompts = setting.builder.block_size, _prompts(setting)
    first = prompts[0] + sum(_chunks(setting, prompts[0])) + _SPARE
    return -(-first // size) + (len(prompts) - 1) * -(-(_SHORT + _SPARE) // size) + 1
