"""What a prefix cache holds, and how that changes, as routers that place by prefix are told.

Defines the messages between the scheduler's pools and the APIs. Knows no protocol.
"""

from __future__ import annotations

import dataclasses
from array import array
from typing import NamedTuple

TOKEN_TYPE = "I"
"""`array`'s code for the tokens of a block."""


class PrefixBlock(NamedTuple):
    """A full block: its tokens and, through its parent, all tokens before them.

    Attributes:
        digest: its name.
        parent: digest of the block before; empty for a sequence's first block.
        tokens: its own tokens, as bytes of an ``array`` of TOKEN_TYPE.
    """

    digest: bytes
    parent: bytes
    tokens: bytes

    @property
    def token_ids(self) -> array[int]:
        """Its own tokens."""
        return array(TOKEN_TYPE, self.tokens)


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """Blocks that can be found from now on, each the parent of the next."""

    blocks: list[PrefixBlock]


@dataclasses.dataclass(frozen=True, slots=True)
class Removed:
    """Digests of blocks that cannot be found any more."""

    digests: list[bytes]


@dataclasses.dataclass(frozen=True, slots=True)
class Cleared:
    """No block can be found any more."""


CacheEvent = Stored | Removed | Cleared


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """Which part of a snapshot a batch is.

    Attributes:
        index, count: from 0, of so many.
        num_blocks: of the whole snapshot.
    """

    index: int
    count: int
    num_blocks: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CacheBatch:
    """Changes that belong together.

    Attributes:
        number: 1 more than that of the batch before.
        time: of the changes, in seconds since 1970.
        part: of a snapshot; None for changes.
    """

    number: int
    time: float
    events: list[CacheEvent]
    part: Part | None = None
