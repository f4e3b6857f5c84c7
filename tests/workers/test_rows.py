"""Host columns of a step: what they say, and what contradicts itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from switchyard.worker.v1 import worker_pb2
from workers.rows import StepRows


@st.composite
def steps(draw: st.DrawFn) -> worker_pb2.StepRequest:
    """Some decodes, then rows of given tokens."""
    num_decodes = draw(st.integers(0, 4))
    num_tokens = draw(st.lists(st.integers(1, 9), max_size=4))
    num_rows = num_decodes + len(num_tokens)
    sized = {"min_size": num_rows, "max_size": num_rows}
    marks = st.lists(st.booleans(), min_size=len(num_tokens), max_size=len(num_tokens))
    return worker_pb2.StepRequest(
        num_decodes=num_decodes,
        slots=draw(st.lists(st.integers(0, 99), unique=True, **sized)),
        positions=draw(st.lists(st.integers(0, 5000), **sized)),
        num_tokens=num_tokens,
        draws=draw(marks),
        token_ids=[7] * sum(num_tokens),
    )


@given(step=steps())
def test_columns_are_the_rows_one_by_one(step: worker_pb2.StepRequest) -> None:
    rows = StepRows.from_step(step)
    first = 0
    for index, (slot, position) in enumerate(zip(step.slots, step.positions, strict=True)):
        given = index - step.num_decodes
        num_tokens = 1 if given < 0 else step.num_tokens[given]
        assert rows.slots[index] == slot
        assert rows.positions[index] == position
        assert rows.num_tokens[index] == num_tokens
        assert rows.first_token[index] == first
        assert rows.lengths[index] == position + num_tokens
        assert rows.draws[index] == (given < 0 or step.draws[given])
        first += num_tokens
    assert len(rows.slots) == len(step.slots)


def test_columns_have_the_devices_types() -> None:
    """Staging copies them word by word."""
    for rows in (StepRows.from_step(worker_pb2.StepRequest()), decodes(2), decodes(2).padded(5)):
        names = ("slots", "positions", "num_tokens", "first_token", "lengths")
        assert {getattr(rows, name).dtype for name in names} == {np.dtype(np.int32)}
        assert rows.draws.dtype == np.bool_


def decodes(count: int) -> StepRows:
    return StepRows.from_step(
        worker_pb2.StepRequest(
            num_decodes=count, slots=range(5, 5 + count), positions=range(30, 30 + count)
        )
    )


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("size", [3, 8])
def test_padding_stands_behind_and_has_no_context(count: int, size: int) -> None:
    rows = decodes(count)
    padded = rows.padded(size)
    assert padded.slots.tolist() == [*rows.slots, *[-1] * (size - count)]
    assert padded.positions.tolist() == [*rows.positions, *[0] * (size - count)]
    assert padded.lengths.tolist() == [*rows.lengths, *[0] * (size - count)]
    assert padded.num_tokens.tolist() == [1] * size
    assert padded.first_token.tolist() == list(range(size))
    assert padded.draws.all()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_tokens": []},
        {"num_tokens": [3, 1]},
        {"draws": []},
        {"draws": [True, True]},
        {"token_ids": [1, 2]},
        {"token_ids": [1, 2, 3, 4]},
        {"num_decodes": 2},
        {"slots": [1]},
    ],
    ids=str,
)
def test_contradictions_name_the_step(changes: dict[str, Any]) -> None:
    columns = {
        "num_decodes": 1,
        "slots": [1, 2],
        "positions": [4, 0],
        "num_tokens": [3],
        "draws": [True],
        "token_ids": [1, 2, 3],
    }
    StepRows.from_step(worker_pb2.StepRequest(step_id=7, **columns))
    with pytest.raises(ValueError, match="step 7"):
        StepRows.from_step(worker_pb2.StepRequest(step_id=7, **{**columns, **changes}))
