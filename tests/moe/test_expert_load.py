"""Counts of routes in plain torch and by the kernel, against counting one by one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moe.base.context import KernelContext
from moe.base.parallel import resolve_parallel
from moe.base.tiles import TileTable
from moe.base.workspace import Workspace
from moe.config import MoEConfig
from moe.expert_load import ExpertCounters, StepSize, expert_rows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
L, E, K, T = 3, 7, 2, 6
SINGLE = resolve_parallel(tp=1, dp=1, ep=None, backend="auto", has_experts=True)
EXCHANGED = resolve_parallel(tp=1, dp=2, ep=2, backend="all_to_all", has_experts=True)


def make_context() -> KernelContext:
    book = TileTable(dtype="float32", item_size=4, shared_bytes=100_000)
    return KernelContext(workspace=Workspace(DEVICE), tiles=book, pdl=False, num_cores=2)


def make_load(
    kernels: bool, *, first: int = 0, num_local: int = E, exchanged: bool = False
) -> ExpertCounters:
    """Of a rank that holds `num_local` experts from `first` on."""
    placement: Any = SimpleNamespace(start=first, num_local=num_local)
    return ExpertCounters(
        MoEConfig(hidden_size=8, intermediate_size=8, num_experts=E, num_experts_per_tok=K),
        EXCHANGED if exchanged else SINGLE,
        placement,
        num_layers=L,
        max_tokens=T,
        device=DEVICE,
        context=make_context() if kernels else None,
    )


def count(load: ExpertCounters, num_tokens: int, num_last: int | None = None) -> list[int]:
    """The hits, in a buffer that holds other things too: they are copied with a step's tokens."""
    results = torch.full((5 + L,), 9, dtype=torch.int32, device=DEVICE)
    num_last = num_tokens if num_last is None else num_last
    step, last = StepSize(num_tokens, num_tokens), StepSize(num_last, num_last)
    load.count(step, last, out_hits_L=results[5:])
    assert results[:5].tolist() == [9] * 5
    return results[5:].tolist()


def counted(ids_LP: torch.Tensor) -> list[list[int]]:
    """Routes of each layer's experts."""
    return [[row.count(expert) for expert in range(E)] for row in ids_LP.tolist()]


@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=pytest.mark.interpreter)])
@pytest.mark.parametrize(("first", "num_local"), [(0, E), (2, 3), (4, 0)])
def test_steps_add_up(kernels: bool, first: int, num_local: int) -> None:
    """Routes behind a step's own, left by a longer one, do not count; hits are the last step's."""
    load = make_load(kernels, first=first, num_local=num_local)
    total = torch.zeros(L, E, dtype=torch.int64)
    for num_tokens in (T, 1, 4, 0):
        load.ids_LP.copy_(torch.randint(-1, E, (L, T * K)))
        step = torch.tensor(counted(load.ids_LP[:, : num_tokens * K]))
        hits = count(load, num_tokens)
        total += step
        local = step[:, first : first + num_local]
        assert hits == (local > 0).sum(1).tolist()
        assert load.load_LE.cpu().tolist() == total.tolist()
    load.reset()
    assert not load.load_LE.any()


@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=pytest.mark.interpreter)])
@pytest.mark.parametrize("has_last", [True, False])
def test_the_last_layer_may_see_fewer(kernels: bool, has_last: bool) -> None:
    load = make_load(kernels)
    load.has_last = has_last
    load.ids_LP.copy_(torch.arange(L * T * K).view(L, -1) % E)
    hits = count(load, 4, 1)
    sizes = [4 * K, 4 * K, K if has_last else 4 * K]
    step = [counted(row[None, :size])[0] for row, size in zip(load.ids_LP, sizes, strict=True)]
    assert load.load_LE.cpu().tolist() == step
    assert hits == [sum(each > 0 for each in row) for row in step]


@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=pytest.mark.interpreter)])
def test_of_an_exchange_every_place_counts(kernels: bool) -> None:
    load = make_load(kernels, exchanged=True)
    load.ids_LP[:, 1] = 4
    load.ids_LP[1, -1] = 2
    hits = count(load, 1)
    assert load.ids_LP.shape == (L, 2 * T * K)
    assert load.load_LE.cpu().tolist() == counted(load.ids_LP)
    assert hits == [1, 2, 1]


def test_nothing_was_asked_for_before_the_first_step() -> None:
    load = make_load(False)
    assert load.ids_LP.eq(-1).all()
    assert count(load, T) == [0] * L
    assert not load.load_LE.any()


def test_rows_are_those_of_a_replica_or_every_replica_s_shares() -> None:
    assert expert_rows(SINGLE, 5, 9) == 5
    shares = resolve_parallel(tp=2, dp=3, ep=6, backend="all_to_all", has_experts=True)
    assert expert_rows(shares, 5, 9) == 6 * 5
