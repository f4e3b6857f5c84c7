"""After many mixed requests everything is back where it was: blocks, slots, tasks, descriptors, a
GPU's memory."""

import asyncio
import contextlib
import gc
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

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
from tests.processes import open_files
from tests.service.test_families import config_of
from tests.waiting import HANG_SECONDS, steady, until
from tests.workers.families.draw_parts import VOCAB
from tests.workers.families.draws import save_family
from tests.workers.launched import launched

pytestmark = pytest.mark.processes

NUM_REQUESTS = 200
CONCURRENCY = 48
MAX_QUEUED = 30  # with 16 slots small enough that some requests are refused
FLAGS = ("--max-batch-size", "16", "--num-blocks", "20")
CUDA = ("--device", "cuda")
ON_GPUS = {
    "bf16": CUDA,
    "fp8": (*CUDA, "--quantization", "fp8", "--kv-cache-dtype", "fp8_e4m3"),
    "int4": (*CUDA, "--quantization", "int4"),
}


@contextlib.asynccontextmanager
async def service(
    folder: Path, model: Path, *flags: str
) -> AsyncIterator[tuple[str, Scheduler, int]]:
    """The frontend in this process, so that it can be looked into, on a real worker process."""
    with launched(folder, *FLAGS, *flags, model=model) as workers:
        group = await WorkerGroup.connect([workers.listen], startup_timeout=HANG_SECONDS)
        config = FrontendConfig(
            model=model,
            served_name="demo",
            workers=(workers.listen,),
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
                tokenizer=Tokenizer.load(model),
                info=group.info,
                defaults=read_sampling_defaults(model),
                max_queued_requests=MAX_QUEUED,
            )
        )
        running = asyncio.create_task(engine.run())
        yield f"127.0.0.1:{port}", scheduler, workers.ranks()[0]
        running.cancel()
        await server.stop(0)
        await group.close()


def held(rank: int, *, on_gpu: bool) -> tuple[int, ...]:
    """Tasks of this process, descriptors of it and of the rank, bytes of the GPU."""
    gc.collect()
    files = (len(list(open_files(pid))) for pid in (os.getpid(), rank))
    return len(asyncio.all_tasks()), *files, torch.cuda.mem_get_info()[0] if on_gpu else 0


async def one_request(
    client: AsyncClient, scheduler: Scheduler, draw: random.Random, longest: int
) -> str:
    """One request of a random kind; how it ended. One that is refused leaves time for others."""
    kind = draw.choice(["finish", "finish", "cancel", "expire", "refuse", "abort"])
    prompt = [draw.randrange(3, VOCAB) for _ in range(draw.randint(1, longest))]
    if draw.random() < 0.3:  # some find the prefixes of others
        common = [each % VOCAB for each in range(longest * 2 // 3)]
        prompt[: len(common)] = common[: len(prompt)]
    options = {
        "skip_detokenize": True,
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
            await until(lambda: scheduler.queued_requests < MAX_QUEUED // 2)
        return error.code.name


async def settled(scheduler: Scheduler, rank: int, *, on_gpu: bool) -> tuple[int, ...]:
    """What is held once nothing runs and steps in flight have returned."""
    await until(lambda: not (scheduler.running_requests or scheduler.queued_requests))
    return await steady(lambda: held(rank, on_gpu=on_gpu))


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("flags", "has_states"),
    [
        pytest.param((), False, id="cpu"),
        pytest.param(("--kept-states", "6"), True, id="cpu-states"),
        *(
            pytest.param(each, False, id=name, marks=pytest.mark.gpu)
            for name, each in ON_GPUS.items()
        ),
        pytest.param((*CUDA, "--kept-states", "6"), True, id="states", marks=pytest.mark.gpu),
    ],
)
async def test_nothing_leaks(flags: tuple[str, ...], has_states: bool, tmp_path: Path) -> None:
    """Of a model whose layers keep states these too."""
    ended: dict[str, int] = {}
    on_gpu = "cuda" in flags
    model, longest = CHECKPOINT, 60
    if has_states:
        model, longest = tmp_path / "model", 120
        save_family(config_of("qwen3_next", ""), model)
    async with (
        service(tmp_path, model, *flags) as (address, scheduler, rank),
        AsyncClient(address) as client,
    ):
        draw = random.Random(0)
        gate = asyncio.Semaphore(CONCURRENCY)

        async def one(seed: int) -> None:
            async with gate:
                how = await one_request(client, scheduler, random.Random(seed), longest)
                ended[how] = ended.get(how, 0) + 1

        # A first round makes connections, threads and caches that stay.
        await asyncio.gather(*(one(draw.getrandbits(32)) for _ in range(100)))
        before = await settled(scheduler, rank, on_gpu=on_gpu)
        ended.clear()
        await asyncio.gather(*(one(draw.getrandbits(32)) for _ in range(NUM_REQUESTS)))
        after = await settled(scheduler, rank, on_gpu=on_gpu)
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
        assert (replica.states is not None) == has_states
        if replica.states is not None:
            assert replica.states.num_free == 6
            assert 0 < scheduler.kept_states <= 6
            assert scheduler.prefix_hit_tokens > 0
    assert after == before
