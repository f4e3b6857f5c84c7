"""The GEMMs whose tiles are timed: inputs, weights in so many copies that the L2 cache is no help,
launches through the product's own launchers, and the check against plain torch.

Does not know how launches are timed, nor which tiles are worth it. T tokens, K experts per token,
P = T·K routes, E local experts, H hidden, I expert width, C copies.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.gemm_shapes import ExpertShape, LinearShape
from benchmarks.tiles.timing import Call
from moe.base.context import KernelContext
from moe.base.fp8_format import Fp8Format
from moe.base.gemm import linear_parts
from moe.base.int4_format import Int4Format
from moe.base.promoted_dot import fits, narrow_fits
from moe.base.quantize import empty_weight
from moe.base.quantize_rows import quantize_rows
from moe.base.quantized import GROUP, Quantized, take_quantized
from moe.base.tiles import FP8_NAME, INT4_NAME, MANY_ROWS, ExpertTiles, Tiles, TileTable
from moe.base.weight import Weight
from moe.base.weight_format import WeightFormat
from moe.base.workspace import Workspace
from moe.kernels.align import Alignment, align, allocate_alignment
from moe.kernels.experts import expert_routes
from moe.kernels.grouped import down, gate_up
from moe.kernels.narrow_fp8 import (
    down_narrow,
    gate_up_narrow,
    gate_up_narrow_fits,
)
from moe.kernels.vector import down_vector, gate_up_vector
from moe.kernels.wide_fp8 import down_fp8, gate_up_fits, gate_up_fp8
from moe.placement import ExpertPlacement
from workers.step.roofline import Device

_TOLERANCE = 2**-6
_FP8_TOLERANCE = 2**-4 + 2**-8  # of a result of eight bits


class ExpertProblem:
    """The expert GEMMs of one number of tokens, routed at random to distinct experts.

    Args:
        w13: [C,E,2I,H]; w2: [C,E,H,I].
    """

    ops = ("gate_up", "down")

    def __init__(
        self,
        shape: ExpertShape,
        tokens: int,
        w13: Weight,
        w2: Weight,
        context: KernelContext,
    ) -> None:
        self.shape, self.w13, self.w2, self.context = shape, w13, w2, context
        device, dtype, routes = w13.values.device, _dtype(context), tokens * shape.top_k
        self.x_TH = torch.randn(tokens, shape.hidden, device=device, dtype=dtype)
        self.inner_PI = torch.randn(routes, shape.width, device=device, dtype=dtype)
        self.out_PH = torch.empty(routes, shape.hidden, device=device, dtype=dtype)
        scores = torch.rand(w13.shape[0], tokens, shape.num_experts, device=device)
        self.ids_CTK = scores.argsort(dim=-1)[..., : shape.top_k].int().contiguous()
        placement = ExpertPlacement(
            num_experts=shape.num_experts,
            num_ranks=-(-shape.num_experts // shape.num_local),
            rank=0,
        )
        self.local_map_E = placement.expert_map(device)
        self.map_E = None if shape.num_local == shape.num_experts else self.local_map_E
        self.weights_TK = torch.ones(tokens, shape.top_k, device=device)
        self._aligned: dict[int, list[Alignment]] = {}
        is_fp8 = w13.kind == FP8_NAME and dtype.itemsize == 2
        self.many = tokens >= MANY_ROWS and is_fp8
        self.quantized_TH = _quantized(self.x_TH, GROUP) if is_fp8 else None
        self._inner: dict[int, Quantized] = {}  # by group

    def calls(self, op: str, tiles: Tiles | None) -> list[Call]:
        """One launch of `op` a copy of the weights."""
        assert tiles is not None
        launch = self._gate_up if op == "gate_up" else self._down
        if tiles.block_m > 1:
            self.align_calls(tiles.block_m)
        return [functools.partial(launch, tiles, copy) for copy in range(self.w13.shape[0])]

    def entry_calls(self, entry: ExpertTiles) -> list[Call]:
        """All that the experts of a layer launch, a copy of the weights."""
        key = self.shape.key(self.w2.kind or self.context.tiles.dtype)
        context = _with_tables(self.context, experts={key: {len(self.x_TH): entry}})
        return [
            functools.partial(
                expert_routes,
                self.x_TH,
                self.weights_TK,
                ids_TK,
                self.w13[copy],
                self.w2[copy],
                self.map_E,
                context,
                self.quantized_TH,
            )
            for copy, ids_TK in enumerate(self.ids_CTK)
        ]

    def align_calls(self, block_m: int) -> list[Call]:
        """Sorting each copy's routes, into the buffers from which `calls` read them."""
        E, P = self.shape.num_local, self.out_PH.shape[0]
        if block_m not in self._aligned:
            self._aligned[block_m] = [
                align(ids_TK.flatten(), self.map_E, E, block_m) for ids_TK in self.ids_CTK
            ]
        out = allocate_alignment(P, E, block_m, self.x_TH.device)
        return [
            functools.partial(align, ids_TK, self.map_E, E, block_m, out=out, pdl=self.context.pdl)
            for ids_TK in self.ids_CTK
        ]

    def floor_us(self, op: str, device: Device | None) -> float:
        """Least time of one launch with these routes; 0 where the ceilings are not known."""
        if device is None:
            return 0.0
        local_CP = self.local_map_E[self.ids_CTK.flatten(1).long()]
        hits = statistics.mean(len(ids.unique()) - int((ids < 0).any()) for ids in local_CP)
        routes = float((local_CP >= 0).sum()) / len(local_CP)
        weights = (2 if op == "gate_up" else 1) * self.shape.width * self.shape.hidden
        moved = hits * weights * _bytes_of_one(self.w13)
        return 1e6 * device.least_seconds(moved, 2 * routes * weights)

    def is_right(self, op: str, tiles: Tiles | None) -> bool:
        """Whether the first copy's result is that of plain torch in fp32."""
        assert tiles is not None
        local_P = self.local_map_E[self.ids_CTK[0].flatten().long()]
        routes = (local_P >= 0).nonzero().flatten()
        rows = routes  # of `inner`: by route, or in order of expert
        if tiles.block_m > 1:
            self.align_calls(tiles.block_m)
            rows = torch.arange(len(routes), device=routes.device)
            routes = self._aligned[tiles.block_m][0].order[: len(routes)].long()
        if op == "gate_up" and self._gate_up_of_8(tiles):
            assert self.quantized_TH is not None
            self._inner.pop(tiles.block_n, None)
            self.calls(op, tiles)[0]()
            x_TH, result = self.quantized_TH.plain(), self._inner_of(tiles.block_n).plain()[rows]
            expected = self._expected_inner(x_TH, routes, local_P)
            return _close(result, expected, _FP8_TOLERANCE)
        if op == "gate_up":
            self.inner_PI.fill_(torch.nan)
            self.calls(op, tiles)[0]()
            expected, result = (
                self._expected_inner(self.x_TH, routes, local_P),
                self.inner_PI[rows],
            )
            self.inner_PI.normal_()
        else:
            self.out_PH.fill_(torch.nan)
            self.calls(op, tiles)[0]()
            inner = self._quantized_inner(tiles)
            inner_PI = self.inner_PI if inner is None else inner.plain()
            expected = self._expected_out(inner_PI[rows], routes, local_P)
            result = self.out_PH[routes]
        return _close(result, expected)

    def _expected_inner(
        self, x_TH: torch.Tensor, routes: torch.Tensor, local_P: torch.Tensor
    ) -> torch.Tensor:
        out = torch.empty(len(routes), self.shape.width, device=routes.device)
        for expert in range(self.shape.num_local):
            mine = local_P[routes] == expert
            x = x_TH[routes[mine] // self.shape.top_k].float()
            gate, up = (x @ _matrix(self.w13[0][expert]).t()).chunk(2, dim=1)
            out[mine] = F.silu(gate) * up
        return out

    def _expected_out(
        self, inner_RI: torch.Tensor, routes: torch.Tensor, local_P: torch.Tensor
    ) -> torch.Tensor:
        out = torch.empty(len(routes), self.shape.hidden, device=routes.device)
        for expert in range(self.shape.num_local):
            mine = local_P[routes] == expert
            out[mine] = inner_RI[mine].float() @ _matrix(self.w2[0][expert]).t()
        return out

    def _gate_up(self, tiles: Tiles, copy: int) -> None:
        x, w13, out, pdl = self.x_TH, self.w13[copy], self.inner_PI, self.context.pdl
        if tiles.block_m == 1:
            gate_up_vector(x, w13, self.ids_CTK[copy], self.map_E, tiles, out_PI=out, pdl=pdl)
            return
        aligned = self._aligned[tiles.block_m][copy]
        if launch := self._gate_up_of_8(tiles):
            own = self._inner_of(tiles.block_n)
            launch(self.quantized_TH, w13, aligned, self.shape.top_k, tiles, out_PI=own, pdl=pdl)
        else:
            gate_up(x, w13, aligned, self.shape.top_k, tiles, out_PI=out, pdl=pdl)

    def _gate_up_of_8(self, tiles: Tiles) -> Callable[..., None] | None:
        """The launcher of activations of eight bits that takes these tiles."""
        if self.quantized_TH is None:
            return None
        if gate_up_narrow_fits(tiles, self.w13[0]):
            return gate_up_narrow
        return gate_up_fp8 if self.many and gate_up_fits(tiles, self.w13[0]) else None

    def _down(self, tiles: Tiles, copy: int) -> None:
        inner, w2, out, pdl = self.inner_PI, self.w2[copy], self.out_PH, self.context.pdl
        if tiles.block_m == 1:
            down_vector(inner, w2, self.ids_CTK[copy], self.map_E, tiles, out_PH=out, pdl=pdl)
            return
        aligned, quantized = self._aligned[tiles.block_m][copy], self._quantized_inner(tiles)
        if quantized is not None:
            launch = down_narrow if tiles.swap else down_fp8
            launch(quantized, w2, aligned, tiles, out_PH=out, pdl=pdl)
        else:
            down(inner, w2, aligned, tiles, out_PH=out, pdl=pdl)

    def _quantized_inner(self, tiles: Tiles) -> Quantized | None:
        """What a launch of `down` reads in place of `inner_PI`, if it does: in groups that are as
        deep as its steps."""
        group = min(tiles.block_k, GROUP)
        is_narrow = self.quantized_TH is not None and narrow_fits(tiles, self.w2[0], group)
        if not is_narrow and not (self.many and fits(tiles, self.w2[0], group)):
            return None
        return self._inner_of(group)

    def _inner_of(self, group: int) -> Quantized:
        """`inner_PI` in eight bits, or the memory for it."""
        if group not in self._inner:
            self._inner[group] = _quantized(self.inner_PI, group)
        return self._inner[group]


class LinearProblem:
    """A dense GEMM of one number of tokens. `w` is [C,N,K]."""

    ops = ("linear",)

    def __init__(self, shape: LinearShape, tokens: int, w: Weight, context: KernelContext) -> None:
        self.shape, self.tokens, self.w, self.context = shape, tokens, w, context
        device, dtype = w.values.device, _dtype(context)
        self.x = torch.randn(tokens, shape.inputs, device=device, dtype=dtype)
        is_fp8 = w.kind == FP8_NAME and dtype.itemsize == 2
        self.quantized = _quantized(self.x, GROUP) if is_fp8 else None

    def calls(self, op: str, tiles: Tiles | None) -> list[Call]:
        """One launch a copy of the weights."""
        key = self.shape.key(self.w.kind or self.context.tiles.dtype)
        context = _with_tables(self.context, linear={key: {self.tokens: tiles}})
        return [
            functools.partial(
                linear_parts,
                self.x,
                self.w[copy],
                context,
                "timed",
                quantized_MK=self.quantized,
            )
            for copy in range(self.w.shape[0])
        ]

    def floor_us(self, op: str, device: Device | None) -> float:
        """Least time of one launch; 0 where the ceilings are not known."""
        if device is None:
            return 0.0
        size = self.shape.outputs * self.shape.inputs
        return 1e6 * device.least_seconds(size * _bytes_of_one(self.w), 2 * self.tokens * size)

    def charge_us(self, tiles: Tiles | None, device: Device | None) -> float:
        """What the next kernel pays for reading several fp32 parts in place of one result."""
        if device is None or tiles is None or tiles.splits == 1:
            return 0.0
        more = 4 * tiles.splits - self.x.itemsize
        return 1e6 * more * self.tokens * self.shape.outputs / device.bytes_per_second

    def is_right(self, op: str, tiles: Tiles | None) -> bool:
        """Whether the first copy's result is that of plain torch in fp32."""
        result = self.calls(op, tiles)[0]()
        seen = self.x.float()
        if self.quantized is not None and tiles is not None:
            takes = fits if self.tokens >= MANY_ROWS else narrow_fits
            seen = self.quantized.plain() if takes(tiles, self.w[0]) else seen
        return _close(result.float().sum(dim=0), seen @ _matrix(self.w[0]).t())


def make_weights(
    shape: tuple[int, ...],
    copies: int,
    dtype: torch.dtype,
    device: torch.device,
    weight_format: WeightFormat | None = None,
) -> Weight:
    """Made-up weights [C, …] as benchmarks have them; given a format, in it."""
    weight = empty_weight((copies, *shape), weight_format, dtype=dtype, device=device)
    if weight.scales is None:
        weight.values.normal_(0, 0.02)
        return weight
    if weight.kind == INT4_NAME:
        weight.values.random_()
        weight.scales.uniform_(2e-3, 6e-3)
        return weight
    for part in weight.values.flatten(0, -3):  # a copy or an expert at a time: wider ones are large
        made = torch.empty(part.shape, dtype=dtype, device=device).normal_(0, 100)
        part.copy_(made.clamp_(-448, 448))  # beyond, e4m3 has no number
    weight.scales.uniform_(1e-4, 3e-4)
    return weight


def made_format(shape: ExpertShape | LinearShape, weights: str | None) -> WeightFormat | None:
    """Of ``weights`` "fp8" or "int4": with the largest square block of scales, or group of inputs,
    of 128 at most, that the matrices of a shape have multiples of."""
    ops = ("gate_up", "down") if isinstance(shape, ExpertShape) else ("linear",)
    extents = [shape.extent(op) for op in ops]
    if weights == "fp8":
        size = math.gcd(128, *(side for extent in extents for side in extent))
        return Fp8Format(block=(size, size), stored="plain")
    if weights == "int4":
        return Int4Format(group=math.gcd(128, *(depth for _, depth in extents)))
    return None


def _bytes_of_one(weight: Weight) -> float:
    """Of a weight: of four bits with its share of a scale."""
    scales = weight.scales.nbytes if weight.scales is not None and weight.kind == INT4_NAME else 0
    return (weight.values.nbytes + scales) / weight.shape.numel()


def _dtype(context: KernelContext) -> torch.dtype:
    """Of activations."""
    dtype: torch.dtype = getattr(torch, context.tiles.dtype)
    return dtype


def _matrix(weight: Weight) -> torch.Tensor:
    """In fp32."""
    return weight.plain(torch.float32).float()


def _with_tables(context: KernelContext, **tables: Any) -> KernelContext:
    """The context with a book that has nothing but `tables`, which kernels with tiles of their own
    do not read."""
    book = context.tiles
    own = TileTable(
        dtype=book.dtype, item_size=book.item_size, shared_bytes=book.shared_bytes, **tables
    )
    return dataclasses.replace(context, tiles=own, specialized=False)


def _quantized(x_TK: torch.Tensor, group: int) -> Quantized:
    """Rows in eight bits, in memory of their own."""
    out = take_quantized(Workspace(x_TK.device), "own", (x_TK.shape[0], x_TK.shape[1]), group)
    return quantize_rows(x_TK, out=out, pdl=False)


def _close(result: torch.Tensor, expected: torch.Tensor, rtol: float = _TOLERANCE) -> bool:
    scale = float(expected.square().mean().sqrt()) if expected.numel() else 0.0
    return torch.allclose(result.float(), expected, rtol=rtol, atol=_TOLERANCE * scale)
