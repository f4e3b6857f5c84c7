"""The matrices of attention as numbers: how large they are, and by what ranks divide them.

Torch-free. Knows no rank.
"""

from __future__ import annotations

from typing import NamedTuple


class Side(NamedTuple):
    """One side of a matrix, over all ranks.

    Attributes:
        name: where its size comes from, in the words of config.json.
        size: its length.
        heads: ranks that it is divided over at most; 1: each has all of it.
        may_cut: its end need not be that of a block of scales.
        pieces: lengths that follow each other again and again, which ranks hold in another order;
            none: it is held as it stands.
    """

    name: str
    size: int
    heads: int = 1
    may_cut: bool = False
    pieces: tuple[int, ...] = ()

    def ranks(self, tp: int) -> int:
        """Shares it is cut into."""
        return min(tp, self.heads)

    def share(self, tp: int) -> int:
        """Its length on a rank."""
        return self.size // self.ranks(tp)


class Projection(NamedTuple):
    """A matrix by its module's name."""

    module: str
    outputs: Side
    inputs: Side


def hidden_side(size: int) -> Side:
    """What attention reads and adds to."""
    return Side("hidden_size", size)
