"""Health in every state of a server's life: who asks is told from memory, whoever else is busy."""

from __future__ import annotations

import ast
import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from frontend import probe
from frontend.api.grpc import health
from frontend.api.grpc.health import LIVENESS, READINESS, SERVICE_NAME
from tests.frontend.fakes import FakeEngine, Running, backend, running_server
from tests.waiting import HANG_SECONDS, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ALL = (*READINESS, LIVENESS)


class Asking:
    """Asks a server everything, each time; ``states`` are what a Watch was told."""

    def __init__(self, running: Running, channel: grpc.aio.Channel) -> None:
        self._running = running
        self._stub = health_pb2_grpc.HealthStub(channel)
        self.states: list[int] = []

    async def watch(self) -> None:
        call = self._stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME), timeout=30)
        async for answer in call:
            self.states.append(answer.status)

    async def check(self, ready: bool) -> None:
        """Every way to ask agrees, and the process is alive either way."""
        statuses = []
        for name in ALL:
            asked = health_pb2.HealthCheckRequest(service=name)
            statuses.append((await self._stub.Check(asked, timeout=10)).status)
        expected = SERVING if ready else NOT_SERVING
        assert statuses == [expected, expected, SERVING]
        listed = await self._stub.List(health_pb2.HealthListRequest(), timeout=10)
        assert [listed.statuses[name].status for name in ALL] == statuses
        assert self._running.server.health.ready is ready
        verdict, line = await asyncio.to_thread(probe.probe, self._running.address)
        assert verdict == (probe.Verdict.HEALTHY if ready else probe.Verdict.UNHEALTHY)
        assert line == health_pb2.HealthCheckResponse.ServingStatus.Name(expected)


@contextlib.asynccontextmanager
async def asking(running: Running) -> AsyncIterator[Asking]:
    async with grpc.aio.insecure_channel(running.address) as channel:
        one = Asking(running, channel)
        watching = asyncio.create_task(one.watch())
        try:
            yield one
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


@pytest.mark.slow
async def test_each_state_is_told_to_everybody_once() -> None:
    async with running_server(ready=False) as running, asking(running) as one:
        told = running.server.health
        await one.check(ready=False)  # loading
        running.service.open(backend(FakeEngine()))
        await told.set_ready(True)
        await one.check(ready=True)
        await told.set_ready(False)  # the workers are lost
        await one.check(ready=False)
        await told.set_ready(True)  # and back
        await one.check(ready=True)
        running.service.drain()
        await told.set_ready(False)
        await one.check(ready=False)
        assert one.states == [NOT_SERVING, SERVING, NOT_SERVING, SERVING, NOT_SERVING]


async def test_a_watch_ends_with_the_server_at_once() -> None:
    async with running_server() as running, asking(running) as one:
        await until(lambda: one.states)
        # An open Watch would hold it for the whole grace.
        await asyncio.wait_for(running.server.stop(3600.0), HANG_SECONDS)
        assert one.states[-1] == NOT_SERVING


class StuckContext:
    """Of a client that reads nothing: what is written never leaves."""

    async def write(self, answer: health_pb2.HealthCheckResponse) -> None:
        await asyncio.Event().wait()


class ReadingContext:
    def __init__(self) -> None:
        self.statuses: list[int] = []

    async def write(self, answer: health_pb2.HealthCheckResponse) -> None:
        self.statuses.append(answer.status)


async def test_a_client_that_reads_nothing_holds_up_nobody() -> None:
    told, reading = health.Health(), ReadingContext()
    asked = health_pb2.HealthCheckRequest(service=SERVICE_NAME)
    watches = [
        asyncio.create_task(told.Watch(asked, context))
        for context in (StuckContext(), reading, StuckContext())
    ]
    for num_told, ready in ((1, True), (2, False)):
        await until(lambda num_told=num_told: len(reading.statuses) == num_told)
        async with asyncio.timeout(HANG_SECONDS):
            await told.set_ready(ready)
    await until(lambda: len(reading.statuses) == 3)
    assert reading.statuses == [NOT_SERVING, SERVING, NOT_SERVING]
    for watch in watches:
        watch.cancel()
    await asyncio.gather(*watches, return_exceptions=True)


async def test_health_answers_while_every_request_is_stuck() -> None:
    async with running_server() as running, asking(running) as one:
        running.engine.go.clear()

        def refuse() -> None:
            raise AssertionError("health asked the engine")

        running.engine.load = refuse  # type: ignore[assignment, method-assign]
        await one.check(ready=True)


def test_health_knows_neither_engine_nor_service() -> None:
    tree = ast.parse(Path(health.__file__).read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {module for module in modules if (module or "").startswith("frontend")}


@pytest.mark.parametrize("name", ["", "switchyard.v1.InferenceService", "liveness"])
def test_names_that_orchestrators_ask_stay(name: str) -> None:
    assert name in ALL
