"""What a sequence needs of the KV cache, group of layers by group.

Owns the arithmetic of windows and blocks. Knows nothing of which blocks are free, or of sequences.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CacheGroups:
    """The groups of layers that have block tables of their own.

    Attributes:
        block_size: tokens in a block.
        windows: keys that a query sees in the layers of each group, its own included; 0: all before
            it. Those of 0 are the first.
        step_tokens: the most tokens of a step.
    """

    block_size: int
    windows: tuple[int, ...]
    step_tokens: int

    def __post_init__(self) -> None:
        assert self.windows, "a model has layers"
        assert all(map(bool, self.windows[self.windows.count(0) :])), "groups of 0 are the first"

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold ``num_tokens`` tokens of one group."""
        return -(-num_tokens // self.block_size)

    def first_seen(self, group: int, position: int) -> int:
        """The first block of a sequence that a query at ``position`` sees, or any later one."""
        window = self.windows[group]
        return max(0, position - window + 1) // self.block_size if window else 0

    def most_blocks(self, group: int, num_tokens: int) -> int:
        """The most blocks of a group that a sequence of ``num_tokens`` holds at once.

        With a window: what the next query sees or a step in flight has yet to write, whichever is
        more, a step's tokens beyond, and a block cut on either side.
        """
        window, blocks = self.windows[group], self.blocks_for(num_tokens)
        if not window:
            return blocks
        step = self.step_tokens
        return min(blocks, self.blocks_for(max(window, step) + step) + 2)

    def needed(self, num_tokens: int) -> int:
        """The most blocks of all groups that a sequence of ``num_tokens`` holds at once."""
        return sum(self.most_blocks(group, num_tokens) for group in range(len(self.windows)))

    def longest(self, num_blocks: int, max_model_len: int) -> int:
        """Tokens in whole blocks that one sequence may have in a cache of ``num_blocks``, up to
        those of a sequence of ``max_model_len``."""
        lengths = range(self.blocks_for(max_model_len) + 1)
        size = self.block_size
        fitting = bisect_right(lengths, num_blocks, key=lambda blocks: self.needed(blocks * size))
        return (fitting - 1) * size

    def told_tokens(self, num_blocks: int) -> int:
        """The size of a cache as people and routers are told it: the tokens of sequences that are
        within all windows. Of longer ones it holds more."""
        return num_blocks // len(self.windows) * self.block_size
