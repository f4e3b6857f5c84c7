"""A model whose layers differ in windows and query heads: one staged step has a plan for each kind,
as large as any of its captured shape, and each attends as it should."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from switchyard.worker.v1 import worker_pb2
from tests.workers.attention.test_kernels import Options, assert_close, oracle
from tests.workers.steps import decode_step, interpreted, prefill_step
from workers.attention.kv_cache import CacheSizes, KVCache, LayerCache
from workers.attention.layer import AttentionBatch, kernel_attention
from workers.attention.plan import AttentionKind
from workers.step.batch import AttentionShape, BatchBuilder, BatchShape

K, D, V, BLOCK, SLOTS = 2, 8, 12, 4, 4
KINDS = (
    AttentionKind(None, 4),
    AttentionKind(7, 4),
    AttentionKind(7, 6),
    AttentionKind(1, 4),
    AttentionKind(None, 2),
)


def make_builder(kinds: tuple[AttentionKind, ...] = KINDS, num_cores: int = 4) -> BatchBuilder:
    return BatchBuilder(
        num_slots=SLOTS,
        max_blocks=32,
        block_size=BLOCK,
        max_tokens=64,
        device=torch.device("cpu"),
        attention=AttentionShape(kinds=kinds, kv_heads=K, num_cores=num_cores),
    )


def made_up_cache() -> LayerCache:
    sizes = CacheSizes(
        num_layers=1,
        block_size=BLOCK,
        num_kv_heads=K,
        head_dim=D,
        v_head_dim=V,
        dtype=torch.float32,
    )
    (layer,) = KVCache(sizes, 64, torch.device("cpu")).layers
    for entries in (layer.keys, layer.values):
        entries.normal_()
    return layer


def steps() -> list[tuple[worker_pb2.StepRequest, BatchShape | None]]:
    """Two prompts, one of which goes on beside a decode, and decodes; plainly and padded."""
    mixed = decode_step(2, [0], [40], [[10]])
    mixed.decode_only = False
    mixed.slots.append(2)
    mixed.positions.append(3)
    mixed.num_tokens.append(9)
    mixed.token_ids.extend([1] * 9)
    mixed.draws.append(True)
    mixed.num_new_blocks.append(3)
    mixed.new_blocks.extend([30, 31, 32])
    mixed.max_replica_tokens = 10
    return [
        (prefill_step(0, 0, [1] * 40, list(range(10))), None),
        (prefill_step(1, 2, [1] * 3, [20]), BatchShape(8, decodes=False)),
        (mixed, BatchShape(16, decodes=False)),
        (decode_step(3, [2, 0], [12, 41], [[33], []]), BatchShape(4, decodes=True)),
        (decode_step(4, [0, 2], [42, 13], [[], []]), None),
    ]


def others_behind(batch: AttentionBatch, window: int) -> AttentionBatch:
    """The batch, with another block wherever no query of a row sees any key."""
    tables = batch.tables.clone()
    for slot, length, count in zip(batch.slots, batch.lengths, batch.num_tokens, strict=True):
        if length:
            tables[slot, : max(0, length - count - window + 1) // BLOCK] = 50
    return dataclasses.replace(batch, tables=tables)


@pytest.mark.interpreter
def test_each_kind_attends_by_its_own_plan() -> None:
    torch.manual_seed(0)
    builder, cache, context = make_builder(), made_up_cache(), interpreted()
    contexts = {0: 0, 2: 0}
    for step, shape in steps():
        batch = builder.build(step, shape).forward.attention
        for slot, num_tokens in zip(step.slots, step.num_tokens or [1, 1], strict=False):
            contexts[slot] += num_tokens
        T, num_real = len(batch.positions_T), sum(step.num_tokens) + step.num_decodes
        assert list(batch.plans) == list(KINDS)
        for kind in KINDS:
            q_TND = torch.randn(T, kind.num_heads, D)
            options = Options(scale=0.3, window=kind.window, sinks_N=torch.randn(kind.num_heads))
            out = kernel_attention(
                q_TND, cache, batch, context, kind, scale=0.3, sinks_N=options.sinks_N,
                out=torch.empty(T, kind.num_heads * V),
            )  # fmt: skip
            assert isinstance(out, torch.Tensor)
            if kind.window is not None:
                again = kernel_attention(
                    q_TND, cache, others_behind(batch, kind.window), context, kind, scale=0.3,
                    sinks_N=options.sinks_N, out=torch.empty(T, kind.num_heads * V),
                )  # fmt: skip
                assert isinstance(again, torch.Tensor)
                assert torch.equal(out[:num_real], again[:num_real])
            out = out.unflatten(1, (-1, V))
            start = 0
            for slot, length, count in zip(
                batch.slots, batch.lengths, batch.num_tokens, strict=True
            ):
                if length:
                    k, v = cache.read(builder.tables.groups[0][slot], torch.float32)
                    k_LKD, v_LKV = (each.flatten(0, 1)[:length] for each in (k, v))
                    own = slice(start, start + count)
                    assert_close(out[own], oracle(q_TND[own], k_LKD, v_LKV, options))
                start += count
        for finished in (batch.finished_SK, batch.finished_CK):
            assert finished is not None
            assert not finished.any()


def test_sizes_of_plans_follow_from_the_captured_shape() -> None:
    builder = make_builder()

    def sizes(shape: BatchShape, steps: list[worker_pb2.StepRequest]) -> set[tuple[object, ...]]:
        seen = set()
        for step in steps:
            plans = builder.build(step, shape).forward.attention.plans
            seen.add(
                tuple(
                    None if each is None else tuple(each.shape)
                    for plan in plans.values()
                    for each in (plan.chunks, plan.tiles)
                )
            )
        return seen

    prompts = [prefill_step(0, 0, [1] * n, list(range(-(-n // BLOCK)))) for n in (1, 9, 60)]
    empty = worker_pb2.StepRequest()
    (mixed,) = sizes(BatchShape(64, decodes=False), [empty, *prompts])
    assert mixed[::2] == (None,) * len(KINDS)
    assert {shape[1] for shape in mixed[3:8:2]} == {4}
    decodes = [decode_step(1, [0], [59], [[]]), empty]
    (decode,) = sizes(BatchShape(4, decodes=True), decodes)
    assert decode[1::2] == (None,) * len(KINDS)
    assert decode[2] == decode[4] == decode[6] == (4, 8)  # a unit holds these windows


def test_kinds_of_equal_windows_share_their_chunks() -> None:
    builder = make_builder()
    builder.build(prefill_step(0, 0, [1] * 9, [0, 1, 2]))
    plans = builder.build(decode_step(1, [0], [9], [[]])).forward.attention.plans
    assert plans[KINDS[1]].chunks is plans[KINDS[2]].chunks
    assert plans[KINDS[0]].chunks is plans[KINDS[4]].chunks
    assert plans[KINDS[0]].chunks is not plans[KINDS[1]].chunks
