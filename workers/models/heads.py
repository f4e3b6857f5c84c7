"""What lies between the projection of q, k and v and attention: a module, and plain torch.

The functions are the oracle of `workers.attention.kernels.qk_rope` and `qk_squares`. T tokens, S
parts, N query heads, K key/value heads (both of this rank), D head_dim of q and k, V of v, W all of
a token.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from moe.base.checkpoint_slice import CheckpointSlice, part
from moe.base.context import KernelContext
from workers.attention.head_options import HeadOptions
from workers.attention.kernels.qk_rope import qk_rope
from workers.attention.kernels.qk_squares import qk_squares
from workers.attention.kv_cache import LayerCache
from workers.attention.layer import AttentionBatch
from workers.attention.spec import AttentionSpec
from workers.layers.linear import ShardRows
from workers.layers.norm import Norm
from workers.layers.rotary import RotaryEmbedding, rotate
from workers.models.base import BuildContext

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Norms = tuple[Norm, Norm]
Angles = tuple[torch.Tensor, torch.Tensor]


class QkvHeads(nn.Module):
    """A layer's norms and rotation of this rank's heads of q and k.

    Args:
        norm: that of q and k, if the spec has one.
        rotary: of ``spec.rope``; None where that is.
        q_rows, k_rows: which this rank has of all ranks' q and k.
        counts_keys: no other rank that has these KV heads counts their squares.
    """

    def __init__(
        self,
        spec: AttentionSpec,
        build: BuildContext,
        eps: float,
        norm: type[Norm],
        rotary: RotaryEmbedding | None,
        q_rows: ShardRows,
        k_rows: ShardRows,
        *,
        counts_keys: bool,
    ) -> None:
        super().__init__()
        self.groups, self.dtype, self.eps = build.groups, build.dtype, eps
        self.options = HeadOptions.of(spec)
        self.rotary = rotary
        self.rows = (q_rows, k_rows)
        self.widths = (q_rows.stop - q_rows.start, k_rows.stop - k_rows.start)
        self.head_dim = spec.head_dim
        self.num_heads = (self.widths[0] // spec.head_dim, self.widths[1] // spec.head_dim)
        self.counts_keys = counts_keys
        self.q_norm: Norm | None = None
        self.k_norm: Norm | None = None
        if spec.qk_norm != "none":
            sizes = self.widths if spec.qk_norm == "all_heads" else (spec.head_dim,) * 2
            self.q_norm, self.k_norm = (
                norm(size, eps, build.dtype, build.device) for size in sizes
            )

    @property
    def norms(self) -> Norms | None:
        """Those of q and k."""
        if self.q_norm is None or self.k_norm is None:
            return None
        return self.q_norm, self.k_norm

    def plain(
        self, qkv_TW: torch.Tensor, bias_W: torch.Tensor | None, positions_T: torch.Tensor
    ) -> Heads:
        """q, k and v as attention takes them, in plain torch."""
        heads = split_heads(qkv_TW, bias_W, self.num_heads, self.head_dim)
        squares_T2 = None
        if self.options.norm == "all_heads":
            squares_T2 = squares(heads)
            if not self.counts_keys:
                squares_T2[:, 1] = 0
            squares_T2 = self.groups.all_reduce(squares_T2)
        angles = None if self.rotary is None else self.rotary(positions_T)
        return finish_heads(heads, self.norms, angles, self.options, squares_T2)

    def forward(
        self,
        qkv_STW: torch.Tensor,
        bias_W: torch.Tensor | None,
        cache: LayerCache,
        batch: AttentionBatch,
        context: KernelContext,
    ) -> torch.Tensor:
        """By kernels: q ``[T, N, D]`` in workspace, k and v in the cache."""
        T = qkv_STW.shape[1]
        norms, rotary = self.norms, self.rotary
        out_q_TND = context.workspace.take("q", (T, self.num_heads[0], self.head_dim), self.dtype)
        squares_T2 = None
        if self.options.norm == "all_heads":
            squares_T2 = qk_squares(
                qkv_STW,
                self.widths,
                bias_W,
                out_q_TND,
                out_T2=context.workspace.take("qk_squares", (T, 2), torch.float32),
                counts_keys=self.counts_keys,
                pdl=context.pdl,
            )
            squares_T2 = self.groups.all_reduce(squares_T2)
        return qk_rope(
            qkv_STW,
            None if norms is None else norms[0].weight,
            None if norms is None else norms[1].weight,
            self.eps,
            None if rotary is None else rotary.cos,
            None if rotary is None else rotary.sin,
            batch.positions_T,
            batch.slots_T,
            batch.tables,
            cache,
            out_q_TND=out_q_TND,
            options=self.options,
            bias_W=bias_W,
            squares_T2=squares_T2,
            pdl=context.pdl,
        )

    def checkpoint_slices(self, *prefixes: str) -> Iterator[CheckpointSlice]:
        """The norms', whose names are the prefixes, each with a dot."""
        if self.norms is None:
            return
        for norm, prefix, rows in zip(self.norms, prefixes, self.rows, strict=True):
            if self.options.norm == "all_heads":
                yield part(f"{prefix}weight", (rows.total,), 0, rows.start, norm.weight)
            else:
                yield from norm.checkpoint_slices(prefix)


