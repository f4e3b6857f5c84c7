"""The log of what can be found: whoever replays it has exactly what the pools have."""

from __future__ import annotations

import random

import pytest

from frontend.prefixes import CacheBatch, Cleared, PrefixBlock, Removed, Stored
from frontend.scheduler import prefix_log
from frontend.scheduler.kv_blocks import BlockPool, extend_prefixes
from frontend.scheduler.prefix_log import PrefixLog
from frontend.scheduler.scheduler import Scheduler
from tests.frontend.builders import Losing, random_limits, random_request, tight

BLOCK_SIZE = 2


class Replayed:
    """What a reader believes; batches that contradict it fail."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.blocks: dict[bytes, PrefixBlock] = {}

    def take(self, batch: CacheBatch) -> None:
        assert self.number in (0, batch.number - 1), "a batch is missing"
        self.number = batch.number
        for event in batch.events:
            match event:
                case Stored(blocks):
                    for parent, block in zip([None, *blocks], blocks, strict=False):
                        assert block.digest not in self.blocks, "stored twice"
                        assert parent is None or block.parent == parent.digest
                        self.blocks[block.digest] = block
                case Removed(digests):
                    for digest in digests:
                        del self.blocks[digest]
                case Cleared():
                    self.blocks.clear()

    def catch_up(self, log: PrefixLog) -> None:
        assert log.continues(self.number)
        while (batch := log.after(self.number)) is not None:
            self.take(batch)


def found(scheduler: Scheduler) -> dict[bytes, PrefixBlock]:
    """What the pools of all replicas have."""
    pools = [replica.pool for replica in scheduler._replicas]
    return {each.digest: each for pool in pools for each in pool.published()}


def of_snapshot(log: PrefixLog) -> Replayed:
    """A reader that begins now."""
    reader = Replayed()
    for batch in log.snapshot():
        reader.take(batch)
    assert reader.number == log.number
    return reader


class Readers:
    """They begin and read at random, and compare what they have with the pools."""

    def __init__(self, rng: random.Random, scheduler: Scheduler, log: PrefixLog) -> None:
        self._rng, self._scheduler, self._log = rng, scheduler, log
        self._all: list[Replayed] = []
        self.most_blocks = 0

    def some(self, share: float = 0.7) -> None:
        self._log.seal()
        if self._rng.random() < 0.3:
            self._all.append(of_snapshot(self._log))
        expected = found(self._scheduler)
        self.most_blocks = max(self.most_blocks, len(expected))
        for reader in self._all:
            if self._rng.random() < share:
                reader.catch_up(self._log)
                assert reader.blocks == expected


@pytest.mark.parametrize("seed", range(30))
def test_a_replay_has_exactly_what_the_pools_have(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over random requests, preemptions, aborts and losses of the workers."""
    rng = random.Random(seed)
    monkeypatch.setattr(prefix_log, "PART_BLOCKS", rng.choice([1, 3, 512]))
    limits = tight(random_limits(rng), rng)
    driver, log = Losing(limits), PrefixLog()
    driver.scheduler = Scheduler(limits, prefix_log=log)
    readers = Readers(rng, driver.scheduler, log)
    log.begin()

    def disturb() -> bool:
        if rng.random() < 0.1:
            driver.lose()
            for sequence in driver.scheduler._open.values():
                sequence.crashes = 0
        readers.some()
        return True

    driver.play(rng, [[random_request(rng, f"r{n}", limits)] for n in range(25)], disturb)
    readers.some(share=1.0)
    if limits.block_size < 16:  # larger ones may never be full between two losses
        assert (readers.most_blocks > 0) == limits.enable_prefix_cache


def published(pool: BlockPool, tokens: list[int]) -> list[int]:
    """Blocks that hold ``tokens``, and can be found."""
    prefixes: list[PrefixBlock] = []
    extend_prefixes(prefixes, tokens, len(tokens) // BLOCK_SIZE, BLOCK_SIZE)
    blocks = pool.allocate(len(prefixes))
    for block, prefix in zip(blocks, prefixes, strict=True):
        pool.publish(block, prefix)
    return blocks


def recorded(num_pools: int = 1, num_blocks: int = 4, **options: int) -> tuple[PrefixLog, ...]:
    pools = [BlockPool(num_blocks, BLOCK_SIZE) for _ in range(num_pools)]
    log = PrefixLog(**options)
    log.attach(pools)
    log.begin()
    return log, *pools  # type: ignore[return-value]


def test_replicas_are_one_cache() -> None:
    log, one, other = recorded(num_pools=2)
    for pool in (one, other):
        pool.free(published(pool, [1, 1]))
    log.seal()
    first = log.number
    [stored] = log.after(first - 1).events
    one.allocate(4)
    log.seal()
    assert log.number == first, "the other replica has it still"
    other.allocate(4)
    log.seal()
    assert log.after(first).events == [Removed([stored.blocks[0].digest])]


def test_a_line_of_blocks_is_one_event() -> None:
    log, pool = recorded()
    before = log.number
    published(pool, [1, 1, 2, 2, 3, 3])
    log.seal()
    [stored] = log.after(before).events
    assert [list(block.token_ids) for block in stored.blocks] == [[1, 1], [2, 2], [3, 3]]


def test_a_snapshot_has_parents_first_and_is_of_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_log, "PART_BLOCKS", 2)
    log, pool = recorded(num_blocks=8)
    published(pool, [1, 1, 2, 2, 3, 3])
    published(pool, [4, 4])
    parts = log.snapshot()
    published(pool, [5, 5])
    batches = list(parts)
    assert [(each.part.index, each.part.count, each.part.num_blocks) for each in batches] == [
        (0, 2, 4),
        (1, 2, 4),
    ]
    assert isinstance(batches[0].events[0], Cleared)
    order = [
        block for each in batches for event in each.events if isinstance(event, Stored)
        for block in event.blocks
    ]  # fmt: skip
    place = {block.digest: index for index, block in enumerate(order)}
    assert len(order) == 4
    assert all(place[block.parent] < place[block.digest] for block in order if block.parent)


def test_an_empty_cache_s_snapshot_is_one_part() -> None:
    log, _ = recorded()
    [batch] = log.snapshot()
    assert (batch.number, batch.events) == (log.number, [Cleared()])


def test_a_part_s_number_is_no_place_to_resume_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_log, "PART_BLOCKS", 1)
    log, pool = recorded()
    for token in range(3):
        published(pool, [token, token])
        log.seal()
    first, *_, last = log.snapshot()
    assert log.continues(first.number)
    assert not log.can_resume(first.number)
    assert log.can_resume(last.number)


def test_the_history_is_bounded_and_numbers_of_others_are_unknown() -> None:
    log, pool = recorded(num_blocks=8, history_blocks=3)
    begin = log.number
    for token in range(5):
        published(pool, [token, token])
        log.seal()
    assert log.number == begin + 5
    assert len(log._history) == 3
    assert [log.continues(begin + n) for n in range(7)] == [False] * 2 + [True] * 4 + [False]
    assert not PrefixLog().continues(log.number), "another process's"
    newest = log.number
    log.end()
    log.begin()
    assert not log.continues(newest), "who comes back later has missed what was not recorded"


def test_nothing_is_recorded_until_asked_for() -> None:
    log, pool = recorded()
    log.end()
    called: list[int] = []
    log.on_change = lambda: called.append(1)
    published(pool, [1, 1])
    log.seal()
    assert (pool.observer, called, log._history) == (None, [], {})
    log.begin()
    assert len(of_snapshot(log).blocks) == 1, "what was there before is known all the same"
