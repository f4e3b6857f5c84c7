"""The block pool against a model that keeps every block's tokens."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from frontend.prefixes import PrefixBlock
from frontend.scheduler.kv_blocks import BlockPool, extend_prefixes

NUM_BLOCKS = 8
BLOCK_SIZE = 2


def _prefixes(tokens: list[int]) -> list[PrefixBlock]:
    prefixes: list[PrefixBlock] = []
    extend_prefixes(prefixes, tokens, len(tokens) // BLOCK_SIZE, BLOCK_SIZE)
    return prefixes


@dataclasses.dataclass
class _Holder:
    tokens: list[int]
    blocks: list[int]
    num_published: int


class PoolMachine(RuleBasedStateMachine):
    """Sequences come, publish block by block and go, over few distinct tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)
        self.holders: list[_Holder] = []
        # Tokens, from the sequence's first, that a published block stands for.
        self.content: dict[int, tuple[int, ...]] = {}

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def begin(self, tokens: list[int]) -> None:
        prefixes = _prefixes(tokens)[: (len(tokens) - 1) // BLOCK_SIZE]
        matched = self.pool.match(prefixes)
        for place, block in enumerate(matched):
            prefix = tuple(tokens[: (place + 1) * BLOCK_SIZE])
            assert self.content[block] == prefix, "a hit has another prefix"
        wanted = -(-len(tokens) // self.pool.block_size) - len(matched)
        if wanted > self.pool.num_free - self.pool.num_idle(matched):
            return
        held = {block for holder in self.holders for block in holder.blocks}
        self.pool.acquire(matched)
        fresh = self.pool.allocate(wanted)
        assert not held & set(fresh), "a block has two owners"
        assert not set(matched) & set(fresh)
        for block in fresh:
            self.content.pop(block, None)
        self.holders.append(_Holder(tokens, matched + fresh, len(matched)))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        prefixes = _prefixes(holder.tokens)
        if holder.num_published == len(prefixes):
            return
        place = holder.num_published
        prefix = tuple(holder.tokens[: (place + 1) * BLOCK_SIZE])
        self.pool.publish(holder.blocks[place], prefixes[place])
        if prefix not in self.content.values():
            self.content[holder.blocks[place]] = prefix
        holder.num_published += 1

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.holders) - 1))
        self.pool.free(self.holders.pop(index).blocks)

    @invariant()
    def free_blocks_are_those_without_a_holder(self) -> None:
        held = Counter(block for holder in self.holders for block in holder.blocks)
        assert self.pool.num_free == NUM_BLOCKS - len(held)
        assert self.pool.num_idle(list(range(NUM_BLOCKS))) == self.pool.num_free

    @invariant()
    def published_content_is_found(self) -> None:
        """A block is found under its own content when its parents are still there."""
        for block, prefix in self.content.items():
            parents = [prefix[:end] for end in range(BLOCK_SIZE, len(prefix), BLOCK_SIZE)]
            if all(parent in self.content.values() for parent in parents):
                assert self.pool.match(_prefixes(list(prefix)))[-1] == block

    def teardown(self) -> None:
        for holder in self.holders:
            self.pool.free(holder.blocks)
        assert self.pool.num_free == NUM_BLOCKS
        assert sorted(self.pool.allocate(NUM_BLOCKS)) == list(range(NUM_BLOCKS))


TestPool = pytest.mark.slow(PoolMachine.TestCase)


def test_a_digest_names_the_whole_prefix() -> None:
    first, second = _prefixes([1, 2, 3, 4])
    assert second.digest != _prefixes([5, 6, 3, 4])[1].digest
    assert [first] == _prefixes([1, 2, 9])
    assert first.digest != _prefixes([2, 1])[0].digest
    assert len(first.digest) == 16
    assert (first.parent, second.parent) == (b"", first.digest)
    assert list(second.token_ids) == [3, 4]


def _published(pool: BlockPool, tokens: list[int]) -> list[int]:
    blocks = pool.allocate(len(tokens) // BLOCK_SIZE)
    for block, prefix in zip(blocks, _prefixes(tokens), strict=True):
        pool.publish(block, prefix)
    return blocks


def test_uncached_blocks_go_first_then_the_least_recently_used_and_a_prefix_s_tail_first() -> None:
    pool = BlockPool(5, BLOCK_SIZE)
    older, newer = _published(pool, [1, 1, 2, 2]), _published(pool, [3, 3, 4, 4])
    pool.free(older)
    pool.free(newer)
    [unused] = pool.allocate(1)
    assert unused not in older + newer
    assert pool.allocate(3) == [older[1], older[0], newer[1]]
    assert pool.match(_prefixes([1, 1, 2, 2])) == []
    assert pool.match(_prefixes([3, 3, 4, 4])) == newer[:1]


def test_use_makes_a_prefix_recent() -> None:
    pool = BlockPool(2, BLOCK_SIZE)
    first, second = _published(pool, [1, 1]), _published(pool, [2, 2])
    pool.free(first)
    pool.free(second)
    pool.acquire(first)
    pool.free(first)
    assert pool.allocate(1) == second


def test_of_equal_blocks_the_first_one_stays() -> None:
    pool = BlockPool(2, BLOCK_SIZE)
    first, second = _published(pool, [1, 1]), _published(pool, [1, 1])
    assert pool.match(_prefixes([1, 1])) == first
    pool.free(second)
    pool.free(first)
    assert pool.allocate(1) == second, "the copy has no content worth keeping"


def test_misuse_is_caught() -> None:
    pool = BlockPool(2, BLOCK_SIZE)
    blocks = pool.allocate(1)
    with pytest.raises(AssertionError, match="2 blocks wanted, 1 free"):
        pool.allocate(2)
    pool.free(blocks)
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free(blocks)
    with pytest.raises(AssertionError, match="nobody holds"):
        pool.publish(blocks[0], _prefixes([1, 1])[0])
