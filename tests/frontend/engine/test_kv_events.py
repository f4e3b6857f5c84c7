"""Readers of KV events: each gets all changes, or is told that it did not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from frontend.bounds import MAX_KV_EVENT_READERS
from frontend.engine.kv_events import KvEvents
from frontend.errors import Code, RequestError
from frontend.prefixes import CacheBatch, Cleared
from frontend.scheduler.kv_blocks import BlockPool
from frontend.scheduler.prefix_log import PrefixLog
from tests.frontend.scheduler.test_prefix_log import BLOCK_SIZE, Replayed, published
from tests.waiting import HANG_SECONDS


class Cache:
    """A pool, its log and the log's readers."""

    def __init__(self, history_blocks: int = 1000) -> None:
        self.log = PrefixLog(history_blocks)
        self.pool = BlockPool(1000, BLOCK_SIZE)
        self.log.attach([self.pool])
        self.events = KvEvents(self.log)
        self._num_published = 0

    async def publish(self, count: int = 1) -> None:
        """New blocks, each a batch of its own."""
        for _ in range(count):
            self._num_published += 1
            published(self.pool, [self._num_published] * BLOCK_SIZE)
            await asyncio.sleep(0)

    @contextlib.asynccontextmanager
    async def reading(self, after: int = 0) -> AsyncIterator[AsyncIterator[CacheBatch]]:
        async with asyncio.timeout(HANG_SECONDS):
            async with contextlib.aclosing(self.events.read(after)) as stream:
                yield stream


@pytest.fixture
async def cache() -> Cache:
    return Cache()


async def code_of(stream: AsyncIterator[CacheBatch]) -> Code:
    with pytest.raises(RequestError) as caught:
        await anext(stream)
    return caught.value.code


async def test_a_reader_gets_what_is_there_and_then_what_comes(cache: Cache) -> None:
    await cache.publish(3)
    assert not cache.log.recording
    reader = Replayed()
    async with cache.reading() as stream:
        reader.take(await anext(stream))
        assert len(reader.blocks) == 3
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        assert not waiting.done()
        await cache.publish(2)
        reader.take(await waiting)
        reader.take(await anext(stream))
    assert len(reader.blocks) == 5


async def test_changes_of_one_turn_are_one_batch(cache: Cache) -> None:
    async with cache.reading() as stream:
        await anext(stream)
        for token in (1, 2, 3):
            published(cache.pool, [token, token])
        batch = await anext(stream)
    assert len(batch.events) == 3


async def test_a_reader_that_comes_back_goes_on(cache: Cache) -> None:
    async with cache.reading() as stream:
        last = (await anext(stream)).number
    await cache.publish(2)
    async with cache.reading(last) as stream:
        numbers = [(await anext(stream)).number for _ in range(2)]
    assert numbers == [last + 1, last + 2]


async def test_the_log_ends_once_nobody_could_go_on() -> None:
    cache = Cache(history_blocks=4)
    async with cache.reading() as stream:
        last = (await anext(stream)).number
    await cache.publish(4)
    assert cache.log.recording
    await cache.publish(1)
    assert not cache.log.recording
    async with cache.reading(last) as stream:
        assert await code_of(stream) is Code.OUT_OF_RANGE
    async with cache.reading() as stream:
        assert len((await anext(stream)).events) == 6, "all five, after the clearing"


async def test_a_slow_reader_is_told_and_holds_nobody_up() -> None:
    cache = Cache(history_blocks=4)
    async with cache.reading() as slow, cache.reading() as quick:
        await anext(slow)
        await anext(quick)
        for _ in range(5):
            await cache.publish()
            await anext(quick)
        assert await code_of(slow) is Code.DATA_LOSS
        await cache.publish()
        assert (await anext(quick)).number == cache.log.number


async def test_another_process_s_number_is_refused(cache: Cache) -> None:
    for number in (1, cache.log.number - 1, cache.log.number + 1):
        async with cache.reading(number) as stream:
            assert await code_of(stream) is Code.OUT_OF_RANGE


async def test_lost_workers_clear_the_cache(cache: Cache) -> None:
    async with cache.reading() as stream:
        await anext(stream)
        await cache.publish()
        cache.log.attach([BlockPool(8, BLOCK_SIZE)])
        await anext(stream)
        assert (await anext(stream)).events == [Cleared()]


async def test_readers_are_bounded_and_end_with_the_service(cache: Cache) -> None:
    async with contextlib.AsyncExitStack() as stack:
        streams = []
        for _ in range(MAX_KV_EVENT_READERS):
            streams.append(await stack.enter_async_context(cache.reading()))
            await anext(streams[-1])
        async with cache.reading() as stream:
            assert await code_of(stream) is Code.RESOURCE_EXHAUSTED
        waiting = [asyncio.ensure_future(anext(each, None)) for each in streams]
        await asyncio.sleep(0)
        cache.events.close()
        assert await asyncio.gather(*waiting) == [None] * MAX_KV_EVENT_READERS
