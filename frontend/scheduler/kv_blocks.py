"""KV blocks of one replica: which are in use, and which prefixes they contain.

Owns reference counts, the free blocks and the index of published prefixes, one for each group of
layers. Knows block ids and digests only: nothing of sequences, slots, steps or windows.

A block is in exactly one of three states: held (one or more holders), free with a published
prefix (may be found again, reused least recently used first), or free without.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from frontend.prefixes import TOKEN_TYPE, PrefixBlock

DIGEST_BYTES = 16
ROOT = b""
"""Parent of a sequence's first block."""

FREED = -1
"""Stands in a sequence's list for a block behind a window, which it holds no more."""


def extend_prefixes(
    prefixes: list[PrefixBlock], token_ids: Sequence[int], num_blocks: int, block_size: int
) -> None:
    """Append to ``prefixes`` the next full blocks of ``token_ids``, up to ``num_blocks``."""
    parent = prefixes[-1].digest if prefixes else ROOT
    for start in range(len(prefixes) * block_size, num_blocks * block_size, block_size):
        tokens = array(TOKEN_TYPE, token_ids[start : start + block_size]).tobytes()
        digest = hashlib.blake2b(parent + tokens, digest_size=DIGEST_BYTES).digest()
        prefixes.append(PrefixBlock(digest, parent, tokens))
        parent = digest


class PoolObserver(Protocol):
    """Is told what can be found in a pool, of the first group of layers."""

    def stored(self, prefix: PrefixBlock) -> None:
        """It can be found from now on."""
        ...

    def removed(self, prefix: PrefixBlock) -> None:
        """It cannot be found any more."""
        ...


class BlockPool:
    """Hands out block ids 0 to ``num_blocks - 1``, each holding ``block_size`` tokens.

    ``allocate`` and ``acquire`` add a holder to blocks, ``free`` removes one. A block without
    holders keeps its published prefix until the block is needed for something else.

    Attributes:
        observer: None: nobody asks.
    """

    __slots__ = (
        "_block_of",
        "_cached",
        "_group_of",
        "_holders",
        "_prefix_of",
        "_unused",
        "block_size",
        "observer",
        "size",
    )

    def __init__(self, num_blocks: int, block_size: int, num_groups: int = 1) -> None:
        self.size = num_blocks
        self.block_size = block_size
        self._holders = [0] * num_blocks
        self._prefix_of: list[PrefixBlock | None] = [None] * num_blocks
        # Of a published block, its group; and the blocks of each group by digest.
        self._group_of = [0] * num_blocks
        self._block_of: list[dict[bytes, int]] = [{} for _ in range(num_groups)]
        # Free blocks without a prefix, the next one last; and those with one, oldest first.
        self._unused = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self.observer: PoolObserver | None = None

    @property
    def num_free(self) -> int:
        """Blocks that ``allocate`` could give."""
        return len(self._unused) + len(self._cached)

    def published(self) -> list[PrefixBlock]:
        """All that can be found of the first group, in no order."""
        columns = zip(self._prefix_of, self._group_of, strict=True)
        return [prefix for prefix, group in columns if prefix is not None and not group]

    def match(self, prefixes: Sequence[PrefixBlock], group: int = 0) -> list[int]:
        """A group's blocks of the longest published part of ``prefixes``; adds no holder."""
        blocks = []
        for prefix in prefixes:
            block = self._block_of[group].get(prefix.digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def last_missing(
        self, prefixes: Sequence[PrefixBlock], group: int, first: int, stop: int
    ) -> int | None:
        """The last of ``prefixes`` in this range that the group has no block of; None: it has."""
        block_of = self._block_of[group]
        for index in range(stop - 1, first - 1, -1):
            if prefixes[index].digest not in block_of:
                return index
        return None

    def num_idle(self, blocks: Sequence[int]) -> int:
        """How many of ``blocks`` have no holder: what acquiring them takes from ``num_free``."""
        holders = self._holders
        return sum(block != FREED and not holders[block] for block in blocks)

    def acquire(self, blocks: Sequence[int]) -> None:
        """Add a holder to blocks that ``match`` found."""
        for block in blocks:
            if block == FREED:
                continue
            assert self._prefix_of[block] is not None, f"block {block} has no published prefix"
            if self._holders[block] == 0:
                del self._cached[block]
            self._holders[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Hold ``count`` blocks with no content; the caller must check ``num_free`` first."""
        assert count <= self.num_free, f"{count} blocks wanted, {self.num_free} free"
        blocks = []
        for _ in range(count):
            if self._unused:
                block = self._unused.pop()
            else:
                block, _ = self._cached.popitem(last=False)
                self._forget(block)
            assert self._holders[block] == 0, f"block {block} was free and held"
            self._holders[block] = 1
            blocks.append(block)
        return blocks

    def free(self, blocks: Sequence[int]) -> None:
        """Remove a holder from a sequence's blocks, which are in its order.

        Its tail is freed first, so that the end of a prefix is reused before its beginning.
        """
        for block in reversed(blocks):
            if block == FREED:
                continue
            self._holders[block] -= 1
            assert self._holders[block] >= 0, f"block {block} was freed twice"
            if self._holders[block]:
                continue
            if self._prefix_of[block] is None:
                self._unused.append(block)
            else:
                self._cached[block] = None

    def publish(self, block: int, prefix: PrefixBlock, group: int = 0) -> None:
        """Let later sequences find a group's held block that is full and whose tokens are known.

        Of two blocks with the same content the first one stays.
        """
        assert self._holders[block] > 0, f"block {block} is published and nobody holds it"
        assert self._prefix_of[block] is None, f"block {block} is published twice"
        if prefix.digest not in self._block_of[group]:
            self._block_of[group][prefix.digest] = block
            self._prefix_of[block] = prefix
            self._group_of[block] = group
            if self.observer is not None and not group:
                self.observer.stored(prefix)

    def drop(self, block: int) -> None:
        """Let nobody find a block any more, unless somebody holds it or it is found no longer."""
        if block in self._cached:
            del self._cached[block]
            self._forget(block)
            self._unused.append(block)

    def _forget(self, block: int) -> None:
        prefix = self._prefix_of[block]
        assert prefix is not None, f"block {block} is cached without a prefix"
        group = self._group_of[block]
        del self._block_of[group][prefix.digest]
        self._prefix_of[block] = None
        if self.observer is not None and not group:
            self.observer.removed(prefix)
