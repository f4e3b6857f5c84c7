"""Attention's kernels alone, over a bf16 cache and over an FP8 one.

``python -m benchmarks.attention [--heads 32 4 128] [--batch-sizes 1 8 32 64 128 256]
[--contexts 1024 8192] [--prefill 1024 8192] [--behind 0 8192] [--sweep]``

Every launch of a case is one of a chain in a CUDA graph and reads a cache of its own, so that L2 is
no help. A prefill is prompts of up to 1,024 tokens, each behind so many cached ones. ``--sweep``
tries other tiles for the FP8 cache and names the fastest. Needs one CUDA device.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from benchmarks import report
from benchmarks.tiles.timing import REFUSALS, Call, num_copies, time_us
from workers.attention.kernels.decode_attention import DecodeWorkspace, decode_attention
from workers.attention.kernels.prefill_attention import PrefillWorkspace, prefill_attention
from workers.attention.kv_cache import FP8, CacheSizes, KVCache, LayerCache
from workers.attention.plan import (
    AttentionKind,
    DecodeTiles,
    PrefillTiles,
    decode_capacity,
    decode_tiles,
    plan_decode,
    prefill_tiles,
)
from workers.attention.prefill_split import SPLIT_FIELDS, max_splits, tile_columns
from workers.rows import StepRows
from workers.step.roofline import device_ceilings

_BLOCK_SIZE = 16
_PROMPT = 1024  # most tokens of a prompt
_CACHES = {"bfloat16": torch.bfloat16, "fp8_e4m3": FP8}


class Heads(NamedTuple):
    """Query heads, key heads, and numbers of each."""

    num: int
    kv: int
    dim: int


class Case:
    """A step's attention in one layer: rows of so many tokens behind so many cached ones.

    Args:
        rows: (cached, tokens) of each; a step of single tokens is one of decodes.
    """

    def __init__(
        self, name: str, rows: Sequence[tuple[int, int]], heads: Heads, device: torch.device
    ) -> None:
        self.name, self.heads, self.device = name, heads, device
        positions, num_tokens = np.array(rows, dtype=np.int32).T
        self.rows = StepRows(
            slots=np.arange(len(rows), dtype=np.int32),
            positions=positions,
            num_tokens=num_tokens,
            first_token=np.cumsum(num_tokens, dtype=np.int32) - num_tokens,
            draws=np.ones(len(rows), dtype=bool),
            lengths=positions + num_tokens,
        )
        self.decodes = bool((num_tokens == 1).all())
        self.num_tokens = int(num_tokens.sum())
        blocks = -(-int(self.rows.lengths.max()) // _BLOCK_SIZE)
        self.num_blocks = len(rows) * blocks
        shape = (self.num_tokens, heads.num, heads.dim)
        self.q_TND = torch.randn(shape, dtype=torch.bfloat16, device=device)
        self.out_TND = torch.empty_like(self.q_TND)
        self.tables = torch.randperm(self.num_blocks, device=device).int().view(-1, blocks)

    def layers(self, dtype: torch.dtype, num_layers: int) -> list[LayerCache]:
        """Caches of made-up entries."""
        sizes = CacheSizes(
            num_layers=num_layers,
            block_size=_BLOCK_SIZE,
            num_kv_heads=self.heads.kv,
            head_dim=self.heads.dim,
            v_head_dim=self.heads.dim,
            dtype=dtype,
        )
        layers = KVCache(sizes, self.num_blocks, self.device).layers
        for layer in layers:
            for entries in (layer.keys, layer.values):
                if layer.scales is None:
                    entries.normal_()
                else:
                    entries.view(torch.uint8).random_(0, 0x78)  # 0 to 256
            if layer.scales is not None:
                layer.scales.fill_(2.0**-6)
        return layers

    def cached_bytes(self, dtype: torch.dtype) -> int:
        """Of the keys and values that a launch reads."""
        entry = self.heads.dim * dtype.itemsize + (2 if dtype == FP8 else 0)
        return 2 * self.heads.kv * entry * int(self.rows.lengths.sum())

    def products(self) -> int:
        """Multiplications of a launch, each with its addition."""
        n, p = (each.astype(np.int64) for each in (self.rows.num_tokens, self.rows.positions))
        return 2 * self.heads.num * self.heads.dim * int((n * p + n * (n + 1) // 2).sum())

    def default_tiles(self, dtype: torch.dtype) -> DecodeTiles | PrefillTiles:
        """Of the product."""
        choose = decode_tiles if self.decodes else prefill_tiles
        return choose(self.num_tokens, fp8=dtype == FP8, width=self.heads.dim)

    def candidates(self) -> Iterator[DecodeTiles | PrefillTiles]:
        """Others for an FP8 cache, which the same plan goes with."""
        tiles = self.default_tiles(FP8)
        registers = (None, 128) if tiles.num_warps == 8 else (None, 168, 128)
        for num_warps, num_stages, most in itertools.product((4, 8), (2, 3, 4), registers):
            change = {"num_warps": num_warps, "num_stages": num_stages, "max_registers": most}
            for size in (64, 128):
                own = {"tile": size} if isinstance(tiles, DecodeTiles) else {"block_n": size}
                yield dataclasses.replace(tiles, **change, **own)  # type: ignore[arg-type]

    def calls(
        self, layers: Sequence[LayerCache], tiles: DecodeTiles | PrefillTiles, num_cores: int
    ) -> list[Call]:
        """A launch a layer; all write to the same place."""
        pdl = self.device.type == "cuda"
        scale = self.heads.dim**-0.5
        options = {"scale": scale, "out": self.out_TND, "pdl": pdl, "tiles": tiles}
        launch: Call
        if isinstance(tiles, DecodeTiles):
            plan, workspace = self._decode_plan(tiles, num_cores)
            launch = functools.partial(decode_attention, workspace=workspace, **options)
        else:
            plan, parts = self._prefill_plan(tiles, num_cores)
            launch = functools.partial(prefill_attention, workspace=parts, **options)
        return [functools.partial(launch, self.q_TND, each, self.tables, plan) for each in layers]

    def _decode_plan(
        self, tiles: DecodeTiles, num_cores: int
    ) -> tuple[torch.Tensor, DecodeWorkspace]:
        num, kv, dim = self.heads
        capacity = decode_capacity(self.num_tokens, kv, num_cores)
        chunks = plan_decode(self.rows.lengths, self.rows.slots, capacity, tiles.unit)
        workspace = DecodeWorkspace.allocate(self.num_tokens, capacity, num, kv, dim, self.device)
        return torch.from_numpy(chunks).to(self.device), workspace

    def _prefill_plan(
        self, tiles: PrefillTiles, num_cores: int
    ) -> tuple[torch.Tensor, PrefillWorkspace | None]:
        num, kv, dim = self.heads
        kind = AttentionKind(None, num)
        columns = tile_columns(
            self.rows, 0, kind=kind, kv_heads=kv, num_cores=num_cores, shape=None
        )
        plan = torch.from_numpy(columns).to(self.device)
        if columns.shape[1] != SPLIT_FIELDS:
            return plan, None
        shape = (max_splits(kv, num_cores), kv, tiles.block_m, dim)
        return plan, PrefillWorkspace(
            partials_CKMV=torch.empty(shape, device=self.device),
            lse_CKM=torch.empty(shape[:3], device=self.device),
            finished_CK=torch.zeros(shape[:2], dtype=torch.int32, device=self.device),
        )


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__)
    parser.add_argument("--heads", type=int, nargs=3, default=[32, 4, 128], metavar="N")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 8, 32, 64, 128, 256])
    parser.add_argument("--contexts", type=int, nargs="*", default=[1024, 8192])
    parser.add_argument("--prefill", type=int, nargs="*", default=[1024, 8192], help="tokens")
    parser.add_argument("--behind", type=int, nargs="*", default=[0, 8192], help="cached tokens")
    parser.add_argument("--sweep", action="store_true", help="other tiles for FP8, too")
    report.add_flags(parser)
    flags = parser.parse_args()
    device = torch.device("cuda", torch.cuda.current_device())
    wanted = [
        *(
            (f"decode B={B} at {L}", [(L - 1, 1)] * B)
            for L in flags.contexts
            for B in flags.batch_sizes
        ),
        *((f"prefill {T} behind {P}", prompts(T, P)) for P in flags.behind for T in flags.prefill),
    ]
    rows: list[report.Row] = []
    with report.progress() as bar:
        task = bar.add_task("cases", total=len(wanted))
        for name, lengths in wanted:
            rows += measure(Case(name, lengths, Heads(*flags.heads), device), sweep=flags.sweep)
            bar.advance(task)
    name = torch.cuda.get_device_name()
    report.show(f"Attention, {'/'.join(map(str, flags.heads))} heads, {name}", rows, flags.json)


def prompts(tokens: int, behind: int) -> list[tuple[int, int]]:
    """Rows of prompts, all but the last as long as may be."""
    return [(behind, min(_PROMPT, tokens - first)) for first in range(0, tokens, _PROMPT)]


def measure(case: Case, *, sweep: bool) -> list[report.Row]:
    """A row a cache, and of FP8 one for the fastest tiles found."""
    properties = torch.cuda.get_device_properties(case.device)
    ceilings = device_ceilings(properties.name)
    rows: list[report.Row] = []
    for name, dtype in _CACHES.items():
        cached = case.cached_bytes(dtype)
        free, _ = torch.cuda.mem_get_info(case.device)
        copies = num_copies(cached, cached, properties.L2_cache_size, free)
        layers = case.layers(dtype, copies)
        floor = 1e6 * ceilings.least_seconds(cached, 2 * case.products()) if ceilings else 0.0
        default = case.default_tiles(dtype)
        tried = {default: 0.0}
        for tiles in [default, *(case.candidates() if sweep and dtype == FP8 else ())]:
            try:
                calls = case.calls(layers, tiles, properties.multi_processor_count)
                tried[tiles] = time_us(calls, floor)
            except REFUSALS:
                if tiles == default:
                    raise
        for tiles in {default: None, min(tried, key=lambda each: tried[each]): None}:
            row: report.Row = {"case": case.name, "cache": name, "µs": tried[tiles]}
            row |= {"floor µs": floor, "share %": 100 * floor / tried[tiles] if floor else None}
            first = rows[0]["µs"] if rows else tried[tiles]
            rows.append(row | {"of bf16's": tried[tiles] / first, "tiles": _words(tiles, default)})
        del layers
        torch.cuda.empty_cache()
    return rows


def _words(tiles: DecodeTiles | PrefillTiles, default: DecodeTiles | PrefillTiles) -> str:
    """What is not as the product has it."""
    own = dataclasses.asdict(tiles)
    usual = dataclasses.asdict(default)
    return " ".join(f"{name}={own[name]}" for name in own if own[name] != usual[name]) or "default"


if __name__ == "__main__":
    main()
