"""Which tiles are worth timing for the GEMMs of a model, and which of the timed ones to take.

Owns the candidates and the choice. Imports no torch: how tiles are timed is
`benchmarks.tiles.timing`'s business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from benchmarks.gemm_shapes import ExpertShape, LinearShape
from benchmarks.tiles.cuts import BOTH_FP8, FP8, INT4, PLAIN, Cuts
from moe.base.tiles import MANY_ROWS, ExpertTiles, Tiles, power_of_2

_VECTOR_ROUTES = 64  # beyond so many routes experts are hit twice, and tiles read them once
_TILE_ROUTES = 16  # up to so many, tiles are all but empty and not tried
_BLOCK_MS = (16, 32, 64, 128)
_MAX_SUMS = 128  # fp32 sums a thread can hold beside everything else
_MOST_PROGRAMS = 384  # about three a core: a deeper cut only makes more parts
_MOST_STAGES = 8
_FASTEST, _PAIRS = 3, 8  # of an op with the same rows; of pairs that are timed together

_MATRICES = {"gate_up": 2, "down": 1, "linear": 1}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLimits:
    """What a device and weights let tiles be: shared memory of a program, the size of a number, for
    FP8 weights the block of a scale, and for those of four bits the inputs of a group."""

    shared_bytes: int
    item_size: int
    block: tuple[int, int] | None = None
    group: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether weights have the type of activations."""
        return self.block is None and self.group is None

    @property
    def weight_size(self) -> float:
        """Bytes of a weight."""
        if self.group is not None:
            return 0.5
        return self.item_size if self.block is None else 1

    def many(self, tokens: int) -> bool:
        """Whether kernels may take activations of eight bits too."""
        return self.block is not None and self.item_size == 2 and tokens >= MANY_ROWS

    def cuts(self, tokens: int) -> Cuts:
        """What is known to be good, or for weights of four bits is expected to be."""
        if self.group is not None:
            return INT4
        if self.block is None:
            return PLAIN
        return BOTH_FP8 if self.many(tokens) else FP8


def expert_candidates(
    op: str,
    shape: ExpertShape,
    tokens: int,
    known: Iterable[Tiles],
    limits: DeviceLimits,
    winners: Iterable[Tiles] = (),
) -> list[Tiles]:
    """Tiles of `gate_up` or `down`: the `known` ones, the last one's neighbours and the lists'.

    Args:
        winners: of the same op elsewhere; those with as many rows as seem right here are tried.
    """
    routes = tokens * shape.top_k
    vectors = _vectors(op, shape, limits) if routes <= _VECTOR_ROUTES else []
    rows = [] if routes <= _TILE_ROUTES else _block_ms(routes / shape.num_experts, limits, reach=4)
    first = list(known)
    found = [near for tiles in first[-1:] for near in neighbours(tiles, _unread(op, tiles))]
    seen = {*rows, 1} if vectors else set(rows)
    found += [tiles for tiles in winners if tiles.block_m in seen]
    found += vectors
    found += [tiles for block_m in rows for tiles in _tiled(op, tokens, block_m, limits)]
    return _fitting(first, found, op, shape, tokens, limits)


def linear_candidates(
    shape: LinearShape, tokens: int, known: Iterable[Tiles | None], limits: DeviceLimits
) -> list[Tiles | None]:
    """Tiles of a dense GEMM: the `known` ones, the last one's neighbours and the lists'; None is
    the library's GEMM, which takes only weights of the model's type."""
    first = list(known)
    own = [tiles for tiles in first if tiles is not None]
    found = [near for tiles in own[-1:] for near in neighbours(tiles, _unread("linear", tiles))]
    if tokens == 1:
        found += _vectors("linear", shape, limits)
    for block_m in [] if tokens == 1 else _block_ms(tokens, limits, reach=1):
        found += [
            dataclasses.replace(tiles, splits=splits)
            for tiles in _tiled("linear", tokens, block_m, limits)
            for splits in _splits(shape, tokens, tiles)
        ]
    library = [None] if limits.is_plain else []
    fitting = _fitting(own, found, "linear", shape, tokens, limits)
    return list(dict.fromkeys([*first, *library, *fitting]))


