"""Clients that freeze, dawdle or die cost the others nothing, and their requests are given up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import pytest

from benchmarks.delivery import made_up_service
from frontend.api.grpc import server
from frontend.api.grpc.server import GrpcServer
from frontend.engine.engine import Engine
from switchyard.client import AsyncClient
from tests.faults.server import ROOT

pytestmark = pytest.mark.processes

STEP_SECONDS = 0.01
PING_SECONDS = 1

READER = """
import sys
from switchyard.client import Client
with Client(sys.argv[1]) as client, client.generate([1, 2], max_new_tokens=60000) as stream:
    for delta in stream:
        print(len(delta.token_ids), flush=True)
"""


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[str, Engine]]:
    service, engine = made_up_service(64, STEP_SECONDS)
    server = GrpcServer(service, "127.0.0.1", 0)
    address = f"127.0.0.1:{await server.start()}"
    running = asyncio.create_task(engine.run())
    try:
        yield address, engine
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        engine.end()
        await server.stop(0)


@contextlib.asynccontextmanager
async def reader(address: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Another process that reads one stream."""
    process = subprocess.Popen(
        [sys.executable, "-c", READER, address],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        await asyncio.to_thread(process.stdout.readline)
        yield process
    finally:
        process.kill()
        process.wait()


async def idle_after(engine: Engine, seconds: float) -> float:
    """Seconds until nothing runs."""
    begun = time.monotonic()
    while engine.load().running_requests:
        assert time.monotonic() - begun < seconds, "the request is still there"
        await asyncio.sleep(0.005)
    return time.monotonic() - begun


async def test_a_frozen_client_is_given_up_after_the_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    shorter = {
        "grpc.keepalive_time_ms": PING_SECONDS * 1000,
        "grpc.keepalive_timeout_ms": PING_SECONDS * 1000,
        "grpc.http2.ping_timeout_ms": PING_SECONDS * 1000,
    }
    options = tuple((name, shorter.get(name, value)) for name, value in server.SERVER_OPTIONS)
    monkeypatch.setattr(server, "SERVER_OPTIONS", options)
    async with serving() as (address, engine), reader(address) as process:
        assert engine.load().running_requests == 1
        process.send_signal(signal.SIGSTOP)
        assert await idle_after(engine, 2 * PING_SECONDS + 3) > 0.5


async def test_a_killed_client_is_given_up_at_once() -> None:
    async with serving() as (address, engine), reader(address) as process:
        process.kill()
        assert await idle_after(engine, 2) < 0.5


async def test_a_slow_reader_gets_everything_and_holds_up_nobody() -> None:
    async with serving() as (address, engine), AsyncClient(address) as client:
        slow_tokens = 0

        async def dawdle() -> None:
            nonlocal slow_tokens
            async with client.generate([1], max_new_tokens=400) as stream:
                async for delta in stream:
                    slow_tokens += len(delta.token_ids)
                    await asyncio.sleep(5 * STEP_SECONDS)

        dawdling = asyncio.create_task(dawdle())
        await asyncio.sleep(0.2)
        begun = time.monotonic()
        answers = await asyncio.gather(
            *(client.complete([1, 2], max_new_tokens=50) for _ in range(8))
        )
        assert time.monotonic() - begun < 3 * 52 * STEP_SECONDS
        assert all(len(answer.outputs[0].token_ids) == 50 for answer in answers)
        await dawdling
        assert slow_tokens == 400
        assert engine.load().running_requests == 0


async def test_a_reader_that_stops_reading_holds_up_no_step() -> None:
    async with serving() as (address, engine), AsyncClient(address) as client:
        async with client.generate([1], max_new_tokens=30_000) as stream:
            await anext(aiter(stream))
            before = engine.load().rates.steps.steps
            await asyncio.sleep(1)
            # Steps went on although nobody reads, one every STEP_SECONDS.
            assert engine.load().rates.steps.steps - before > 0.5 / STEP_SECONDS
        await idle_after(engine, 2)
