"""The files in which measured tiles stand: what the project ships, and what a user measured.

Owns their names and format. Does not know how tiles are chosen from them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

from moe.base.tiles import ExpertTiles, Tiles, TileTable

log = logging.getLogger(__name__)

_SHIPPED = Path(__file__).parent / "tuned"
# How cards of one chip are named. They differ in memory, clocks and a few multiprocessors: what is
# measured on one serves another better than a guess.
_SAME_CHIP = ("NVIDIA H100", "NVIDIA H200", "NVIDIA GH200")


def load_book(
    *, device_name: str, triton_version: str, dtype: str, item_size: int, shared_bytes: int
) -> TileTable:
    """The book for a device: for each shape the user's own measurements, else those the project
    ships, else those it ships for another card of the chip.

    Raises ValueError naming a file that cannot be read.
    """
    tables: dict[str, Any] = {"experts": {}, "linear": {}}
    for path in (
        *_of_same_chip(device_name, triton_version),
        _find_shipped(device_name, triton_version),
        user_file(device_name, triton_version),
    ):
        if path is None or not path.exists():
            continue
        if path.name != _file_name(device_name, triton_version):
            log.info(
                "tiles of %s are used on %s, Triton %s", path.name, device_name, triton_version
            )
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


def _of_same_chip(device_name: str, triton_version: str) -> list[Path | None]:
    """What is shipped for other cards."""
    if not device_name.startswith(_SAME_CHIP):
        return []
    prefixes = tuple(_in_file_names(name) for name in _SAME_CHIP)
    names = sorted({path.name.partition("--")[0] for path in _SHIPPED.glob("*.json")})
    others = [each for each in names if each.startswith(prefixes)]
    own = _in_file_names(device_name)
    return [_find_shipped(each, triton_version) for each in others if each != own]


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
    return f"{_in_file_names(device_name)}--triton-{triton_version}.json"


def _in_file_names(device_name: str) -> str:
    return device_name.replace(" ", "-")
