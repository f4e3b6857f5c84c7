"""How much of a prefix is still in the cache, over all groups of layers.

Knows pools and windows; nothing of sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

from frontend.cache_groups import CacheGroups
from frontend.prefixes import PrefixBlock
from frontend.scheduler.kv_blocks import FREED, BlockPool

Matched = list[list[int]]
"""For each group as many blocks, in order: FREED before those that the next query sees."""


def no_match(groups: CacheGroups) -> Matched:
    """A prefix of no blocks."""
    return [[] for _ in groups.windows]


def longest_match(pool: BlockPool, groups: CacheGroups, prefixes: Sequence[PrefixBlock]) -> Matched:
    """The longest leading part of ``prefixes`` behind which a sequence can go on; adds no holder.

    That takes all of its blocks in groups without a window, and in each of the others those that
    the first query behind it sees.
    """
    num_full = groups.windows.count(0)
    windowed = range(num_full, len(groups.windows))
    full = [pool.match(prefixes, group) for group in range(num_full)]
    length = min(map(len, full), default=len(prefixes))
    before = -1
    while before != length:
        before = length
        for group in windowed:
            length = _shortened(pool, groups, group, prefixes, length)
    found = [blocks[:length] for blocks in full]
    for group in windowed:
        first = groups.first_seen(group, length * groups.block_size)
        found.append([FREED] * first + pool.match(prefixes[first:length], group))
    return found


def _shortened(
    pool: BlockPool,
    groups: CacheGroups,
    group: int,
    prefixes: Sequence[PrefixBlock],
    length: int,
) -> int:
    """The longest part of at most ``length`` blocks of which a group with a window has its share:
    what a missing block ends, every longer part within reach of it lacks too."""
    while True:
        first = groups.first_seen(group, length * groups.block_size)
        missing = pool.last_missing(prefixes, group, first, length)
        if missing is None:
            return length
        length = missing
