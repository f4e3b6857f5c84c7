"""Five times what the server can do: it does as much as before, says no at once, and stays well."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from switchyard.client import AsyncClient, ServerError
from switchyard.v1 import inference_pb2 as pb
from tests.faults.server import Server

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(180)]

FLAGS = ("--max-batch-size", "8", "--max-queued-requests", "8", "--step-timeout", "10")
SECONDS = 8.0
OUTPUT = 32
GOODPUT_KEPT = 0.95
NOISE = 0.10
"""What two runs of a few seconds differ by on a shared machine."""

HEALTH_SECONDS = 0.05
REFUSAL_SECONDS = 0.05


class Load:
    """Requests sent at their own times, and what became of them."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self.done = 0
        self.refusals: list[float] = []
        self.retry_after: list[float | None] = []

    async def one(self, seed: int) -> None:
        rng = random.Random(seed)
        begun = time.monotonic()
        try:
            prompt = [rng.randrange(3, 400) for _ in range(16)]
            await self._client.complete(prompt, max_new_tokens=OUTPUT, ignore_eos=True)
            self.done += 1
        except ServerError as error:
            if (error.code, error.reason) != (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"):
                raise
            self.refusals.append(time.monotonic() - begun)
            self.retry_after.append(error.retry_after)

    async def arrive(self, per_second: float, seconds: float) -> float:
        """Open loop at a rate; requests done a second."""
        tasks, rng = [], random.Random(int(per_second))
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            tasks.append(asyncio.create_task(self.one(len(tasks))))
            await asyncio.sleep(rng.expovariate(per_second))
        done = self.done / (time.monotonic() - begun)
        await asyncio.gather(*tasks)
        return done

    async def saturate(self, clients: int, seconds: float) -> float:
        """Closed loop that just fills slots and queue; requests done a second."""
        end = time.monotonic() + seconds

        async def loop(seed: int) -> None:
            while time.monotonic() < end:
                await self.one(seed)

        before, begun = self.done, time.monotonic()
        await asyncio.gather(*(loop(number) for number in range(clients)))
        return (self.done - before) / (time.monotonic() - begun)


async def health_latencies(address: str) -> list[float]:
    """Seconds of one check after the other, on a connection of its own, until cancelled."""
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            while True:
                begun = time.monotonic()
                answer = await stub.Check(health_pb2.HealthCheckRequest())
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
                latencies.append(time.monotonic() - begun)
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            return latencies


async def test_goodput_refusals_and_health_at_five_times_the_load(tmp_path: Path) -> None:
    with Server(tmp_path, *FLAGS) as server:
        async with AsyncClient(server.address) as client:
            await Load(client).saturate(12, 2)
            peak = await Load(client).saturate(12, SECONDS)
            overload = Load(client)
            checks = asyncio.create_task(health_latencies(server.address))
            goodput = await overload.arrive(5 * peak, SECONDS)
            checks.cancel()
            latencies = await checks
            load = await client.stub.GetLoad(pb.GetLoadRequest())
    assert goodput >= (GOODPUT_KEPT - NOISE) * peak, f"{goodput} of {peak} requests a second"
    assert len(overload.refusals) > 2 * overload.done
    assert statistics.median(overload.refusals) < REFUSAL_SECONDS
    assert all(seconds is not None and seconds >= 1 for seconds in overload.retry_after)
    assert len(latencies) > 50
    assert statistics.quantiles(latencies, n=100)[98] < HEALTH_SECONDS, max(latencies)
    assert (load.running_requests, load.queued_requests) == (0, 0)


async def test_a_cancelled_stream_frees_its_slot_within_a_step(tmp_path: Path) -> None:
    with Server(tmp_path, *FLAGS) as server:
        async with AsyncClient(server.address) as client:
            for _ in range(5):
                async with client.generate([5, 6], max_new_tokens=900, ignore_eos=True) as stream:
                    await anext(aiter(stream))
                    load = await client.stub.GetLoad(pb.GetLoadRequest())
                    assert load.running_requests == 1
                left = time.monotonic()
                while load.running_requests:
                    load = await client.stub.GetLoad(pb.GetLoadRequest())
                    assert time.monotonic() - left < 0.5 + 2 * load.step_seconds
                assert load.kv_cache_usage == 0
