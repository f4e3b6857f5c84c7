"""What attention hands to its output projection: eight bits where that takes them, in one piece of
decodes, prompts and prompts that go on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from moe.base.context import KernelContext
from moe.base.gemm import linear_parts
from moe.base.quantize_rows import quantize_rows
from moe.base.quantized import Quantized, take_quantized
from moe.base.workspace import Workspace
from tests.workers.self_check.rank import MadeRank, make_rank
from tests.workers.self_check.test_right_kernels import LAGUNA
from tests.workers.steps import decode_step, prefill_step
from workers.attention.kv_cache import KVCache
from workers.models.attention import Attention

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted"),
]

MANY = 8


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("gemm", "tiles"):
        monkeypatch.setattr(f"moe.base.{module}.MANY_ROWS", MANY)


def make(**changes: Any) -> tuple[MadeRank, Attention, KernelContext]:
    settings = {
        "moe": False, "fp8": True, "dtype": torch.float16, "max_tokens": 64, "head_dim": 128,
        "hidden_size": 128, "intermediate_size": 128,
    }  # fmt: skip
    rank = make_rank(**settings | changes)
    attention = rank.first(Attention)
    assert isinstance(attention, Attention)
    assert attention.context is not None
    return rank, attention, attention.context


@torch.inference_mode()
def test_a_mixed_step_has_the_bits_of_a_launch_of_its_own() -> None:
    rank, attention, context = make()
    cache = KVCache(rank.sizes, 16, torch.device("cpu")).layers[0]
    for entries in (cache.keys, cache.values):
        entries.normal_()
    step = decode_step(2, [0, 3], [40, 2], [[2, 5, 6], [7]])
    step.decode_only = False
    for slot, position, tokens, blocks in ((1, 20, 9, [8, 9]), (2, 0, 3, [10])):
        step.slots.append(slot)
        step.positions.append(position)
        step.num_tokens.append(tokens)
        step.token_ids.extend([1] * tokens)
        step.draws.append(True)
        step.num_new_blocks.append(len(blocks))
        step.new_blocks.extend(blocks)
    step.max_replica_tokens = 14
    batch = rank.factory.builder.build(step).forward.attention
    assert batch.num_decodes == 2
    q_TND = torch.randn(14, attention.num_heads, 128).half()
    found = attention.attend(q_TND, cache, batch, context)
    assert isinstance(found, Quantized)
    found = Quantized(found.values.clone(), found.scales.clone(), found.group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moe.base.gemm.MANY_ROWS", 15)
        plain_TW = attention.attend(q_TND, cache, batch, context)
    assert isinstance(plain_TW, torch.Tensor)
    shape = (14, attention.num_heads * 128)
    own = quantize_rows(plain_TW, out=take_quantized(Workspace("cpu"), "own", shape), pdl=False)
    assert torch.equal(found.values.view(torch.uint8), own.values.view(torch.uint8))
    assert torch.equal(found.scales, own.scales)
    parts = [
        linear_parts(rows, attention.o_proj.weight, context, name)
        for name, rows in (("ours", found), ("theirs", plain_TW))
    ]
    assert torch.equal(*parts)


SIZES = ("hidden_size", "intermediate_size", "moe_intermediate_size", "head_dim")
GATED = LAGUNA | dict.fromkeys((*SIZES, "shared_expert_intermediate_size"), 128)


@pytest.mark.parametrize(
    ("changes", "num_tokens", "takes"),
    [
        ({}, MANY - 1, False),
        ({"fp8": False}, MANY, False),
        ({"dtype": torch.float32}, MANY, False),
        ({"head_dim": 64}, MANY, True),
        ({"config": GATED, "moe": True}, MANY, True),
    ],
    ids=["few rows", "plain weights", "fp32", "half a group", "a gate"],
)
def test_others_stay_as_they_are(changes: dict[str, Any], num_tokens: int, takes: bool) -> None:
    """Also where the projection would take eight bits."""
    _, attention, context = make(**changes)
    assert isinstance(attention.o_proj.rows(num_tokens, "others"), Quantized) == takes
    rows = attention.rows(num_tokens, context)
    assert isinstance(rows, torch.Tensor)
    assert rows.shape == (num_tokens, attention.o_proj.weight.shape[1])


def test_a_frozen_workspace_has_room_for_fewer_rows() -> None:
    """Plain ones take more than as many of eight bits."""
    _, attention, context = make()
    assert isinstance(attention.rows(MANY, context), Quantized)
    context.workspace.freeze()
    assert isinstance(attention.rows(MANY - 1, context), torch.Tensor)


@torch.inference_mode()
def test_the_last_layer_goes_on_with_few_of_many_rows_of_eight_bits() -> None:
    """They are picked before they have any, and are as those of all tokens."""
    rank, attention, context = make(moe=True, moe_intermediate_size=128)
    assert isinstance(attention.rows(20, context), Quantized)
    model, builder = rank.model, rank.factory.builder
    step = prefill_step(0, 1, [(7 * each) % 90 + 3 for each in range(20)], [3, 4])
    found = []
    for picks in (True, False):
        forward = builder.build(step).forward
        assert forward.drawn is not None
        cache = KVCache(rank.sizes, 16, torch.device("cpu"))
        batch = forward if picks else dataclasses.replace(forward, drawn=None)
        found.append(model.forward(batch, cache)[0 if picks else 19].float())
    # Other kernels take few rows, from other roundings.
    assert (found[0] - found[1]).norm() < 0.05 * found[1].norm()
