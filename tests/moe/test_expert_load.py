"""Counts of routes in plain torch and by the kernel, against counting one by one."""

from __future__ import annotations

import pytest
import torch

from moe.base.context import KernelContext
from moe.base.tiles import TileBook
from moe.base.workspace import Workspace
from moe.expert_load import ExpertLoad

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
L, E, K, T = 3, 7, 2, 6


def make_context() -> KernelContext:
    book = TileBook(dtype="float32", item_size=4, shared_bytes=100_000)
    return KernelContext(workspace=Workspace(DEVICE), tiles=book, pdl=False, num_cores=2)


def make_load(kernels: bool, **changes: object) -> ExpertLoad:
    values = {"routes_vary": False, "first_local": 0, "num_local": E, **changes}
    return ExpertLoad(
        num_layers=L,
        num_experts=E,
        routes_per_token=K,
        max_tokens=T,
        device=DEVICE,
        context=make_context() if kernels else None,
        **values,  # type: ignore[arg-type]
    )


def counted(ids_LP: torch.Tensor) -> list[list[int]]:
    """Routes of each layer's experts."""
    return [[row.count(expert) for expert in range(E)] for row in ids_LP.tolist()]


@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=pytest.mark.interpreter)])
@pytest.mark.parametrize(("first", "num_local"), [(0, E), (2, 3), (4, 0)])
def test_steps_add_up(kernels: bool, first: int, num_local: int) -> None:
    """Routes behind a step's own, left by a longer one, do not count; hits are the last step's."""
    load = make_load(kernels, first_local=first, num_local=num_local)
    total = torch.zeros(L, E, dtype=torch.int64)
    for num_tokens in (T, 1, 4, 0):
        load.ids_LP.copy_(torch.randint(-1, E, (L, T * K)))
        step = torch.tensor(counted(load.ids_LP[:, : num_tokens * K]))
        load.count(num_tokens)
        total += step
        local = step[:, first : first + num_local]
        assert load.hits_L.tolist() == (local > 0).sum(1).tolist()
        assert load.load_LE.cpu().tolist() == total.tolist()


@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=pytest.mark.interpreter)])
def test_of_an_exchange_every_place_counts(kernels: bool) -> None:
    load = make_load(kernels, routes_vary=True)
    load.ids_LP[:, 1] = 4
    load.ids_LP[1, -1] = 2
    load.count(1)
    assert load.load_LE.cpu().tolist() == counted(load.ids_LP)
    assert load.hits_L.tolist() == [1, 2, 1]


def test_nothing_was_asked_for_before_the_first_step() -> None:
    load = make_load(False)
    assert load.ids_LP.eq(-1).all()
    load.count(T)
    assert not load.load_LE.any()
    assert not load.hits_L.any()


@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=pytest.mark.interpreter)])
def test_hits_may_lie_in_another_buffer(kernels: bool) -> None:
    """A runner copies them to the host with its tokens."""
    load = make_load(kernels)
    results = torch.full((5 + L,), 9, dtype=torch.int32, device=DEVICE)
    load.hits_L = results[5:]
    load.ids_LP.zero_()
    load.count(T)
    assert results.tolist() == [9] * 5 + [1] * L
