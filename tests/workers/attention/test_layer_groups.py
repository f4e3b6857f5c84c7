"""Layers of different windows are divided into groups of equally many places."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.attention.layer_groups import MOST_GROUPS, LayerGroups
from workers.attention.spec import AttentionSpec

PLAIN = AttentionSpec(num_heads=2, num_kv_heads=1, head_dim=8, v_head_dim=8, scale=1.0, rope=None)


def groups_of(windows: list[int | None], max_positions: int = 1000) -> LayerGroups:
    specs = [dataclasses.replace(PLAIN, window=window) for window in windows]
    return LayerGroups.of(specs, max_positions)


@pytest.mark.parametrize(
    ("windows", "found", "size"),
    [
        ([None] * 5, (None,), 5),
        ([8] * 5, (8,), 5),
        ([8, 8, 8, None] * 2, (None, 8, 8, 8), 2),
        ([8, 8, 8, 8, 8, None], (None, 8, 8, 8, 8, 8), 1),
        ([None, 8] * 12, (None, 8), 12),
        # 2 of 9 places of the last group are empty.
        ([None] * 10 + [8] * 52, (None, *[8] * 6), 10),
        ([None] + [8] * 30, (None, *[8] * 6), 5),
        ([4, None, 8], (None, 8, 4), 1),
        # The longest sequence meets no window, or one.
        ([1000, None, 2000], (None,), 3),
        ([8, None, 2000], (None, None, 8), 1),
        # Groups of so few layers would be too many: all would be larger than one of all.
        ([None] * 7 + [999] * 13, (None,), 20),
    ],
)
def test_groups_of_models(
    windows: list[int | None], found: tuple[int | None, ...], size: int
) -> None:
    groups = groups_of(windows)
    assert (groups.windows, groups.size) == (found, size)


@given(windows=st.lists(st.sampled_from([None, 3, 200]), min_size=1, max_size=40))
def test_every_layer_has_a_place_of_its_own(windows: list[int | None]) -> None:
    groups = groups_of(windows)
    assert len(set(groups.places)) == len(groups.places) == len(windows)
    assert groups.num_groups <= MOST_GROUPS
    for window, (group, place) in zip(windows, groups.places, strict=True):
        assert 0 <= place < groups.size
        if groups.num_groups > 1:
            assert groups.windows[group] == window
    kinds = [window is not None for window in groups.windows]
    assert kinds == sorted(kinds), "groups without a window are the first"

    def memory(window: int | None) -> int:
        return 1000 if window is None else window

    widest = max(map(memory, windows))
    assert sum(groups.size * memory(each) for each in groups.windows) <= len(windows) * widest
