"""Far more requests than there is room for: the server says no to the rest, and loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from switchyard.client import AsyncClient, ServerError
from switchyard.v1 import inference_pb2 as pb
from tests.server import Server

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

SLOTS, QUEUE = 8, 8
FLAGS = ("--max-batch-size", str(SLOTS), "--max-queued-requests", str(QUEUE))
BURST = 5 * (SLOTS + QUEUE)
OUTPUT = 100


class Burst:
    """Requests sent at once; who was refused, and who had already been served by then."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self.num_done = 0
        self.num_refused = 0
        self.refusals: set[tuple[str, str, bool]] = set()
        self.done_before_last_refusal = 0

    async def one(self, number: int) -> None:
        prompt = [3 + number % 300] * 16
        try:
            answer = await self._client.complete(prompt, max_new_tokens=OUTPUT, ignore_eos=True)
        except ServerError as error:
            self.refusals.add((error.code.name, error.reason, (error.retry_after or 0) >= 1))
            self.num_refused += 1
            self.done_before_last_refusal = self.num_done
        else:
            assert len(answer.outputs[0].token_ids) == OUTPUT
            self.num_done += 1

    async def run(self) -> None:
        await asyncio.gather(*(self.one(number) for number in range(BURST)))


async def check_health(address: str, burst: asyncio.Task[None]) -> int:
    """One check after the other, on a connection of its own, while the burst runs; how many."""
    num_checks = 0
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while not burst.done():
            answer = await stub.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            num_checks += 1
            await asyncio.sleep(0.02)
    return num_checks


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), str(model), *FLAGS) as running:
        yield running


async def test_what_finds_no_room_is_refused_before_anything_is_done(server: Server) -> None:
    """`python -m benchmarks.overload` measures goodput, refusals and health under such a load."""
    async with AsyncClient(server.address) as client:
        for _ in range(2):
            burst = Burst(client)
            running = asyncio.create_task(burst.run())
            num_checks = await check_health(server.address, running)
            await running
            assert QUEUE <= burst.num_done <= SLOTS + QUEUE
            assert burst.num_done + burst.num_refused == BURST
            assert burst.refusals == {("RESOURCE_EXHAUSTED", "QUEUE_FULL", True)}
            assert burst.done_before_last_refusal == 0
            assert num_checks > 1
            load = await client.stub.GetLoad(pb.GetLoadRequest())
            assert (load.running_requests, load.queued_requests) == (0, 0)
            assert load.kv_cache_usage == 0


async def test_a_cancelled_stream_frees_its_slot(server: Server) -> None:
    async with AsyncClient(server.address) as client:
        for _ in range(5):
            async with client.generate([5, 6], max_new_tokens=900, ignore_eos=True) as stream:
                await anext(aiter(stream))
                load = await client.stub.GetLoad(pb.GetLoadRequest())
                assert load.running_requests == 1
            left = load.steps.steps
            while load.running_requests:
                load = await client.stub.GetLoad(pb.GetLoadRequest())
                assert load.steps.steps < left + 400, "it runs to its end"
            assert load.kv_cache_usage == 0
