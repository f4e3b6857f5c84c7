"""Clients that freeze, dawdle or die cost the others nothing, and their requests are given up."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from benchmarks.delivery import made_up_service
from frontend.api.grpc import server
from frontend.api.grpc.server import GrpcServer
from frontend.engine.engine import Engine
from switchyard.client import AsyncClient
from tests.processes import ENVIRONMENT
from tests.waiting import until

pytestmark = pytest.mark.processes

STEP_SECONDS = 0.01
PING_SECONDS = 1
SLOW_TOKENS = 200

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
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        await asyncio.to_thread(process.stdout.readline)
        yield process
    finally:
        process.kill()
        process.wait()


def ping_after(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ping silent clients after so long, and give them as long to answer."""
    changed = {
        "grpc.keepalive_time_ms": int(seconds * 1000),
        "grpc.keepalive_timeout_ms": int(seconds * 1000),
        "grpc.http2.ping_timeout_ms": int(seconds * 1000),
    }
    options = tuple((name, changed.get(name, value)) for name, value in server.SERVER_OPTIONS)
    monkeypatch.setattr(server, "SERVER_OPTIONS", options)


def num_steps(engine: Engine) -> int:
    return engine.load().rates.steps.steps


async def until_idle(engine: Engine) -> None:
    await until(lambda: not engine.load().running_requests)


async def test_a_frozen_client_is_given_up_after_the_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    ping_after(PING_SECONDS, monkeypatch)
    async with serving() as (address, engine), reader(address) as process:
        assert engine.load().running_requests == 1
        process.send_signal(signal.SIGSTOP)
        await until_idle(engine)


async def test_a_killed_client_is_given_up_without_a_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    ping_after(3600, monkeypatch)
    async with serving() as (address, engine), reader(address) as process:
        process.kill()
        await until_idle(engine)


async def test_a_slow_reader_gets_everything_and_holds_up_nobody() -> None:
    async with serving() as (address, engine), AsyncClient(address) as client:
        slow_tokens = 0
        hurry = asyncio.Event()

        async def dawdle() -> None:
            nonlocal slow_tokens
            async with client.generate([1], max_new_tokens=SLOW_TOKENS) as stream:
                async for delta in stream:
                    slow_tokens += len(delta.token_ids)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(hurry.wait(), 5 * STEP_SECONDS)

        dawdling = asyncio.create_task(dawdle())
        await until(lambda: slow_tokens)
        before = num_steps(engine)
        answers = await asyncio.gather(
            *(client.complete([1, 2], max_new_tokens=50) for _ in range(8))
        )
        assert slow_tokens < SLOW_TOKENS, "nothing was slow"
        assert num_steps(engine) - before < 3 * 52
        assert all(len(answer.outputs[0].token_ids) == 50 for answer in answers)
        hurry.set()
        await dawdling
        assert slow_tokens == SLOW_TOKENS
        assert engine.load().running_requests == 0


async def test_a_reader_that_stops_reading_holds_up_no_step() -> None:
    async with serving() as (address, engine), AsyncClient(address) as client:
        async with client.generate([1], max_new_tokens=30_000) as stream:
            await anext(aiter(stream))
            before = num_steps(engine)
            await until(lambda: num_steps(engine) > before + 100)  # although nobody reads
        await until_idle(engine)
