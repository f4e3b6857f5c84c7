"""KV events as routers read them, over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2_grpc

from frontend.api.grpc.server import GrpcServer
from frontend.api.vllm.servicer import vllm_engine
from frontend.engine.kv_events import KvEvents
from frontend.scheduler.kv_blocks import BlockPool
from frontend.scheduler.prefix_log import PrefixLog
from frontend.service.service import Service
from tests.frontend.fakes import MODEL, FakeEngine, backend
from tests.frontend.scheduler.test_prefix_log import BLOCK_SIZE, published
from tests.waiting import HANG_SECONDS


class Router:
    """A router's stub, and the pool that it is told of."""

    def __init__(self, stub: Any, service: Service, pool: BlockPool, log: PrefixLog) -> None:
        self.service, self.pool, self.log = service, pool, log
        self._stub = stub

    def subscribe(self, start: int = 0) -> Any:
        request = common_pb2.SubscribeKvEventsRequest(start_sequence_number=start)
        return self._stub.SubscribeKvEvents(request, timeout=HANG_SECONDS)

    async def refusal(self, start: int = 0) -> grpc.StatusCode:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.subscribe(start).read()
        return caught.value.code()


@contextlib.asynccontextmanager
async def routing(
    folder: Path, *, prefix_cache: bool = True, may_read: bool = True
) -> AsyncIterator[Router]:
    log, pool = PrefixLog(), BlockPool(16, BLOCK_SIZE)
    log.attach([pool])
    service = Service(model=MODEL, version="1.2.3", may_read_kv_events=lambda _: may_read)
    readers = KvEvents(log) if prefix_cache else None
    service.open(backend(FakeEngine(), kv_events=readers))
    server = GrpcServer(service, "127.0.0.1", 0, others=[vllm_engine(service, folder)])
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Router(vllm_engine_pb2_grpc.VllmEngineStub(channel), service, pool, log)
    finally:
        await server.stop(0.0)


async def test_a_router_learns_what_is_stored_removed_and_cleared(tmp_path: Path) -> None:
    async with routing(tmp_path) as router:
        blocks = published(router.pool, [1, 1, 2, 2])
        call = router.subscribe()
        snapshot = await call.read()
        cleared, stored = snapshot.events
        assert cleared.WhichOneof("data") == "cleared"
        assert [list(block.token_ids) for block in stored.stored.blocks] == [[1, 1], [2, 2]]
        assert {block.block_size for block in stored.stored.blocks} == {BLOCK_SIZE}
        assert not stored.stored.HasField("parent_block_hash")
        assert (snapshot.snapshot.count, snapshot.snapshot.blocks) == (1, 2)
        assert snapshot.snapshot.unknown_before == 0

        published(router.pool, [1, 1, 2, 2, 3, 3])
        change = await call.read()
        assert change.sequence_number == snapshot.sequence_number + 1
        assert not change.HasField("snapshot")
        assert not change.HasField("dp_rank")
        [event] = change.events
        first, second = (block.block_hash for block in stored.stored.blocks)
        assert event.stored.parent_block_hash == second
        assert [list(block.token_ids) for block in event.stored.blocks] == [[3, 3]]

        router.pool.free(blocks)
        router.pool.allocate(router.pool.num_free)
        [event] = (await call.read()).events
        assert list(event.removed.block_hashes) == [second, first]

        router.log.attach([BlockPool(4, BLOCK_SIZE)])
        [event] = (await call.read()).events
        assert event.WhichOneof("data") == "cleared"


async def test_a_router_goes_on_or_is_told_to_begin_again(tmp_path: Path) -> None:
    async with routing(tmp_path) as router:
        call = router.subscribe()
        last = (await call.read()).sequence_number
        call.cancel()
        published(router.pool, [1, 1])
        await asyncio.sleep(0)
        assert (await router.subscribe(last).read()).sequence_number == last + 1
        assert await router.refusal(start=last - 1) is grpc.StatusCode.OUT_OF_RANGE


async def test_a_drain_ends_the_stream(tmp_path: Path) -> None:
    async with routing(tmp_path) as router:
        call = router.subscribe()
        await call.read()
        router.service.drain()
        assert await call.read() is grpc.aio.EOF
        assert await router.refusal() is grpc.StatusCode.UNAVAILABLE


async def test_not_everybody_may_know_what_others_asked(tmp_path: Path) -> None:
    async with routing(tmp_path, may_read=False) as router:
        assert await router.refusal() is grpc.StatusCode.PERMISSION_DENIED


async def test_without_a_prefix_cache_there_are_no_events(tmp_path: Path) -> None:
    """Routers take UNIMPLEMENTED for never, and poll the load alone."""
    async with routing(tmp_path, prefix_cache=False) as router:
        assert await router.refusal() is grpc.StatusCode.UNIMPLEMENTED
