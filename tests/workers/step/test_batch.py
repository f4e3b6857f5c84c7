"""Columns of a step become the right positions, cache slots, tables and draws."""

import pytest
import torch

from switchyard.worker.v1 import worker_pb2
from tests.workers.steps import decode_step, prefill_step
from workers.step.batch import BatchBuilder, BatchShape
from workers.step.block_tables import in_groups

BLOCK = 4


@pytest.fixture
def builder() -> BatchBuilder:
    return BatchBuilder(
        num_slots=4, max_blocks=8, block_size=BLOCK, max_tokens=64, device=torch.device("cpu")
    )


def test_a_prompt_in_chunks_keeps_its_table(builder: BatchBuilder) -> None:
    first = builder.build(prefill_step(0, 1, [9, 8, 7, 6, 5], [3, 6], draw=False))
    assert first.forward.ids_T.tolist() == [9, 8, 7, 6, 5]
    assert first.forward.attention.positions_T.tolist() == [0, 1, 2, 3, 4]
    assert first.forward.attention.slots_T.tolist() == [1] * 5
    assert builder.tables.groups[0][1, :2].tolist() == [3, 6]
    assert first.sampling is None
    second = builder.build(prefill_step(1, 1, [4, 3, 2, 1], [5], position=5))
    assert second.forward.attention.positions_T.tolist() == [5, 6, 7, 8]
    assert builder.tables.groups[0][1, :3].tolist() == [3, 6, 5]
    assert second.forward.attention.slots == [1]
    assert second.forward.attention.lengths == [9]
    assert second.last_D is not None
    assert second.last_D.tolist() == [3]
    assert second.sampling is not None
    assert second.sampling.position_D.tolist() == [9]


def test_a_new_sequence_empties_its_slot(builder: BatchBuilder) -> None:
    builder.build(prefill_step(0, 1, [1] * 9, [3, 6, 2]))
    builder.build(prefill_step(1, 1, [2, 2], [7]))
    assert builder.tables.groups[0][1, 0] == 7
    assert builder.tables.lengths_GS[0, 1] == 1


def test_decodes_take_the_last_token_of_their_slot_beside_a_prefill(builder: BatchBuilder) -> None:
    for slot in (0, 3):
        builder.build(prefill_step(slot, slot, [1] * (slot + 2), [slot, slot + 4]))
    step = decode_step(4, [3, 0], [5, 2], [[], []])
    step.new_sequences.add(slot=2, temperature=0.5, top_p=1.0, seed=2**64 - 1)
    step.slots.append(2)
    step.positions.append(0)
    step.num_tokens.append(3)
    step.token_ids.extend([7, 8, 9])
    step.draws.append(True)
    step.num_new_blocks.append(1)
    step.new_blocks.append(1)
    batch = builder.build(step)
    assert batch.forward.ids_T.tolist() == [-1, -1, 7, 8, 9]
    assert batch.forward.attention.positions_T.tolist() == [5, 2, 0, 1, 2]
    assert batch.forward.attention.slots_T.tolist() == [3, 0, 2, 2, 2]
    assert batch.forward.attention.num_tokens == [1, 1, 3]
    assert batch.last_D is not None
    assert batch.last_D.tolist() == [0, 1, 4]
    assert batch.draw_slots_D.tolist() == [3, 0, 2]
    assert batch.sampling is not None
    assert batch.sampling.seed_D.tolist() == [0, 0, -1]
    assert batch.sampling.any_random
    assert not batch.sampling.any_filter


def test_padding_takes_no_slot_and_no_context(builder: BatchBuilder) -> None:
    for slot in (1, 2):
        builder.build(prefill_step(slot, slot, [1, 1, 1], [slot]))
    batch = builder.build(decode_step(3, [2, 1], [3, 3], [[], []]), BatchShape(4, decodes=True))
    attention = batch.forward.attention
    assert attention.slots_T.tolist() == [2, 1, -1, -1]
    assert attention.lengths == [4, 4, 0, 0]
    assert attention.num_decodes == batch.forward.max_tokens == 4
    assert batch.forward.num_valid is not None
    assert batch.forward.num_valid.tolist() == [2]
    assert batch.draw_slots_D.tolist() == [2, 1, -1, -1]
    assert batch.last_D is None
    assert batch.rows.lengths.tolist() == [4, 4]
    assert batch.sampling is not None
    assert batch.sampling.temperature_D.tolist()[2:] == [0.0, 0.0]


@pytest.fixture
def picking() -> BatchBuilder:
    """Of two slots, whose last layer goes on with tokens that are drawn behind alone."""
    return BatchBuilder(
        num_slots=2,
        max_blocks=8,
        block_size=BLOCK,
        max_tokens=64,
        device=torch.device("cpu"),
        picks_drawn=True,
    )


def test_the_last_layer_goes_on_with_tokens_drawn_behind(picking: BatchBuilder) -> None:
    picking.build(prefill_step(0, 0, [5], [1]))
    step = decode_step(1, [0], [1], [[]])
    step.decode_only = False
    added = prefill_step(1, 1, [7, 8, 9], [3])
    step.new_sequences.extend(added.new_sequences)
    for name in ("slots", "positions", "num_tokens", "token_ids", "draws", "num_new_blocks"):
        getattr(step, name).extend(getattr(added, name))
    step.new_blocks.extend(added.new_blocks)
    step.max_replica_tokens = 4
    batch = picking.build(step, BatchShape(6, decodes=False))
    drawn = batch.forward.drawn
    assert drawn is not None
    assert drawn.tokens_R.tolist() == [0, 3]
    assert drawn.num_valid.tolist() == [2]
    assert batch.last_D is None
    last = batch.forward.of_drawn
    assert (last.max_tokens, last.num_valid) == (2, drawn.num_valid)
    assert last.attention.drawn_R is drawn.tokens_R
    assert batch.forward.attention.drawn_R is None


