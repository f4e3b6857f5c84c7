"""How late tokens reach their clients when one core serves many streams.

The whole frontend runs on one core: real gRPC, real scheduler, engine and detokenizer, over workers
that are made up and answer every --step-ms. Clients run on another core. A token's delay is the
time from the step's answer to its arrival in the client's process, to half a millisecond.

    python -m benchmarks.delivery [--streams 512] [--step-ms 20] [--seconds 10] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import json
import multiprocessing
import os
import random
import statistics
import time
from collections import deque
from collections.abc import Collection
from multiprocessing.connection import Connection

import grpc.aio
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.scheduler import VOCAB_SIZE, make_pieces
from frontend import interpreter
from frontend.api.grpc.server import GrpcServer
from frontend.backend import Backend
from frontend.engine.engine import Engine
from frontend.link.group_check import group_info
from frontend.model_folder import SamplingDefaults
from frontend.processing.text_decoders import ByteDecoder
from frontend.processing.tool_calls.format import NO_FORMAT
from frontend.requests.request import TextDecoder
from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.scheduler import Scheduler
from frontend.scheduler.step import Drawn, Step, StepResults, StepStats
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from switchyard.worker.v1 import worker_pb2

TICKS_PER_SECOND = 2000
GENERATE = "/switchyard.v1.InferenceService/Generate"
GOAL_MS = 50.0


def tick() -> int:
    """The time as a token id."""
    return int(time.monotonic() * TICKS_PER_SECOND) % VOCAB_SIZE


class TimedGroup:
    """Workers whose every token is the time it was drawn at."""

    def __init__(self, step_seconds: float) -> None:
        self.lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._step_seconds = step_seconds
        self._next = 0.0
        self._steps: deque[Step] = deque()

    def lose(self, cause: str) -> None:
        self.lost.set_result(ConnectionError(cause))

    async def send(self, step: Step) -> None:
        self._steps.append(step)

    async def receive(self) -> StepResults:
        self._next = max(self._next + self._step_seconds, time.monotonic())
        await asyncio.sleep(self._next - time.monotonic())
        step = self._steps.popleft()
        drawn = [Drawn(tokens=[tick()] * batch.num_draws) for batch in step.batches]
        return StepResults(drawn, StepStats(device_seconds=self._step_seconds))


class MadeUpTokenizer:
    """Decodes; nothing here encodes."""

    has_chat_template = False
    library_tokenizer = None
    eos_token_id = None
    thought_tags = None
    tool_format = NO_FORMAT

    def __init__(self) -> None:
        self._pieces = make_pieces(random.Random(0))

    def decoder(
        self,
        stops: tuple[str, ...],
        include_stop: bool,
        keep_special: bool,
        min_tokens: int = 0,
        kept: Collection[str] = (),
    ) -> TextDecoder:
        return ByteDecoder(self._pieces)


def made_up_service(streams: int, step_seconds: float) -> tuple[Service, Engine]:
    """A service over workers that answer every so many seconds; run the engine to serve."""
    limits = SchedulerLimits(
        max_batch_size=streams,
        max_num_batched_tokens=max(8192, streams),
        max_model_len=65536,
        block_size=16,
        num_blocks=streams * 1024,
        max_queued_requests=streams,
        max_queued_tokens=streams * 65536,
    )
    service = Service(model="made-up", version="0")
    engine = Engine(Scheduler(limits), TimedGroup(step_seconds))
    info = worker_pb2.DescribeResponse(
        vocab_size=VOCAB_SIZE,
        max_model_len=limits.max_model_len,
        num_blocks=limits.num_blocks,
        group_windows=limits.windows,
        block_size=limits.block_size,
        data_parallel_size=1,
        max_batch_size=streams,
    )
    service.open(
        Backend(
            engine=engine,
            tokenizer=MadeUpTokenizer(),  # type: ignore[arg-type]
            info=group_info(info),
            defaults=SamplingDefaults(),
            max_queued_requests=1024,
        )
    )
    return service, engine


async def _serve(pipe: Connection, streams: int, step_seconds: float) -> None:
    service, engine = made_up_service(streams, step_seconds)
    server = GrpcServer(service, "127.0.0.1", 0)
    running = asyncio.create_task(engine.run())
    interpreter.settle()
    pipe.send(await server.start())
    await asyncio.to_thread(pipe.recv)
    before = time.process_time()
    await asyncio.to_thread(pipe.recv)
    pipe.send(time.process_time() - before)
    running.cancel()
    await server.stop(0)


def serve(pipe: Connection, streams: int, step_seconds: float) -> None:
    """The server's process, on the first core it may use."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    uvloop.run(_serve(pipe, streams, step_seconds))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Delays of tokens in milliseconds; what the server's core did a second."""

    streams: int
    tokens_per_second: float
    messages_per_second: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_share: float


async def _read(
    channel: grpc.aio.Channel, request: bytes, arrivals: list[tuple[int, bytes]]
) -> None:
    """Keep what comes, and when, until the call is cancelled; it is parsed later."""
    call = channel.unary_stream(GENERATE)(request)
    try:
        async for message in call:
            arrivals.append((tick(), message))
    finally:
        call.cancel()


async def _clients(pipe: Connection, port: int, streams: int, seconds: float) -> Result:
    request = pb.GenerateRequest()
    request.prompt.tokens.ids.extend([1, 2, 3])
    request.stop_conditions.max_new_tokens = 60000
    arrivals: list[tuple[int, bytes]] = []
    gc.disable()  # the clients' pauses are not the server's
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        message = request.SerializeToString()
        readers = [asyncio.create_task(_read(channel, message, arrivals)) for _ in range(streams)]
        await asyncio.sleep(3)
        arrivals.clear()
        pipe.send(None)
        begun = time.monotonic()
        await asyncio.sleep(seconds)
        pipe.send(None)
        elapsed = time.monotonic() - begun
        measured = list(arrivals)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    cpu_seconds = await asyncio.to_thread(pipe.recv)
    delays = sorted(
        (arrived - token) % VOCAB_SIZE * 1000 / TICKS_PER_SECOND
        for arrived, message in measured
        for token in pb.GenerateResponse.FromString(message).delta.token_ids
    )
    return Result(
        streams=streams,
        tokens_per_second=len(delays) / elapsed,
        messages_per_second=len(measured) / elapsed,
        p50_ms=statistics.median(delays),
        p99_ms=delays[int(len(delays) * 0.99)],
        max_ms=delays[-1],
        cpu_share=cpu_seconds / elapsed,
    )


def measure(streams: int, step_seconds: float, seconds: float) -> Result:
    """One run: a server on one core, clients on another if there is one."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, streams, step_seconds), daemon=True)
    server.start()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    try:
        return uvloop.run(_clients(ours, ours.recv(), streams, seconds))
    finally:
        gc.enable()
        server.terminate()
        server.join()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    cores = os.sched_getaffinity(0)
    results = []
    for streams in flags.streams:
        os.sched_setaffinity(0, cores)
        results.append(measure(streams, flags.step_ms / 1000, flags.seconds))
    if flags.json:
        print(json.dumps([dataclasses.asdict(result) for result in results]))
        return
    table = Table(title=f"delivery, a token each {flags.step_ms:g} ms; goal p99 {GOAL_MS:g} ms")
    for field in dataclasses.fields(Result):
        table.add_column(field.name, justify="right")
    for result in results:
        table.add_row(*(f"{value:.4g}" for value in dataclasses.asdict(result).values()))
    Console().print(table)


if __name__ == "__main__":
    main()