def split_heads(
    qkv_TW: torch.Tensor, bias_W: torch.Tensor | None, num_heads: tuple[int, int], head_dim: int
) -> Heads:
    """q ``[T, N, D]``, k ``[T, K, D]`` and v ``[T, K, V]`` with their bias, rounded once.

    Args:
        num_heads: N, K.
    """
    if bias_W is not None:
        qkv_TW = (qkv_TW.float() + bias_W.float()).to(qkv_TW.dtype)
    N, K = num_heads
    q, k = N * head_dim, K * head_dim
    q_TW, k_TW, v_TW = qkv_TW.split([q, k, qkv_TW.shape[1] - q - k], dim=1)
    return (
        q_TW.unflatten(1, (N, head_dim)),
        k_TW.unflatten(1, (K, head_dim)),
        v_TW.unflatten(1, (K, -1)),
    )


def squares(heads: Heads) -> torch.Tensor:
    """This rank's sums of squares of q and k ``[T, 2]``, fp32."""
    sums = [each.float().square().sum(dim=(1, 2)) for each in heads[:2]]
    return torch.stack(sums, dim=1)


def finish_heads(
    heads: Heads,
    norms: Norms | None,
    angles: Angles | None,
    options: HeadOptions,
    squares_T2: torch.Tensor | None = None,
) -> Heads:
    """Normed, clipped and turned.

    Args:
        norms: None: there are none.
        angles: what `RotaryEmbedding` gives for the tokens' positions; None: nothing is turned.
        squares_T2: those of all ranks, for a norm of all heads.
    """
    q_TND, k_TKD, v_TKV = heads
    if norms is not None and options.norm == "head":
        q_TND, k_TKD = norms[0](q_TND), norms[1](k_TKD)
    if norms is not None and options.norm == "all_heads":
        assert squares_T2 is not None
        widths = options.norm_widths or (q_TND[0].numel(), k_TKD[0].numel())
        q_TND, k_TKD = (
            _norm_all(x, norm, squares_T2[:, index] / widths[index])
            for index, (x, norm) in enumerate(zip((q_TND, k_TKD), norms, strict=True))
        )
    if options.clip is not None:
        clip = options.clip
        q_TND, k_TKD, v_TKV = (each.clamp(-clip, clip) for each in (q_TND, k_TKD, v_TKV))
    if angles is not None:
        interleaved = options.interleaved
        q_TND, k_TKD = (rotate(each, *angles, interleaved=interleaved) for each in (q_TND, k_TKD))
    if norms is not None and options.norm == "head_after_rotary":
        q_TND, k_TKD = norms[0](q_TND), norms[1](k_TKD)
    return q_TND, k_TKD, v_TKV


def _norm_all(x_TND: torch.Tensor, norm: Norm, mean_square_T: torch.Tensor) -> torch.Tensor:
    """RMSNorm over more heads than these, cast before the weight and after it."""
    scale_T11 = torch.rsqrt(mean_square_T + norm.eps)[:, None, None]
    scaled = (x_TND.float() * scale_T11).to(x_TND.dtype)
    normed: torch.Tensor = norm.weight.view(x_TND.shape[1:]) * scaled
    return normed
