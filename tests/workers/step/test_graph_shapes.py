"""Which captured shape a step is padded to."""

from __future__ import annotations

from typing import Any

import pytest

from switchyard.worker.v1 import worker_pb2
from workers.step.batch import BatchShape
from workers.step.graphs import StepGraphs, mixed_sizes


def graphs(max_tokens: int) -> StepGraphs:
    held: dict[BatchShape, Any] = {BatchShape(8, decodes=True): None}
    return StepGraphs(held | {BatchShape(n, False): None for n in mixed_sizes(max_tokens)}, 0)


def mixed(tokens: int, *positions: int) -> worker_pb2.StepRequest:
    """Decodes at some positions beside a prompt."""
    return worker_pb2.StepRequest(
        max_replica_tokens=tokens, num_decodes=len(positions), positions=[*positions, 0]
    )


@pytest.mark.parametrize("max_tokens", [16, 700, 2048, 5000, 8192])
def test_the_largest_step_has_a_shape(max_tokens: int) -> None:
    sizes = mixed_sizes(max_tokens)
    assert sizes == sorted({*sizes, max_tokens})
    assert graphs(max_tokens).shape_for(mixed(max_tokens)) == BatchShape(max_tokens, decodes=False)


@pytest.mark.parametrize(
    ("tokens", "size"),
    [(1, 16), (16, 16), (17, 32), (2048, 2048), (2049, None), (7679, None), (7680, 8192)],
)
def test_many_tokens_are_padded_where_they_are_nearly_full(tokens: int, size: int | None) -> None:
    expected = None if size is None else BatchShape(size, decodes=False)
    assert graphs(8192).shape_for(mixed(tokens)) == expected


def test_long_decodes_beside_a_prompt_have_none() -> None:
    assert graphs(8192).shape_for(mixed(100, 4095)) == BatchShape(128, decodes=False)
    assert graphs(8192).shape_for(mixed(100, 4096)) is None


def test_decodes_alone_have_their_own() -> None:
    step = worker_pb2.StepRequest(max_replica_tokens=5, num_decodes=5, decode_only=True)
    assert graphs(64).shape_for(step) == BatchShape(8, decodes=True)
    step.max_replica_tokens = 9
    assert graphs(64).shape_for(step) is None
