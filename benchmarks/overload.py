"""Overload: what a server still does, and how soon it says no, at several times what it can do.

``python -m benchmarks.overload [--rounds 4] [--seconds 6] [--times 5] [-- SERVE_FLAG…]``

A round first finds the peak, with as many clients as slots and half the queue hold, each of whom
waits for its answer; then requests arrive at their own times, ``--times`` as many as the peak.
Meanwhile another connection checks health. Goodput is requests answered a second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import time

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks import report, server
from switchyard.client import AsyncClient, ServerError

SLOTS, QUEUE = 8, 8
FLAGS = ("--max-batch-size", str(SLOTS), "--max-queued-requests", str(QUEUE))
NUM_CLIENTS = SLOTS + QUEUE // 2
PROMPT, OUTPUT = 16, 32
WARM_UP_SECONDS = 2.0
HEALTH_PAUSE_SECONDS = 0.02


class Load:
    """Requests and what became of them.

    Attributes:
        num_done: requests that were answered.
        refusals: seconds until each refusal.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self.num_done = 0
        self.refusals: list[float] = []

    async def _one(self, seed: int) -> None:
        rng = random.Random(seed)
        prompt = [rng.randrange(3, 400) for _ in range(PROMPT)]
        began = time.perf_counter()
        try:
            await self._client.complete(prompt, max_new_tokens=OUTPUT, ignore_eos=True)
            self.num_done += 1
        except ServerError as error:
            if (error.code, error.reason) != (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"):
                raise
            self.refusals.append(time.perf_counter() - began)

    async def arrive(self, per_second: float, seconds: float) -> float:
        """Send at random times, whatever becomes of them; requests answered a second."""
        tasks, rng = [], random.Random(int(per_second))
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            tasks.append(asyncio.create_task(self._one(len(tasks))))
            await asyncio.sleep(rng.expovariate(per_second))
        rate = self.num_done / (time.perf_counter() - began)
        await asyncio.gather(*tasks)
        return rate

    async def saturate(self, num_clients: int, seconds: float) -> float:
        """Send from clients that wait for their answers; requests answered a second."""
        began = time.perf_counter()

        async def loop(seed: int) -> None:
            while time.perf_counter() - began < seconds:
                await self._one(seed)

        await asyncio.gather(*(loop(number) for number in range(num_clients)))
        return self.num_done / (time.perf_counter() - began)


async def check_health(address: str, latencies: list[float]) -> None:
    """Add the seconds of one check after the other, on a connection of its own, until cancelled."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            began = time.perf_counter()
            await stub.Check(health_pb2.HealthCheckRequest())
            latencies.append(time.perf_counter() - began)
            await asyncio.sleep(HEALTH_PAUSE_SECONDS)


async def run_round(
    client: AsyncClient, address: str, seconds: float, times: float
) -> dict[str, float]:
    """One row: a while at the peak, then a while at several times that."""
    peak = await Load(client).saturate(NUM_CLIENTS, seconds)
    overload, health = Load(client), list[float]()
    checking = asyncio.create_task(check_health(address, health))
    goodput = await overload.arrive(times * peak, seconds)
    checking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await checking
    return {
        "peak/s": peak,
        "goodput/s": goodput,
        "kept %": 100 * goodput / peak,
        "answered": overload.num_done,
        "refused": len(overload.refusals),
        "refusal p50 ms": 1e3 * report.percentile(overload.refusals, 0.5),
        "refusal p99 ms": 1e3 * report.percentile(overload.refusals, 0.99),
        "health p50 ms": 1e3 * report.percentile(health, 0.5),
        "health p99 ms": 1e3 * report.percentile(health, 0.99),
    }


async def measure(address: str, num_rounds: int, seconds: float, times: float) -> list[report.Row]:
    """The rows of the table, a round each."""
    async with AsyncClient(address) as client:
        await Load(client).saturate(NUM_CLIENTS, min(seconds, WARM_UP_SECONDS))
        return [await run_round(client, address, seconds, times) for _ in range(num_rounds)]


def main() -> None:
    """Print the table of rounds."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overload", description="Measure goodput and refusals."
    )
    parser.add_argument("--rounds", type=int, default=4, help="rows of the table")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each half of a round")
    parser.add_argument("--times", type=float, default=5.0, help="arrivals, in peaks")
    server.add_flags(parser)
    report.add_flags(parser)
    flags = parser.parse_args()
    with server.running(flags, FLAGS) as running:
        rows = asyncio.run(measure(running.address, flags.rounds, flags.seconds, flags.times))
        title = f"{flags.times:g} times the load; {running.describe()}"
    report.show(title, rows, flags.json)


if __name__ == "__main__":
    main()
