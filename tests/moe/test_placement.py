"""Every expert has one owner, blocks are contiguous and even."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe.placement import ExpertPlacement


@given(num_experts=st.integers(1, 70), num_ranks=st.integers(1, 80))
def test_placement(num_experts: int, num_ranks: int) -> None:
    ranks = [
        ExpertPlacement(num_experts=num_experts, num_ranks=num_ranks, rank=rank)
        for rank in range(num_ranks)
    ]
    each, extra = divmod(num_experts, num_ranks)
    assert [p.num_local for p in ranks] == [each + (rank < extra) for rank in range(num_ranks)]
    assert [e for p in ranks for e in range(p.start, p.stop)] == list(range(num_experts))
    owners = ranks[0].owners("cpu")
    for placement in ranks:
        index = placement.expert_map("cpu")
        assert index.dtype == torch.int32
        local = list(range(placement.num_local))
        assert index[placement.start : placement.stop].tolist() == local
        assert torch.equal(index >= 0, owners == placement.rank)


@pytest.mark.parametrize(("experts", "ranks", "rank"), [(0, 1, 0), (4, 0, 0), (4, 2, 2)])
def test_impossible(experts: int, ranks: int, rank: int) -> None:
    with pytest.raises(ValueError, match=f"{experts} experts for rank {rank}"):
        ExpertPlacement(num_experts=experts, num_ranks=ranks, rank=rank)
