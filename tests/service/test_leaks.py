"""After 2,000 mixed requests everything is back where it was: blocks, slots, tasks, descriptors."""

import asyncio
import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from demo import CHECKPOINT
from frontend.api.grpc.server import GrpcServer
from frontend.backend import Backend
from frontend.config import FrontendConfig
from frontend.engine.engine import Engine
from frontend.link.reconnect import limits_of
from frontend.link.worker_group import WorkerGroup
from frontend.model_folder import read_sampling_defaults
from frontend.processing.tokenizer import Tokenizer
from frontend.scheduler.scheduler import Scheduler
from frontend.service.service import Service
from switchyard.client import AsyncClient, ServerError

pytestmark = pytest.mark.processes

NUM_REQUESTS = 2000
CONCURRENCY = 48
MAX_QUEUED = 30  # with 16 slots small enough that some requests are refused
FLAGS = ("--device", "cpu", "--max-batch-size", "16", "--num-blocks", "40")
RETRY_SECONDS = 0.1


@contextlib.asynccontextmanager
async def service(folder: Path) -> AsyncIterator[tuple[str, Scheduler, int]]:
    """The frontend in this process, so that it can be looked into, on a real worker process."""
    listen = f"unix:{folder}/rank-{{rank}}.sock"
    workers = subprocess.Popen(
        [sys.executable, "-m", "workers", "--model", str(CHECKPOINT), "--listen", listen, *FLAGS]
    )
    try:
        group = await WorkerGroup.connect([listen], startup_timeout=60)
        config = FrontendConfig(
            model=CHECKPOINT,
            served_name="demo",
            workers=(listen,),
            max_queued_requests=MAX_QUEUED,
        )
        scheduler = Scheduler(limits_of(group.info, config))
        engine = Engine(scheduler, group)
        app = Service(model="demo", version="test")
        server = GrpcServer(app, "127.0.0.1", 0)
        port = await server.start()
        app.open(
            Backend(
                engine=engine,
                tokenizer=Tokenizer.load(CHECKPOINT),
                info=group.info,
                defaults=read_sampling_defaults(CHECKPOINT),
                max_queued_requests=MAX_QUEUED,
            )
        )
        running = asyncio.create_task(engine.run())
        yield f"127.0.0.1:{port}", scheduler, workers.pid
        running.cancel()
        await server.stop(0)
        await group.close()
    finally:
        workers.send_signal(signal.SIGTERM)
        workers.wait(timeout=30)


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


async def one_request(client: AsyncClient, draw: random.Random) -> str:
    """One request of a random kind; how it ended."""
    kind = draw.choice(["finish", "finish", "cancel", "expire", "refuse", "abort"])
    prompt = [draw.randrange(3, 1000) for _ in range(draw.randint(1, 60))]
    options = {
        "max_new_tokens": draw.choice([1, 4, 12, 64]),
        "ignore_eos": True,
        "temperature": 1.0,
    }
    if kind == "refuse":
        options["top_p"] = 2.0
    if kind == "abort":
        options["request_id"] = f"abort-{draw.getrandbits(60)}"
    timeout = draw.uniform(0.001, 0.05) if kind == "expire" else None
    try:
        async with client.generate(prompt, timeout=timeout, **options) as stream:
            async for _ in stream:
                if kind == "cancel":
                    return "cancelled"
                if kind == "abort":
                    await client.abort(str(options["request_id"]))
        return "finished"
    except ServerError as error:
        if error.retry_after is not None:
            await asyncio.sleep(RETRY_SECONDS)
        return error.code.name


async def settled(scheduler: Scheduler) -> None:
    """Wait until nothing runs and steps in flight have returned."""
    async with asyncio.timeout(30):
        while scheduler.running_requests or scheduler.queued_requests:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    gc.collect()


@pytest.mark.timeout(240)
async def test_nothing_leaks(tmp_path: Path) -> None:
    ended: dict[str, int] = {}
    async with service(tmp_path) as (address, scheduler, launcher):
        (group,) = children(launcher)
        (rank,) = children(group)
        async with AsyncClient(address) as client:
            draw = random.Random(0)
            gate = asyncio.Semaphore(CONCURRENCY)

            async def one(seed: int) -> None:
                async with gate:
                    how = await one_request(client, random.Random(seed))
                    ended[how] = ended.get(how, 0) + 1

            # A first round makes connections, threads and caches that stay.
            await asyncio.gather(*(one(draw.getrandbits(32)) for _ in range(200)))
            await settled(scheduler)
            before = len(asyncio.all_tasks()), open_files(os.getpid()), open_files(rank)
            ended.clear()
            await asyncio.gather(*(one(draw.getrandbits(32)) for _ in range(NUM_REQUESTS)))
            await settled(scheduler)
            after = len(asyncio.all_tasks()), open_files(os.getpid()), open_files(rank)
    assert sum(ended.values()) == NUM_REQUESTS
    names = {"finished", "cancelled", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
    assert set(ended) == names, ended
    assert ended["finished"] > NUM_REQUESTS / 4, ended
    assert (scheduler.running_requests, scheduler.queued_requests) == (0, 0)
    assert scheduler.kv_cache_usage == 0
    assert scheduler.preemptions > 0, "the cache was not small enough to test anything"
    for replica in scheduler._replicas:
        assert len(replica._free_slots) == 16
        assert replica.pool.num_free == replica.pool.size
    assert after == before
