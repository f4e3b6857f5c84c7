"""Killing ranks and frontends while streams run, and how long it takes until all goes on."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import signal
import time
from collections.abc import Sequence

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from frontend.probe import Verdict, probe
from tests.faults.streams import Answer, Asked, Progress, answers
from tests.processes import is_alive, send
from tests.server import Server

_SERVING = health_pb2.HealthCheckResponse.SERVING


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One kill: at how many tokens of all streams, of which rank, by which signal."""

    at_tokens: int
    rank: int
    signal: signal.Signals = signal.SIGKILL


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds from a kill until health said so, until it was well again, until a token came."""

    noticed: float
    ready: float
    moving: float


class Watch:
    """Changes of the server's health, as its Watch streams them."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._changes: asyncio.Queue[tuple[float, bool]] = asyncio.Queue()
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            async for answer in stub.Watch(health_pb2.HealthCheckRequest()):
                self._changes.put_nowait((time.monotonic(), answer.status == _SERVING))

    async def until(self, serving: bool) -> float:
        """When it next was, or became, so; the changes before are forgotten."""
        while True:
            when, is_serving = await self._changes.get()
            if is_serving is serving:
                return when

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def random_kills(
    rng: random.Random, signals: Sequence[signal.Signals], num_ranks: int, num_tokens: int
) -> list[Kill]:
    """Signals to one rank after the other at random tokens of a run of so many, with progress
    between any two."""
    apart = num_tokens // (len(signals) + 1)
    return [
        Kill(
            at_tokens=number * apart + rng.randrange(apart // 2) + 1,
            rank=number % num_ranks,
            signal=each,
        )
        for number, each in enumerate(signals)
    ]


async def disturbed(
    server: Server, requests: list[Asked], kills: list[Kill], progress: Progress | None = None
) -> tuple[list[Answer], list[Times]]:
    """All requests' answers, with ranks killed meanwhile."""
    progress, times = progress or Progress(), []
    watch = Watch(server.address)
    running = asyncio.create_task(answers(server.address, requests, progress))
    try:
        await watch.until(True)
        for kill in kills:
            await progress.reach(kill.at_tokens)
            assert not running.done(), "the streams ended before the kill"
            killed = time.monotonic()
            send(server.ranks()[kill.rank], kill.signal)
            noticed = await watch.until(False)
            ready = await watch.until(True)
            await progress.reach(progress.num_tokens + 1)
            moving = time.monotonic()
            times.append(
                Times(noticed=noticed - killed, ready=ready - killed, moving=moving - killed)
            )
        return await running, times
    finally:
        running.cancel()
        await watch.close()


async def serves_again(server: Server, frontend: int) -> float:
    """Seconds until another frontend than the killed one serves, where that one did."""
    began = time.monotonic()

    def is_back() -> bool:
        verdict, _ = probe(server.address, timeout=1.0)
        return verdict is Verdict.HEALTHY and not is_alive(frontend)

    while not await asyncio.to_thread(is_back):
        assert time.monotonic() < began + 120, server.log
        await asyncio.sleep(0.02)
    return time.monotonic() - began