def test_where_nobody_draws_all_of_the_last_layer_is_padding(picking: BatchBuilder) -> None:
    batch = picking.build(prefill_step(0, 1, [7, 8, 9, 5], [3], draw=False))
    assert batch.forward.drawn is not None
    assert batch.forward.drawn.num_valid.tolist() == [0]
    assert batch.forward.drawn.tokens_R.tolist() == [0, 0]


def test_few_tokens_decodes_and_prompts_that_are_read_go_on_whole(picking: BatchBuilder) -> None:
    few = picking.build(prefill_step(0, 1, [7, 8, 9], [3]))
    assert few.forward.drawn is None
    assert few.forward.of_drawn is few.forward
    assert few.last_D is not None
    decodes = picking.build(decode_step(1, [1], [3], [[]]), BatchShape(4, decodes=True))
    assert decodes.forward.drawn is None
    read = prefill_step(
        2, 0, [1, 2, 3, 4], [4], num_logprobs=1, prompt_logprobs=True, num_prompt_tokens=8,
        history_token_ids=[1, 2, 3, 4, 5, 6, 7, 8],
    )  # fmt: skip
    assert picking.reads_prompts(read)
    assert picking.build(read).forward.drawn is None
    chunk = prefill_step(3, 0, [5, 6, 7, 8], [5], position=4)
    assert picking.reads_prompts(chunk)
    assert picking.build(chunk).forward.drawn is None
    other = prefill_step(4, 0, [1, 2, 3, 4], [4])
    assert not picking.reads_prompts(decode_step(4, [0], [8], [[6]]))
    picking.build(other)
    assert not picking.reads_prompts(prefill_step(5, 0, [5, 6, 7, 8], [5], position=4))


def test_a_table_takes_no_more_than_its_blocks(builder: BatchBuilder) -> None:
    with pytest.raises(ValueError, match="more than 8 blocks"):
        builder.build(prefill_step(0, 1, [1] * 36, list(range(9))))


def test_tokens_are_suppressed_until_their_position(builder: BatchBuilder) -> None:
    suppress = {"suppressed_token_ids": [2, 9], "suppress_until": 4}
    first = builder.build(prefill_step(0, 0, [1, 1, 1], [0], **suppress))
    assert first.sampling is not None
    assert first.sampling.suppressed is not None
    assert [column.tolist() for column in first.sampling.suppressed] == [[0, 0], [2, 9]]
    later = builder.build(decode_step(1, [0], [3], [[]]))
    assert later.sampling is not None
    assert later.sampling.suppressed is None


def test_an_empty_step_is_an_empty_batch(builder: BatchBuilder) -> None:
    batch = builder.build(worker_pb2.StepRequest(step_id=0, max_replica_tokens=7))
    assert batch.forward.ids_T.shape == (0,)
    assert batch.forward.max_tokens == 7
    assert batch.sampling is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_tokens", [2]), ("draws", []), ("num_new_blocks", [2]), ("num_new_blocks", [])],
)
def test_columns_that_contradict_each_other_are_refused(
    builder: BatchBuilder, field: str, value: list[int]
) -> None:
    step = prefill_step(7, 0, [1, 2, 3], [0])
    step.ClearField(field)
    getattr(step, field).extend(value)
    with pytest.raises(ValueError, match="step 7"):
        builder.build(step)


def test_each_group_of_layers_has_a_table() -> None:
    """With blocks of its own, as many as its row says; a row has room where all of them do."""
    builder = BatchBuilder(
        num_slots=3, max_blocks=5, block_size=BLOCK, max_tokens=64, device=torch.device("cpu"),
        num_groups=2,
    )  # fmt: skip
    step = prefill_step(0, 1, [1] * 6, [], draw=False)
    step.num_new_blocks[:], step.new_blocks[:] = [3, 2], [7, 8, 9, 4, 5]
    batch = builder.build(step).forward.attention
    first, second = (each.tables for each in batch.of_groups())
    assert first[1, :3].tolist() == [7, 8, 9]
    assert second[1, :2].tolist() == [4, 5]
    more = prefill_step(1, 1, [1] * 3, [], position=6)
    more.num_new_blocks[:] = [0, 0]
    with pytest.raises(ValueError, match="its blocks hold 8"):
        builder.build(more)
    more.num_new_blocks[:], more.new_blocks[:] = [0, 1], [6]
    more.slots.append(2)
    more.positions.append(0)
    more.num_tokens.append(1)
    more.token_ids.append(1)
    more.draws.append(True)
    more.num_new_blocks.extend([1, 1])
    more.new_blocks.extend([1, 2])
    builder.build(more)
    assert [each[1, :3].tolist() for each in (first, second)] == [[7, 8, 9], [4, 5, 6]]
    assert [each[2, 0].item() for each in (first, second)] == [1, 2]
    assert builder.tables.lengths_GS.tolist() == [[0, 3, 1], [0, 3, 1]]
    builder.build(in_groups(prefill_step(2, 1, [1] * 6, [5, 3]), 2))
    assert [each[1, :2].tolist() for each in (first, second)] == [[10, 6], [11, 7]]
