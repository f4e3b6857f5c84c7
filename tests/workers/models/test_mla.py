"""Multi-head latent attention as a module against transformers', in fp32."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F

from moe.base.fp8_format import Fp8Format
from moe.base.int4_format import Int4Format
from moe.base.tiles import INT4_NAME
from tests.workers.models.latent_models import KINDS, LENGTHS, STEPS, Layer, latent_cache
from tests.workers.steps import interpreted, relative_error
from workers.models.mla import LatentAttention

BLOCK_SIZE = 4
NUM_BLOCKS = 24


TOKENS = sum(LENGTHS.values())


def made_tables() -> torch.Tensor:
    """Blocks of each slot, in no order; behind a sequence's own any."""
    blocks = torch.randperm(NUM_BLOCKS, generator=torch.manual_seed(1)).int()
    tables = blocks[:9].repeat(4, 1)
    tables[2, :2], tables[3, :2] = blocks[9:11], blocks[11:13]
    return tables


def run_steps(
    ranks: Sequence[LatentAttention], hidden: dict[int, torch.Tensor], padding: int = 0
) -> torch.Tensor:
    """All of STEPS on ranks whose results are added: the rows of each sequence, by slot."""
    caches = [latent_cache(rank.spec, NUM_BLOCKS, BLOCK_SIZE) for rank in ranks]
    tables = made_tables()
    found = {slot: torch.full_like(rows, torch.nan) for slot, rows in hidden.items()}
    for step in STEPS:
        batch = step.batch(tables, ranks[0].num_heads if ranks[0].context else None, padding)
        x_TH = torch.cat([hidden[slot][first : first + n] for slot, first, n in step.rows])
        x_TH = F.pad(x_TH, (0, 0, 0, padding), value=torch.nan)
        parts = [
            rank(x_TH, cache, batch).total(x_TH.dtype)
            for rank, cache in zip(ranks, caches, strict=True)
        ]
        total = torch.stack(parts).sum(0)
        pieces = total[: len(x_TH) - padding].split(batch.num_tokens)
        for (slot, first, n), piece in zip(step.rows, pieces, strict=True):
            found[slot][first : first + n] = piece
    return torch.cat([found[slot] for slot in LENGTHS])


def check(layer: Layer, ranks: Sequence[LatentAttention], padding: int = 0) -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(TOKENS, layer.config.hidden_size, generator=generator)
    hidden = dict(zip(LENGTHS, rows.split(list(LENGTHS.values())), strict=True))
    expected = torch.cat([layer.expected(each) for each in hidden.values()])
    assert relative_error(run_steps(ranks, hidden, padding), expected) <= 1e-4


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_equals_transformers(kind: str, seed: int) -> None:
    """Prompts in chunks, decodes beside them and alone."""
    layer = Layer.random(kind, seed)
    check(layer, [layer.ours()])


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_two_ranks_share_the_heads(kind: str) -> None:
    layer = Layer.random(kind, 5)
    check(layer, [layer.ours(tp_rank=rank, tp_size=2) for rank in range(2)])


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("few_tokens", "padding"),
    [
        (0, 3),
        (256, 0),
        pytest.param(0, 0, marks=pytest.mark.grid),
        pytest.param(256, 3, marks=pytest.mark.grid),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_kernels_equal_transformers(
    kind: str, few_tokens: int, padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompt tokens meet each other with keys and values of their own, or all over latents; with
    padding, of NaN, as graphs hold mixed steps."""
    monkeypatch.setattr(LatentAttention, "few_tokens", few_tokens)
    layer = Layer.random(kind, 7)
    check(layer, [layer.ours(context=interpreted())], padding)


# Heads and entries end within blocks of 32.
BLOCKS = {
    "num_attention_heads": 4, "q_lora_rank": 64, "kv_lora_rank": 64, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16, "v_head_dim": 32, "hidden_size": 96,
}  # fmt: skip


@pytest.mark.parametrize("stored", ["blocks", "plain"])
@pytest.mark.parametrize("tp", [1, 2])
@torch.inference_mode()
def test_eight_bits_equal_transformers(tp: int, stored: str) -> None:
    """Of what is read in eight bits, and of what is made at load."""
    weight_format = Fp8Format(block=(32, 32), stored=stored, suffix="_scale_inv")
    layer = Layer.random("deepseek_v3", 1, **BLOCKS).quantized(weight_format)
    check(layer, [layer.ours(tp_rank=rank, tp_size=tp) for rank in range(tp)])


@pytest.mark.interpreter
@torch.inference_mode()
def test_kernels_read_eight_bits() -> None:
    weight_format = Fp8Format(block=(32, 32), suffix="_scale_inv")
    layer = Layer.random("deepseek_v3", 2, **BLOCKS).quantized(weight_format)
    check(layer, [layer.ours(context=interpreted())])


@torch.inference_mode()
def test_four_bits_are_not_made_of_what_is_absorbed() -> None:
    made = Layer.random("deepseek_v3", 1, **BLOCKS)
    made = dataclasses.replace(made, weight_format=Int4Format(group=32))
    layer = made.ours(context=interpreted())
    assert layer.kv_b_proj.weight.kind is None
    assert layer.o_proj.weight.kind == INT4_NAME
    read = dataclasses.replace(made, weight_format=Int4Format(group=32, stored="gptq"))
    with pytest.raises(ValueError, match="kv_b_proj has four bits, which attention over latents"):
        read.ours(context=interpreted())
