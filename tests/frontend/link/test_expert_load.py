"""How ranks' counts of experts add up, and that the workers are not queried too often."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from frontend.errors import Code, RequestError
from frontend.link import expert_load
from frontend.link.expert_load import ExpertLoadPoller, add_up, imbalance
from frontend.link.rank_channel import GroupLost
from frontend.link.worker_group import WorkerGroup
from frontend.service.service import Service
from moe.placement import ExpertPlacement
from switchyard.v1 import inference_pb2 as pb
from switchyard.worker.link import expert_starts
from switchyard.worker.v1 import worker_pb2
from tests.frontend.fakes import FakeEngine, FakeWorker, backend, running_worker


def counts(*tokens: int, layers: tuple[int, ...] = (0, 2)) -> worker_pb2.GetExpertLoadResponse:
    """One rank's answer; ``tokens`` are those of one layer after the other."""
    return worker_pb2.GetExpertLoadResponse(
        layers=layers, num_experts=len(tokens) // len(layers) if layers else 0, tokens=tokens
    )


def test_what_ranks_count_adds_up() -> None:
    answer = add_up([counts(1, 2, 3, 4), counts(10, 20, 30, 40), counts(0, 0, 0, 0)], 2)
    assert [layer.layer for layer in answer.layers] == [0, 2]
    assert list(answer.layers[0].tokens) == [11, 22]
    assert list(answer.layers[1].tokens) == [33, 44]
    assert answer.layers[0].imbalance == pytest.approx(2 * 22 / 33)
    assert answer.layers[1].imbalance == pytest.approx(2 * 44 / 77)


def test_a_dense_model_has_no_layers() -> None:
    assert not add_up([counts(layers=())] * 2, 2).layers


@pytest.mark.parametrize(
    ("tokens", "ranks", "expected"),
    [
        ([4, 4, 4, 4], 2, 1.0),
        ([8, 0, 0, 0], 2, 2.0),
        ([8, 0, 0, 0], 4, 4.0),
        ([1, 1, 1, 3, 3], 2, 2 * 6 / 9),  # the first of two holds three experts
        ([5, 1], 4, 4 * 5 / 6),  # ranks without experts count in the mean
        ([0, 0], 2, 1.0),
    ],
)
def test_imbalance_is_the_fullest_rank_over_the_mean(
    tokens: list[int], ranks: int, expected: float
) -> None:
    assert imbalance(tokens, ranks) == pytest.approx(expected)


@pytest.mark.parametrize("num_experts", [1, 4, 7, 128])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_ranks_hold_the_experts_that_the_frontend_thinks(num_experts: int, num_ranks: int) -> None:
    placements = [
        ExpertPlacement(num_experts=num_experts, num_ranks=num_ranks, rank=rank)
        for rank in range(num_ranks)
    ]
    starts = expert_starts(num_experts, num_ranks)
    assert list(itertools.pairwise(starts)) == [(each.start, each.stop) for each in placements]


class Ranks:
    """Counts that grow with each query."""

    def __init__(self) -> None:
        self.queries = 0
        self.lost = False

    async def __call__(self) -> list[worker_pb2.GetExpertLoadResponse]:
        self.queries += 1
        await asyncio.sleep(0)
        if self.lost:
            raise GroupLost("rank 0 is gone")
        return [counts(self.queries, self.queries, layers=(0,))]


async def test_many_callers_at_once_query_the_workers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks()
    load = ExpertLoadPoller(ranks, 1)
    answers = await asyncio.gather(*(load.get() for _ in range(10)))
    assert ranks.queries == 1
    assert all(list(each.layers[0].tokens) == [1, 1] for each in answers)
    monkeypatch.setattr(expert_load, "MIN_QUERY_INTERVAL_SECONDS", 0.0)
    assert list((await load.get()).layers[0].tokens) == [2, 2]


async def test_lost_workers_are_unavailable_and_queried_again_when_back() -> None:
    ranks = Ranks()
    ranks.lost = True
    service = Service(model="fake", version="0")
    service.open(backend(FakeEngine(), experts=ExpertLoadPoller(ranks, 1)))
    with pytest.raises(RequestError) as caught:
        await service.expert_load()
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "RESTARTING")
    assert caught.value.retry_after
    ranks.lost = False
    assert list((await service.expert_load()).layers[0].tokens) == [2, 2]


async def test_a_service_without_experts_or_without_workers_says_so() -> None:
    service = Service(model="fake", version="0")
    with pytest.raises(RequestError) as caught:
        await service.expert_load()
    assert caught.value.reason == "STARTING"
    service.open(backend(FakeEngine()))
    assert await service.expert_load() == pb.GetExpertLoadResponse()


# ---- over the link ----


class CountingWorker(FakeWorker):
    """A rank that counts; ``answer`` cleared, it takes for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = asyncio.Event()
        self.answer.set()
        self.queried = asyncio.Event()

    async def GetExpertLoad(  # noqa: N802
        self, request: Any, context: Any
    ) -> worker_pb2.GetExpertLoadResponse:
        self.queried.set()
        await self.answer.wait()
        return counts(3, 4, layers=(5,))


async def test_a_group_answers_for_its_ranks() -> None:
    async with running_worker(CountingWorker()) as (_, address):
        group = await WorkerGroup.connect([address], startup_timeout=10)
        [answer] = await group.expert_load()
        assert (list(answer.layers), list(answer.tokens)) == ([5], [3, 4])
        await group.close()


async def test_a_query_of_a_lost_group_ends() -> None:
    worker = CountingWorker()
    async with running_worker(worker) as (_, address):
        worker.answer.clear()
        group = await WorkerGroup.connect([address], startup_timeout=10)
        asking = asyncio.create_task(group.expert_load())
        await asyncio.wait_for(worker.queried.wait(), 30)
        group.lost.set_result(GroupLost("rank 0 is gone"))
        async with asyncio.timeout(30):
            with pytest.raises(GroupLost, match="rank 0 is gone"):
                await asking
            with pytest.raises(GroupLost):
                await group.expert_load()
        await group.close()
        with pytest.raises(GroupLost):
            await group.expert_load()
        worker.answer.set()
