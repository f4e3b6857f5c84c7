"""Tile sizes of GEMM launches: measured ones from a file, or a guess from the roofline.

Owns `Tiles`, the files' format and the guess. Does not know kernels or how tiles were measured
(`benchmarks.tune` does). E local experts, I their width, H hidden, N outputs, K inputs.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from bisect import bisect_left
from pathlib import Path
from typing import Any, TypeVar

log = logging.getLogger(__name__)

_Entry = TypeVar("_Entry")

_SHIPPED = Path(__file__).parent / "tuned"
_VECTOR_ROUTES = 32  # up to so many routes a stream of weights beats tiles
_MIN_BLOCK = 16  # tl.dot takes no less
_BARRIER_BYTES = 1024  # beside a kernel's tiles
_MANY_PROGRAMS = 128  # fill a device


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
        self, num_experts: int, width: int, hidden: int, tokens: int, routes: int
    ) -> ExpertTiles:
        """For `tokens` with `routes` routes in all."""
        key = experts_key(num_experts, width, hidden, self.dtype)
        table = self.experts_tables.get(key)
        if table is None:
            self._log_untuned(key)
            return self._guess_experts(num_experts, width, hidden, routes)
        return _entry(table, tokens)

    def linear(
        self, outputs: int, inputs: int, tokens: int, *, library: bool = True
    ) -> Tiles | None:
        """None: the library's GEMM, where `library` allows it."""
        table = self.linear_tables.get(linear_key(outputs, inputs, self.dtype))
        if table is None:
            self._log_untuned(linear_key(outputs, inputs, self.dtype))
            tiles = self._guess_linear(outputs, inputs, tokens)
        else:
            tiles = _entry(table, tokens)
        if tiles is None and not library:
            return self._guess_without_library(outputs, inputs, tokens)
        return tiles

    def _guess_experts(self, num_experts: int, width: int, hidden: int, routes: int) -> ExpertTiles:
        """Rows to hold most experts' routes in one tile; depth to keep ~100 KB a core in flight."""
        if routes <= _VECTOR_ROUTES:
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
            stages=self._stages(block_m + matrices * block_n, block_k, 4 if wide else 3),
        )

    def _guess_linear(self, outputs: int, inputs: int, tokens: int) -> Tiles | None:
        """A stream of weights for one token, split depth for some; the library for more."""
        if tokens == 1 and power_of_2(inputs) <= 8192:
            return Tiles(block_m=1, block_n=4, block_k=power_of_2(inputs))
        if tokens > 64 or self.item_size == 4:
            return None
        splits = 1
        while splits < 8 and outputs * splits < 64 * 256 and inputs // (2 * splits) >= 256:
            splits *= 2
        block_m, block_k = 16 if tokens <= 16 else 64, min(128, power_of_2(inputs))
        stages = self._stages(block_m + 64, block_k, 3)
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
        splits = 1
        while splits < 8 and 2 * splits * programs <= _MANY_PROGRAMS and inputs >= 1024 * splits:
            splits *= 2
        block_k = min(128 // self.item_size, power_of_2(inputs))
        return Tiles(
            block_m=block,
            block_n=block,
            block_k=block_k,
            warps=8 if block == 128 else 4,
            stages=self._stages(2 * block, block_k, 4),
            splits=splits,
        )

    def _stages(self, rows: int, block_k: int, most: int) -> int:
        """As many stages of `rows` × `block_k` as shared memory holds, one to `most`."""
        room = (self.shared_bytes - _BARRIER_BYTES) // (rows * block_k * self.item_size)
        return max(1, min(most, room))

    def _log_untuned(self, key: str) -> None:
        if key not in self._logged:
            self._logged.add(key)
            log.info(
                "no tuned tiles for %s: guessed from the roofline; "
                "`python -m benchmarks.tune` measures and keeps them",
                key,
            )


def load_book(
    *, device_name: str, triton_version: str, dtype: str, item_size: int, shared_bytes: int
) -> TileTable:
    """The book for a device: for each shape the user's own measurements, else those the project
    ships.

    Raises ValueError naming a file that cannot be read.
    """
    tables: dict[str, Any] = {"experts": {}, "linear": {}}
    for path in (
        _find_shipped(device_name, triton_version),
        user_file(device_name, triton_version),
    ):
        if path is None or not path.exists():
            continue
        if triton_version not in path.name:
            log.info("tiles of %s are used with Triton %s", path.name, triton_version)
        for kind, entries in read_tables(path).items():
            tables[kind].update(entries)
    return TileTable(dtype=dtype, item_size=item_size, shared_bytes=shared_bytes, **tables)


def user_file(device_name: str, triton_version: str) -> Path:
    """Where `benchmarks.tune` keeps what it measured on this machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "switchyard" / "tiles" / _file_name(device_name, triton_version)


def shipped_file(device_name: str, triton_version: str) -> Path:
    """Where the project keeps what it measured."""
    return _SHIPPED / _file_name(device_name, triton_version)


def _find_shipped(device_name: str, triton_version: str) -> Path | None:
    exact = shipped_file(device_name, triton_version)
    others = sorted(_SHIPPED.glob(_file_name(device_name, "*")), reverse=True)
    return next((path for path in (exact, *others) if path.exists()), None)


def read_tables(path: Path) -> dict[str, Any]:
    """`experts` and `linear` tables of a file."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        experts = {
            key: {
                int(tokens): ExpertTiles(**{name: Tiles(**tiles) for name, tiles in entry.items()})
                for tokens, entry in table.items()
            }
            for key, table in raw["experts"].items()
        }
        linear = {
            key: {int(tokens): entry and Tiles(**entry) for tokens, entry in table.items()}
            for key, table in raw["linear"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"{path}: not a file of tiles: {error!r}; delete it") from None
    if not all((*experts.values(), *linear.values())):
        raise ValueError(f"{path}: not a file of tiles: an empty table; delete it")
    return {"experts": experts, "linear": linear}


def write_tables(path: Path, tables: dict[str, Any]) -> None:
    """Add `tables`, as `read_tables` gives them, to a file."""
    merged = read_tables(path) if path.exists() else {"experts": {}, "linear": {}}
    raw: dict[str, Any] = {}
    for kind, entries in merged.items():
        entries.update(tables.get(kind, {}))
        raw[kind] = {
            key: {str(n): _plain(entry) for n, entry in sorted(table.items())}
            for key, table in sorted(entries.items())
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")


def _plain(entry: Any) -> Any:
    return None if entry is None else dataclasses.asdict(entry)


def _file_name(device_name: str, triton_version: str) -> str:
    return f"{device_name.replace(' ', '-')}--triton-{triton_version}.json"


def _entry(table: dict[int, _Entry], tokens: int) -> _Entry:
    """The entry of the smallest listed number that is not below `tokens`, else the last one."""
    listed = sorted(table)
    return table[listed[min(bisect_left(listed, tokens), len(listed) - 1)]]


def power_of_2(size: int) -> int:
    return max(_MIN_BLOCK, 1 << (size - 1).bit_length())
