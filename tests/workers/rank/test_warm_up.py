"""Made-up steps: every one is valid, the largest is the largest, and each kind is among them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.base.tiles import MANY_ROWS
from switchyard.worker.v1 import worker_pb2
from workers.attention.plan import AttentionKind, decode_tiles, prefill_tiles
from workers.rank.warm_up import made_up_prefill, warm_up_blocks, warm_up_steps
from workers.step.batch import AttentionShape, BatchBuilder

SHAPES = st.fixed_dictionaries(
    {
        "num_tokens": st.integers(1, 300),
        "num_sequences": st.integers(1, 20),
        "max_model_len": st.integers(1, 80),
        "block_size": st.integers(1, 20),
    }
)


@pytest.mark.slow
@given(shape=SHAPES)
@settings(max_examples=60, deadline=None)
def test_steps_are_ones_a_frontend_could_send(shape: dict[str, int]) -> None:
    """A rank takes them; blocks, tables and slots are within what it has."""
    num_sequences, block_size = shape["num_sequences"], shape["block_size"]
    builder = BatchBuilder(
        num_slots=num_sequences,
        max_blocks=-(-shape["max_model_len"] // block_size),
        block_size=block_size,
        max_tokens=shape["num_tokens"],
        device=torch.device("cpu"),
    )
    for step in warm_up_steps(**shape):
        assert all(0 <= block < warm_up_blocks(**shape) for block in step.new_blocks)
        assert len(set(step.slots)) == len(step.slots)
        assert all(0 <= slot < num_sequences for slot in step.slots)
        rows = builder.build(step).rows
        assert rows.num_tokens.sum() == step.max_replica_tokens <= max_tokens(shape)
        assert rows.lengths.max() <= shape["max_model_len"]
        held = builder.tables.lengths_GS[0, rows.slots] * block_size
        assert (held >= rows.lengths).all()
        # Two rows of a step never write to one block.
        assert len(set(step.new_blocks)) == len(step.new_blocks)


def max_tokens(shape: dict[str, int]) -> int:
    return max(shape["num_tokens"], shape["num_sequences"])


def prefills(steps: list[worker_pb2.StepRequest]) -> list[int]:
    return [step.max_replica_tokens for step in steps if not step.num_decodes]


@pytest.mark.parametrize(
    ("num_tokens", "sizes"),
    [
        (1, [1, 1]),
        (8, [8, 1, 2, 4, 2, 8, 8]),
        (300, [300, 1, 2, 4, 8, 16, 32, 64, 128, 256, 24, 48, 96, 17, 2, 8, 300]),
    ],
)
def test_prefills_of_every_order_of_size_the_largest_first_and_last(
    num_tokens: int, sizes: list[int]
) -> None:
    steps = warm_up_steps(num_tokens=num_tokens, num_sequences=9, max_model_len=40, block_size=16)
    assert prefills(list(steps)) == sizes


def test_no_more_than_all_slots_can_hold() -> None:
    steps = warm_up_steps(num_tokens=300, num_sequences=2, max_model_len=40, block_size=16)
    assert max(prefills(list(steps))) == 80


@pytest.mark.parametrize(
    ("num_sequences", "decodes"), [(1, [1]), (2, [1, 2]), (9, [1, 3, 9]), (80, [1, 3, 17, 65, 80])]
)
def test_decodes_of_all_slots_and_beside_a_prefill(num_sequences: int, decodes: list[int]) -> None:
    """None is marked as one that a graph may take: they run kernel by kernel."""
    steps = list(
        warm_up_steps(num_tokens=96, num_sequences=num_sequences, max_model_len=40, block_size=16)
    )
    assert not any(step.decode_only for step in steps)
    alone = [step.num_decodes for step in steps if step.num_decodes == len(step.slots)]
    assert alone == sorted(4 * decodes)
    mixed = [step for step in steps if 0 < step.num_decodes < len(step.slots)]
    assert len(mixed) == (num_sequences > 1)


@pytest.mark.parametrize("max_model_len", [100, 8192])
def test_decodes_of_every_cut_run_beside_many_tokens(max_model_len: int) -> None:
    """Where they may be attended to in eight bits; what ranks take of it says the test above."""
    shape = {
        "num_tokens": 1000,
        "num_sequences": 72,
        "max_model_len": max_model_len,
        "block_size": 16,
    }
    builder = BatchBuilder(
        num_slots=72, max_blocks=512, block_size=16, max_tokens=1000, device=torch.device("cpu")
    )
    cuts = set()
    for step in warm_up_steps(**shape):
        assert len(set(step.new_blocks)) == len(step.new_blocks)
        assert max(step.new_blocks) < warm_up_blocks(**shape)
        assert builder.build(step).rows.num_tokens.sum() == step.max_replica_tokens
        if step.num_tokens and step.num_decodes and step.max_replica_tokens >= MANY_ROWS:
            cuts.add(str(decode_tiles(step.num_decodes)))
    assert cuts == {str(decode_tiles(num_rows)) for num_rows in range(1, 72)}


@pytest.mark.parametrize("num_tokens", [1, 100, 700, 4096, 5000])
@pytest.mark.parametrize(("num_heads", "kv_heads"), [(32, 4), (8, 1), (4, 1), (16, 16)])
def test_attention_of_a_prefill_of_any_size_has_run(
    num_tokens: int, num_heads: int, kv_heads: int
) -> None:
    """Every way its tiles are cut, and whether they may be split."""
    shape = {"num_sequences": 1, "max_model_len": 8192, "block_size": 16}
    builder = BatchBuilder(
        num_slots=1,
        max_blocks=512,
        block_size=16,
        max_tokens=num_tokens,
        device=torch.device("cpu"),
        attention=AttentionShape(
            kinds=(AttentionKind(None, num_heads),), kv_heads=kv_heads, num_cores=132
        ),
    )

    def way(step: worker_pb2.StepRequest) -> tuple[int, int]:
        (plan,) = builder.build(step).forward.attention.plans.values()
        tiles = plan.tiles
        assert tiles is not None
        return prefill_tiles(step.max_replica_tokens).block_m, tiles.shape[1]

    steps = warm_up_steps(num_tokens=num_tokens, **shape)
    seen = {way(step) for step in steps if not step.num_decodes}
    sizes = {*range(1, num_tokens, 61), 4095, 4097, 4200, num_tokens}
    for size in sizes:
        if size <= num_tokens:
            assert way(made_up_prefill(size, **shape)) in seen


def test_draws_are_filtered_and_suppressed_and_plain() -> None:
    """Whatever a request may ask of the sampler has run once."""
    builder = BatchBuilder(
        num_slots=4, max_blocks=3, block_size=16, max_tokens=64, device=torch.device("cpu")
    )
    seen = set()
    for step in warm_up_steps(num_tokens=64, num_sequences=4, max_model_len=40, block_size=16):
        batch = builder.build(step)
        assert batch.sampling is not None
        metadata = batch.metadata
        options = metadata is not None and (metadata.shifts, metadata.excludes)
        seen.add((batch.sampling.any_filter, batch.sampling.suppressed is not None, options))
    assert {(False, False, False), (True, True, False), (True, False, False)} <= seen
    assert {(False, True, (True, True)), (True, True, (True, True))} <= seen


@pytest.mark.parametrize("num_tokens", [1, 64])
def test_every_token_of_the_last_prefill_reports_the_next(num_tokens: int) -> None:
    builder = BatchBuilder(
        num_slots=4, max_blocks=3, block_size=16, max_tokens=64, device=torch.device("cpu")
    )
    shape = {"num_tokens": num_tokens, "num_sequences": 4, "max_model_len": 40, "block_size": 16}
    *_, last = warm_up_steps(**shape)
    metadata = builder.build(last).metadata
    assert metadata is not None
    assert sum(len(span.next_ids) for span in metadata.prompts) == num_tokens
