"""Exchanges of four ranks, right ones and wrong ones, in each kind of layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from moe.base.parallel import resolve_parallel
from tests.processes import forks
from workers.distributed import SINGLE, Groups, expert_groups
from workers.self_check import collectives
from workers.self_check.collectives import check_collectives

WORLD = 4
# Layouts: tp, dp, ep, backend.
TP = (4, 1, 1, "disabled")
EP = (4, 1, None, "local_allreduce")
GATHERED = (2, 2, None, "allgather_reducescatter")
EXCHANGED = (2, 2, None, "all_to_all")
DP = (1, 4, 1, "disabled")
# What each checks, but for the number of rows.
CHECKED = {
    TP: {"minimum", "all-reduce tp", "all-gather tp"},
    EP: {"minimum", "all-reduce tp", "all-gather tp", "all-reduce ep"},
    GATHERED: {"minimum", "all-reduce tp", "all-gather tp", "all-gather ep", "reduce-scatter ep"},
    EXCHANGED: {"minimum", "all-reduce tp", "all-gather tp", "all-to-all ep"},
    DP: {"minimum"},
}
# A layout, an exchange that is wrong, and what finds it.
WRONG = [
    (TP, "all_reduce", "all-reduce tp"),
    (GATHERED, "all_gather_rows", "all-gather tp"),
    (GATHERED, "reduce_scatter_rows", "reduce-scatter ep"),
    (EXCHANGED, "exchange_rows", "all-to-all ep"),
]
Case = tuple[tuple[Any, ...], str | None]


def findings(layout: tuple[Any, ...], rank: int, pairs: list[Any]) -> list[tuple[str, bool]]:
    """Each one's kind and group, and whether it is right."""
    tp, dp, ep, backend = layout
    parallel = resolve_parallel(tp=tp, dp=dp, ep=ep, backend=backend, has_experts=True)
    groups = Groups(
        rank=rank,
        world_size=WORLD,
        tp_rank=rank % tp,
        tp_size=tp,
        dp_rank=rank // tp,
        dp_size=dp,
        tp_group={1: None, 2: pairs[rank // 2], 4: dist.group.WORLD}[tp],
        world_group=dist.group.WORLD,
    )
    found = check_collectives(
        groups,
        expert_groups(groups, parallel),
        parallel,
        width=8,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
    return [(kind_of(each.what), each.is_right) for each in found]


def kind_of(what: str) -> str:
    kind, _, rest = what.partition(" over ")
    name = rest.partition(" ranks of ")[2].partition(",")[0]
    return f"{kind} {name}".strip()


def serve(rank: int, rendezvous: str, cases: list[Case], out: Any) -> None:
    """A rank of all cases. Where an exchange is wrong, it is so on the last rank alone."""
    torch.set_num_threads(1)
    method = f"file://{rendezvous}"
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=WORLD)
    pairs = [dist.new_group([first, first + 1]) for first in (0, 2)]
    results = []
    for layout, name in cases:
        with pytest.MonkeyPatch.context() as patch:
            if name is not None and rank == WORLD - 1:
                exchange = getattr(collectives, name)
                patch.setattr(collectives, name, lambda *args, run=exchange: run(*args).roll(1, 1))
            results.append(findings(layout, rank, pairs))
    out.put((rank, results))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, list[Any]]:
    """Of each case what each rank found."""
    cases: list[Case] = [*((layout, None) for layout in CHECKED), *(case[:2] for case in WRONG)]
    context = forks()
    out = context.SimpleQueue()
    path = str(tmp_path_factory.mktemp("ranks") / "rendezvous")
    processes = [
        context.Process(target=serve, args=(rank, path, cases, out), daemon=True)
        for rank in range(WORLD)
    ]
    for process in processes:
        process.start()
    by_rank = dict(out.get() for _ in processes)
    for process in processes:
        process.join(timeout=10)
    return {case: [by_rank[rank][n] for rank in range(WORLD)] for n, case in enumerate(cases)}


@pytest.mark.processes
@pytest.mark.parametrize("layout", CHECKED, ids=str)
def test_right_exchanges_pass(layout: tuple[Any, ...], results: dict[Case, list[Any]]) -> None:
    for found in results[layout, None]:
        assert {what for what, _ in found} == CHECKED[layout]
        assert all(is_right for _, is_right in found)


@pytest.mark.processes
@pytest.mark.parametrize(("layout", "name", "what"), WRONG, ids=str)
def test_a_wrong_exchange_of_one_rank_is_found(
    layout: tuple[Any, ...], name: str, what: str, results: dict[Case, list[Any]]
) -> None:
    """By that rank; all others have what is right."""
    *others, last = results[layout, name]
    assert all(is_right for found in others for _, is_right in found)
    assert next(kind for kind, is_right in last if not is_right) == what


def test_a_rank_alone_exchanges_nothing() -> None:
    parallel = resolve_parallel(tp=1, dp=1, ep=None, backend="auto", has_experts=True)
    alone = expert_groups(SINGLE, parallel)
    found = check_collectives(
        SINGLE, alone, parallel, width=8, dtype=torch.float32, device=torch.device("cpu")
    )
    assert not list(found)
