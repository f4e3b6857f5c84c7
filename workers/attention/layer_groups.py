"""Which layers share a sequence's block tables. Torch-free.

Layers of one window let go of the same blocks, so a group has one window, or none. All groups have
the same number of places, and a block holds one group's keys and values of `block_size` tokens: so
any group can have any block, and two layers at one place of two groups share the memory of the
cache, kept apart by their groups' blocks.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from workers.attention.any import AnyAttention
from workers.linear_attention.spec import DeltaSpec

MOST_GROUPS = 8
"""Each has a table of its own and blocks of its own to be told."""


class LayerPlace(NamedTuple):
    """Where a layer's keys and values stand."""

    group: int
    place: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroups:
    """The groups of a model's layers.

    Attributes:
        windows: keys that a query sees in the layers of each group; None: all before it. Groups
            without a window are the first.
        size: places of a group, of which the last ones may be empty.
        places: of each layer; of those without keys and values, their place among such.
    """

    windows: tuple[int | None, ...]
    size: int
    places: tuple[LayerPlace, ...]

    @property
    def num_groups(self) -> int:
        """How many there are."""
        return len(self.windows)

    @classmethod
    def of(cls, attention: Sequence[AnyAttention], max_positions: int) -> LayerGroups:
        """The groups in which the longest sequence needs the least memory, and as few as do.

        One group where all layers have the same window, or where groups would need no less.
        """
        cached = [spec for spec in attention if not isinstance(spec, DeltaSpec)]
        groups = cls._of_windows(
            [spec.window_within(max_positions) for spec in cached], max_positions
        )
        places, states = iter(groups.places), itertools.count()
        every = tuple(
            LayerPlace(0, next(states)) if isinstance(spec, DeltaSpec) else next(places)
            for spec in attention
        )
        return dataclasses.replace(groups, places=every)

    @classmethod
    def _of_windows(cls, windows: list[int | None], max_positions: int) -> LayerGroups:
        counts = Counter(windows)

        def reach(window: int | None) -> int:
            return max_positions if window is None else window

        kinds = sorted(counts, key=reach, reverse=True)
        widest = kinds[0]
        choices = [(len(windows) * reach(widest), 1, len(windows))]
        for size in range(1, max(counts.values()) + 1):
            groups = {window: -(-count // size) for window, count in counts.items()}
            num_groups = sum(groups.values())
            if num_groups <= max(MOST_GROUPS, len(kinds)):
                memory = sum(size * groups[window] * reach(window) for window in kinds)
                choices.append((memory, num_groups, size))
        _, num_groups, size = min(choices)
        if num_groups == 1:
            places = tuple(LayerPlace(0, layer) for layer in range(len(windows)))
            return cls(windows=(widest,), size=size, places=places)
        return _divide(windows, kinds, size)


def _divide(windows: list[int | None], kinds: list[int | None], size: int) -> LayerGroups:
    """Layers of each kind, in their order, into groups of ``size``."""
    of_group: list[int | None] = []
    places: dict[int, LayerPlace] = {}
    for window in kinds:
        layers = [layer for layer, own in enumerate(windows) if own == window]
        for index, layer in enumerate(layers):
            if index % size == 0:
                of_group.append(window)
            places[layer] = LayerPlace(len(of_group) - 1, index % size)
    return LayerGroups(
        windows=tuple(of_group),
        size=size,
        places=tuple(places[layer] for layer in range(len(windows))),
    )