def neighbours(tiles: Tiles, fixed: Iterable[str] = ()) -> Iterator[Tiles]:
    """Tiles that differ in one field that is not `fixed`: a switch the other way, a size twice or
    half as much, a stage more or less."""
    for field in dataclasses.fields(tiles):
        value = getattr(tiles, field.name)
        if field.name in fixed or not isinstance(value, int):
            continue
        others: tuple[Any, ...] = (2 * value, value // 2)
        if isinstance(value, bool):
            others = (not value,)
        elif field.name == "stages":
            others = (value + 1, value - 1)
        for other in others:
            if isinstance(other, bool) or other >= 1:
                yield dataclasses.replace(tiles, **{field.name: other})


def fits(
    tiles: Tiles, op: str, extent: tuple[int, int], limits: DeviceLimits, tokens: int = 1
) -> bool:
    """Whether tiles make sense for a matrix of `extent` columns and depth; a compiler may still
    find that they need too much."""
    matrices, (columns, depth) = _MATRICES[op], extent
    wide, deep = power_of_2(columns), power_of_2(depth)
    if tiles.block_m == 1:
        # Narrow weights are a part of their fp32 products, of which only sums of blocks are kept.
        most = _MAX_SUMS if limits.is_plain else 2 * _MAX_SUMS
        held = matrices * tiles.block_n * tiles.block_k <= tiles.warps * 32 * most
        return held and tiles.block_n <= wide and tiles.block_k <= deep and tiles.warps <= 16
    both_fp8 = limits.many(tokens) and tiles.block_m >= 64 and not tiles.swap and tiles.splits == 1
    input_size = 1 if both_fp8 else limits.item_size
    row = input_size * tiles.block_m + limits.weight_size * matrices * tiles.block_n
    return (
        _within(tiles, limits.block, 2 if both_fp8 and op != "gate_up" else 1)
        and (limits.group is None or 32 <= tiles.block_k <= limits.group)
        and 16 <= tiles.block_n <= max(16, wide)
        and 16 <= tiles.block_k <= max(16, deep)
        and tiles.warps in (2, 4, 8)
        and 2 <= tiles.stages <= _MOST_STAGES
        and matrices * tiles.block_m * tiles.block_n <= tiles.warps * 32 * _MAX_SUMS
        and (tiles.stages - 1) * row * tiles.block_k <= limits.shared_bytes
        and depth // tiles.splits >= min(depth, 128)
    )


def _within(tiles: Tiles, block: tuple[int, int] | None, dots: int) -> bool:
    """Whether each dot of a step has one scale; a launch would make other tiles smaller."""
    return block is None or (tiles.block_n <= dots * block[0] and tiles.block_k <= block[1])


def shortlist(
    align: Mapping[int, float], gate_up: Mapping[Tiles, float], down: Mapping[Tiles, float]
) -> list[ExpertTiles]:
    """Pairs that share `block_m`, the least sum of microseconds first: of each op the few fastest.

    Args:
        align: microseconds of sorting routes, by block_m; a missing one costs nothing.
    """
    sums = {}
    for block_m in {tiles.block_m for tiles in gate_up}:
        for first in _fastest(gate_up, block_m):
            for second in _fastest(down, block_m):
                pair = ExpertTiles(gate_up=first, down=second)
                sums[pair] = align.get(block_m, 0.0) + gate_up[first] + down[second]
    return sorted(sums, key=sums.__getitem__)[:_PAIRS]


def describe(tiles: Tiles | None) -> str:
    """A short name: rows × columns × depth, warps, stages, and what else is not as usual."""
    if tiles is None:
        return "library"
    words = [f"{tiles.block_m}×{tiles.block_n}×{tiles.block_k}", f"w{tiles.warps}"]
    if tiles.block_m > 1:
        words.append(f"s{tiles.stages}")
    for field in dataclasses.fields(tiles):
        value = getattr(tiles, field.name)
        if field.default not in (dataclasses.MISSING, value) and field.name not in (
            "warps",
            "stages",
        ):
            words.append(field.name if value is True else f"{field.name}={value}")
    return " ".join(words)


def _fastest(times: Mapping[Tiles, float], block_m: int) -> list[Tiles]:
    mine = [tiles for tiles in times if tiles.block_m == block_m]
    return sorted(mine, key=times.__getitem__)[:_FASTEST]


def _tiled(op: str, tokens: int, block_m: int, limits: DeviceLimits) -> list[Tiles]:
    cuts = limits.cuts(tokens)
    lists = cuts.few_rows if block_m <= 32 else cuts.many_rows
    return [
        Tiles(block_m=block_m, block_n=bn, block_k=bk, warps=warps, stages=stages, swap=swap)
        for bn, bk, warps, stages, swap in lists[op]
    ]


def _vectors(op: str, shape: ExpertShape | LinearShape, limits: DeviceLimits) -> list[Tiles]:
    whole = power_of_2(shape.extent(op)[1])
    return [
        Tiles(block_m=1, block_n=bn, block_k=bk or whole, warps=warps, stages=1)
        for bn, bk, warps in limits.cuts(1).vectors[op]
    ]


def _block_ms(mean: float, limits: DeviceLimits, *, reach: int) -> list[int]:
    """Rows worth trying for `mean` rows a group: half as many to `reach` times as many."""
    least, most = min(mean / 2, 64), max(reach * mean, 16)
    if limits.item_size == 4:
        most = min(most, 32)
    chosen = [block_m for block_m in _BLOCK_MS if least <= block_m <= most]
    return chosen or [32]


def _splits(shape: LinearShape, tokens: int, tiles: Tiles) -> list[int]:
    """The two deepest cuts that do not make more programs than the device has use for."""
    programs = -(-shape.outputs // tiles.block_n) * -(-tokens // tiles.block_m)
    cuts = [1]
    while 2 * cuts[-1] * programs <= _MOST_PROGRAMS and cuts[-1] < 16:
        cuts.append(2 * cuts[-1])
    return cuts[-2:]


def _unread(op: str, tiles: Tiles) -> tuple[str, ...]:
    """Fields that do not matter to an op's kernel, or that are chosen elsewhere."""
    vector = ("stages", "swap", "splits") if tiles.block_m == 1 else ()
    depth = ("block_k",) if op == "linear" and tiles.block_m == 1 else ()
    return ("block_m", *vector, *depth, *(() if op == "linear" else ("splits",)))


def _fitting(
    first: list[Tiles],
    found: list[Tiles],
    op: str,
    shape: ExpertShape | LinearShape,
    tokens: int,
    limits: DeviceLimits,
) -> list[Tiles]:
    """Those that fit, each once; the `first` whether or not."""
    extent = shape.extent(op)
    fitting = [tiles for tiles in found if fits(tiles, op, extent, limits, tokens)]
    return list(dict.fromkeys([*first, *fitting]))
