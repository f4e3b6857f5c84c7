"""Tile sizes of GEMM launches: measured ones from a table, or a guess from the roofline.

Owns `Tiles`, the table and the guess. Does not know kernels, files (`tile_files`) or how tiles were
measured (`benchmarks.tune`). E local experts, I their width, H hidden, N outputs, K inputs.
"""

from __future__ import annotations

import dataclasses
import logging
from bisect import bisect_left
from typing import TypeVar

log = logging.getLogger(__name__)

_Entry = TypeVar("_Entry")

_VECTOR_ROUTES = 32  # up to so many routes a stream of weights beats tiles, one stream a route
_MIN_BLOCK = 16  # tl.dot takes no less
_BARRIER_BYTES = 1024  # beside a kernel's tiles
_MANY_PROGRAMS = 128  # fill a device

FP8_NAME = "float8_e4m3fn"  # of weights of eight bits
INT4_NAME = "int4"  # of weights of four
# From so many rows on a step is bound by products, and activations meet 8-bit weights in eight bits
# too, whatever tiles these kernels fit; below, they stay as they are.
MANY_ROWS = 512


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """How one GEMM is cut: a tile's rows, columns and depth; warps; stages in flight.

    `block_m` 1 is a matrix-vector kernel. `swap` computes the transpose, so that the weights fill
    the wide side of the tensor core. `splits` cuts the depth in parts that the next kernel sums.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int = 4
    stages: int = 3
    swap: bool = False
    splits: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is not (bool if field.name == "swap" else int) or value < 0:
                raise TypeError(f"{field.name} is {value!r}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTiles:
    """The two GEMMs of a sparse layer, which share `block_m`."""

    gate_up: Tiles
    down: Tiles

    def __post_init__(self) -> None:
        assert self.gate_up.block_m == self.down.block_m


def experts_key(num_experts: int, width: int, hidden: int, dtype: str) -> str:
    """The name of an entry for expert GEMMs."""
    return f"E={num_experts} I={width} H={hidden} {dtype}"


def linear_key(outputs: int, inputs: int, dtype: str) -> str:
    """The name of an entry for a dense GEMM."""
    return f"N={outputs} K={inputs} {dtype}"


class TileTable:
    """Tiles by shape and number of tokens; what nobody measured is guessed, and said once.

    `tables` maps a key to {tokens: entry}; an entry holds up to its number of tokens, the last one
    beyond it too. A `linear` entry of None is the library's GEMM.
    """

    def __init__(
        self,
        *,
        dtype: str,
        item_size: int,
        shared_bytes: int,
        experts: dict[str, dict[int, ExpertTiles]] | None = None,
        linear: dict[str, dict[int, Tiles | None]] | None = None,
    ) -> None:
        self.dtype = dtype
        self.item_size = item_size
        self.shared_bytes = shared_bytes
        self.experts_tables = experts or {}
        self.linear_tables = linear or {}
        self._logged: set[str] = set()

    def experts(
        self,
        num_experts: int,
        width: int,
        hidden: int,
        tokens: int,
        routes: int,
        *,
        weights: str | None = None,
    ) -> ExpertTiles:
        """For `tokens` with `routes` routes in all; `weights` names their type where it is not the
        model's."""
        key = experts_key(num_experts, width, hidden, weights or self.dtype)
        table = self.experts_tables.get(key)
        if table is None:
            self._log_untuned(key)
            if weights == FP8_NAME:
                return self._guess_fp8_experts(num_experts, width, hidden, tokens, routes)
            if weights == INT4_NAME:
                return self._guess_int4_experts(num_experts, width, hidden, routes)
            return self._guess_experts(num_experts, width, hidden, routes)
        return _entry(table, tokens)

    def linear(
        self,
        outputs: int,
        inputs: int,
        tokens: int,
        *,
        weights: str | None = None,
        library: bool = True,
    ) -> Tiles | None:
        """None: the library's GEMM, where `library` allows it. `weights` as in `experts`."""
        key = linear_key(outputs, inputs, weights or self.dtype)
        table = self.linear_tables.get(key)
        if table is None:
            self._log_untuned(key)
            if weights == FP8_NAME:
                return self._guess_fp8_linear(outputs, inputs, tokens)
            if weights == INT4_NAME:
                return self._guess_int4_linear(outputs, inputs, tokens)
            tiles = self._guess_linear(outputs, inputs, tokens)
        else:
            tiles = _entry(table, tokens)
        if tiles is None and not library:
            return self._guess_without_library(outputs, inputs, tokens)
        return tiles

    def _guess_experts(self, num_experts: int, width: int, hidden: int, routes: int) -> ExpertTiles:
        """Rows to hold most experts' routes in one tile; depth to keep ~100 KB a core in flight."""
        if _are_vectors(num_experts, routes):
            tiles = Tiles(block_m=1, block_n=8, block_k=256)
            return ExpertTiles(gate_up=tiles, down=tiles)
        mean = routes / num_experts
        block_m = 16 if mean <= 12 else 32 if mean <= 24 else 64 if mean <= 96 else 128
        if self.item_size == 4:
            block_m = min(block_m, 32)
        return ExpertTiles(
            gate_up=self._fit(block_m, width, hidden, 2), down=self._fit(block_m, hidden, width, 1)
        )

    def _fit(self, block_m: int, columns: int, depth: int, matrices: int) -> Tiles:
        """A tile of `matrices` weight tiles that fits shared memory."""
        wide = block_m >= 128
        block_n = min((128 if matrices == 2 else 256) if wide else 64, power_of_2(columns))
        block_k = min((64 if block_m >= 64 else 128) * 2 // self.item_size, power_of_2(depth))
        return Tiles(
            block_m=block_m,
            block_n=block_n,
            block_k=block_k,
            warps=8 if wide else 4,
            stages=self._stages(
                self.item_size * (block_m + matrices * block_n) * block_k, 4 if wide else 3
            ),
        )

    def _guess_linear(self, outputs: int, inputs: int, tokens: int) -> Tiles | None:
        """A stream of weights for one token, split depth for some; the library for more."""
        if tokens == 1 and power_of_2(inputs) <= 8192:
            return Tiles(block_m=1, block_n=4, block_k=power_of_2(inputs))
        if tokens > 64 or self.item_size == 4:
            return None
        splits = _splits(outputs, inputs)
        block_m, block_k = 16 if tokens <= 16 else 64, min(128, power_of_2(inputs))
        stages = self._stages(self.item_size * (block_m + 64) * block_k, 3)
        return Tiles(block_m=block_m, block_n=64, block_k=block_k, stages=stages, splits=splits)

    def _guess_without_library(self, outputs: int, inputs: int, tokens: int) -> Tiles:
        """Square tiles, the depth split while they leave most multiprocessors idle.

        By the next power of two of the tokens, so that a buffer that holds the parts of these holds
        those of fewer.
        """
        rows = power_of_2(tokens)
        wide = rows * outputs >= _MANY_PROGRAMS * 128 * 128
        block = min(128 if wide and self.item_size == 2 else 64, rows)
        programs = -(-rows // block) * -(-outputs // block)
        splits = _splits_of_programs(programs, inputs)
        block_k = min(128 // self.item_size, power_of_2(inputs))
        return Tiles(
            block_m=block,
            block_n=block,
            block_k=block_k,
            warps=8 if block == 128 else 4,
            stages=self._stages(self.item_size * 2 * block * block_k, 4),
            splits=splits,
        )

    def fp32_linear(self, outputs: int, inputs: int, tokens: int) -> Tiles:
        """For weights of fp32, some hundred outputs, under rows of 16 bits: never measured.

        Few tokens are a stream of weights that all multiprocessors share, more are cut as
        `_guess_without_library` does. Weights stand on the side that is taken from registers, where
        each is split in two.
        """
        if tokens == 1 and power_of_2(inputs) <= 8192:
            wide = power_of_2(inputs) > 4096
            return Tiles(block_m=1, block_n=2 if wide else 4, block_k=power_of_2(inputs))
        rows = power_of_2(tokens)
        if rows <= 64:
            block_m, block_n, block_k = rows, 16, min(128, power_of_2(inputs))
            splits = _splits(outputs, inputs)
        else:
            block_m = block_n = 128 if rows * outputs >= _MANY_PROGRAMS * 128 * 128 else 64
            block_k = min(32, power_of_2(inputs))
            programs = rows // block_m * -(-outputs // block_n)
            splits = _splits_of_programs(programs, inputs)
        return Tiles(
            block_m=block_m,
            block_n=block_n,
            block_k=block_k,
            warps=8 if block_n == 128 else 4,
            stages=self._stages((self.item_size * block_m + 4 * block_n) * block_k, 4),
            swap=True,
            splits=splits,
        )

    def _guess_fp8_experts(
        self, num_experts: int, width: int, hidden: int, tokens: int, routes: int
    ) -> ExpertTiles:
        """As for wider weights, the same bytes in flight; of many tokens what registers hold."""
        extents = (width, hidden), (hidden, width)
        if _are_vectors(num_experts, routes):
            gate_up, down = (
                Tiles(block_m=1, block_n=block_n, block_k=min(2048, power_of_2(depth)))
                for block_n, (_, depth) in zip((4, 8), extents, strict=True)
            )
            return ExpertTiles(gate_up=gate_up, down=down)
        mean = routes / num_experts
        if tokens >= MANY_ROWS and self.item_size == 2:
            block_m = 64 if mean <= 48 else 128
            return ExpertTiles(
                gate_up=self._fit_both_fp8(block_m, width, hidden, 2),
                down=self._fit_both_fp8(block_m, hidden, width, 1),
            )
        block_m = 16 if mean <= 16 else 32 if mean <= 32 else 64
        gate_up, down = (
            self._fit_narrow_fp8(block_m, columns, depth, matrices)
            for matrices, (columns, depth) in zip((2, 1), extents, strict=True)
        )
        return ExpertTiles(gate_up=gate_up, down=down)

    def _guess_fp8_linear(self, outputs: int, inputs: int, tokens: int) -> Tiles:
        """There is no library's GEMM."""
        if tokens == 1 and power_of_2(inputs) <= 8192:
            return Tiles(block_m=1, block_n=4, block_k=power_of_2(inputs))
        if tokens >= MANY_ROWS and self.item_size == 2:
            wide = tokens * outputs >= 2 * _MANY_PROGRAMS * 128 * 128
            return self._fit_both_fp8(128 if wide else 64, outputs, inputs, 1)
        block_m = 16 if tokens <= 16 else 32 if tokens <= 32 else 64
        tiles = self._fit_fp8(block_m, outputs, inputs, 1)
        splits = _splits(outputs, inputs) if tokens <= 64 else 1
        return dataclasses.replace(tiles, splits=splits)

    def _fit_fp8(self, block_m: int, columns: int, depth: int, matrices: int) -> Tiles:
        """Inputs of the model's type beside weights of a byte."""
        block_n, block_k = min(64, power_of_2(columns)), min(128, power_of_2(depth))
        stage = (self.item_size * block_m + matrices * block_n) * block_k
        return Tiles(
            block_m=block_m, block_n=block_n, block_k=block_k, stages=self._stages(stage, 4)
        )

    def _fit_narrow_fp8(self, block_m: int, columns: int, depth: int, matrices: int) -> Tiles:
        """Weights on the wide side of the tensor core. 128 columns of gate and up are one group for
        `down`, whose steps of 128 inputs are the faster ones. In fp32 as above."""
        if self.item_size == 4:
            return self._fit_fp8(block_m, columns, depth, matrices)
        block_n = 64 if columns % 128 else 128
        block_k = min(128, power_of_2(depth))
        stage = (self.item_size * block_m + matrices * block_n) * block_k
        return Tiles(
            block_m=block_m,
            block_n=min(block_n, power_of_2(columns)),
            block_k=block_k,
            stages=self._stages(stage, 6 if matrices == 2 else 4),
            swap=True,
        )

    def _fit_both_fp8(self, block_m: int, columns: int, depth: int, matrices: int) -> Tiles:
        """Inputs and weights of a byte, but room for inputs of the model's type, which weights get
        whose blocks do not suit these tiles. A tile of gate and up has columns that divide all,
        since they get one scale."""
        wide = block_m >= 128
        block_n = 128 if wide else 64 * (3 - matrices)
        if matrices == 2:
            block_n = max(_MIN_BLOCK, min(block_n, columns & -columns))
        elif wide and columns % 256 == 0:
            block_n = 256
        stage = (self.item_size * block_m + matrices * block_n) * 128
        return Tiles(
            block_m=block_m,
            block_n=block_n,
            block_k=min(128, power_of_2(depth)),
            warps=8 if wide else 4,
            stages=self._stages(stage, 4),
        )

    def _guess_int4_experts(
        self, num_experts: int, width: int, hidden: int, routes: int
    ) -> ExpertTiles:
        """Rows as for wider weights; a matrix-vector kernel has more of them for its inputs."""
        if _are_vectors(num_experts, routes):
            return ExpertTiles(
                gate_up=Tiles(block_m=1, block_n=8, block_k=min(2048, power_of_2(hidden))),
                down=Tiles(block_m=1, block_n=16, block_k=min(1024, power_of_2(width))),
            )
        mean = routes / num_experts
        block_m = 16 if mean <= 12 else 32 if mean <= 24 else 64
        return ExpertTiles(
            gate_up=self._fit_int4(block_m, width, hidden, 2),
            down=self._fit_int4(block_m, hidden, width, 1),
        )

    def _guess_int4_linear(self, outputs: int, inputs: int, tokens: int) -> Tiles:
        """There is no library's GEMM."""
        if tokens == 1 and power_of_2(inputs) <= 8192:
            return Tiles(block_m=1, block_n=8, block_k=power_of_2(inputs))
        block_m = 16 if tokens <= 16 else 32 if tokens <= 32 else 64 if tokens <= 256 else 128
        tiles = self._fit_int4(block_m, outputs, inputs, 1)
        splits = _splits(outputs, inputs) if tokens <= 64 else 1
        return dataclasses.replace(tiles, splits=splits)

    def _fit_int4(self, block_m: int, columns: int, depth: int, matrices: int) -> Tiles:
        """Weights on the wide side of the tensor core, which takes them from registers, where their
        numbers are made; no more rows than sums of two matrices leave room for."""
        block_m = block_m if self.item_size == 2 else min(block_m, 32)
        wide = block_m >= 64
        block_n = min(128 if wide else 64, power_of_2(columns))
        block_k = min(128, power_of_2(depth))
        stage = self.item_size * block_m * block_k + matrices * block_n * block_k // 2
        return Tiles(
            block_m=block_m,
            block_n=block_n,
            block_k=block_k,
            warps=8 if wide else 4,
            stages=self._stages(stage, 4),
            swap=True,
        )

    def _stages(self, stage_bytes: int, most: int) -> int:
        """As many stages as shared memory holds, one to `most`."""
        return max(1, min(most, (self.shared_bytes - _BARRIER_BYTES) // stage_bytes))

    def _log_untuned(self, key: str) -> None:
        if key not in self._logged:
            self._logged.add(key)
            log.info(
                "no tuned tiles for %s: guessed from the roofline; "
                "`python -m benchmarks.tune` measures and keeps them",
                key,
            )


def _are_vectors(num_experts: int, routes: int) -> bool:
    """Whether each route is to read its expert's weights, which tiles read once for all of an
    expert's routes: with half as many random routes as experts, four of five are of another."""
    return routes <= min(_VECTOR_ROUTES, num_experts // 2)


def _splits(outputs: int, inputs: int) -> int:
    """Parts of the depth of few columns, so that their programs fill a device."""
    splits = 1
    while splits < 8 and outputs * splits < 64 * 256 and inputs // (2 * splits) >= 256:
        splits *= 2
    return splits


def _splits_of_programs(programs: int, inputs: int) -> int:
    """Parts of the depth of so many programs, while they leave most multiprocessors idle."""
    splits = 1
    while splits < 8 and 2 * splits * programs <= _MANY_PROGRAMS and inputs >= 1024 * splits:
        splits *= 2
    return splits


def _entry(table: dict[int, _Entry], tokens: int) -> _Entry:
    """The entry of the smallest listed number that is not below `tokens`, else the last one."""
    listed = sorted(table)
    return table[listed[min(bisect_left(listed, tokens), len(listed) - 1)]]


def power_of_2(size: int) -> int:
    return max(_MIN_BLOCK, 1 << (size - 1).bit_length())
