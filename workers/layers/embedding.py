"""Token embedding, replicated, and the vocabulary-parallel head.

Shapes: T tokens, D rows that draw, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from moe.base.checkpoint_slice import CheckpointSlice, part, whole
from moe.base.context import KernelContext
from moe.base.deferred_sum import DeferredSum
from moe.base.gemm import linear_parts
from moe.base.weight import Weight
from workers.distributed import Groups
from workers.layers.kernels.embed import embed


class Embedding(nn.Module):
    """Rows of a ``[V, H]`` table, whole on every rank.

    An id of -1 stands for the last token drawn by the token's slot; a slot of -1 is padding.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
        context: KernelContext | None = None,
    ) -> None:
        super().__init__()
        self.context = context
        self.weight = nn.Parameter(
            torch.empty(vocab_size, hidden_size, dtype=dtype, device=device), requires_grad=False
        )

    def forward(
        self, ids_T: torch.Tensor, slots_T: torch.Tensor, last_token: torch.Tensor
    ) -> torch.Tensor:
        """Rows ``[T, H]``."""
        if self.context is None:
            ids_T = torch.where(ids_T < 0, last_token[slots_T.clamp(min=0)], ids_T)
            return F.embedding(ids_T, self.weight)
        shape = (len(ids_T), self.weight.shape[1])
        out_TH = self.context.workspace.take("residual", shape, self.weight.dtype)
        return embed(ids_T, slots_T, last_token, self.weight, out_TH=out_TH, pdl=self.context.pdl)

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        """This layer's tensor; ``prefix`` ends with the layer's own name and a dot."""
        yield whole(f"{prefix}weight", self.weight)


class LMHead(nn.Module):
    """Logits over the vocabulary: each rank computes ceil(V / tp) rows, all gather.

    Args:
        tied: the embedding whose table is also the head's; None for a head of its own.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        tied: Embedding | None,
        groups: Groups,
        dtype: torch.dtype,
        device: torch.device,
        context: KernelContext | None = None,
        *,
        has_bias: bool = False,
    ) -> None:
        super().__init__()
        self.context = context
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.groups = groups
        self.share = -(-vocab_size // groups.tp_size)
        self.start = min(groups.tp_rank * self.share, vocab_size)
        self.stop = min(self.start + self.share, vocab_size)
        self.tied = tied is not None
        if tied is not None:
            self.weight = nn.Parameter(tied.weight[self.start : self.stop], requires_grad=False)
        else:
            rows = torch.empty(self.stop - self.start, hidden_size, dtype=dtype, device=device)
            self.weight = nn.Parameter(rows, requires_grad=False)
        self.bias: nn.Parameter | None = None
        if has_bias:
            bias = torch.empty(self.stop - self.start, dtype=dtype, device=device)
            self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, hidden_DH: torch.Tensor) -> torch.Tensor:
        """Logits ``[D, V]``, the same on every rank of the group; in fp32 without kernels."""
        if self.context is not None:
            return self._kernels(hidden_DH, self.context)
        logits = F.linear(hidden_DH, self.weight, self.bias)
        logits = F.pad(logits, (0, self.share - logits.shape[1]))
        return self.groups.gather_columns(logits)[:, : self.vocab_size].float()

    def _kernels(self, hidden_DH: torch.Tensor, context: KernelContext) -> torch.Tensor:
        """Logits in the dtype of the model."""
        partials_SDV = linear_parts(hidden_DH, Weight(self.weight), context, "head")
        own_DV = self.summed(partials_SDV, context)
        if self.groups.tp_size == 1:
            return own_DV
        rows, dtype, take = len(hidden_DH), hidden_DH.dtype, context.workspace.take
        padded_DV = take("head_share", (rows, self.share), dtype)
        padded_DV[:, : own_DV.shape[1]].copy_(own_DV)
        gathered = take("head_gathered", (self.groups.tp_size, rows, self.share), dtype)
        self.groups.gather_rows(padded_DV, gathered.flatten(0, 1))
        joined = take("logits", (rows, self.groups.tp_size, self.share), dtype)
        joined.copy_(gathered.transpose(0, 1))
        return joined.view(rows, -1)[:, : self.vocab_size]

    def summed(self, partials_SDV: torch.Tensor, context: KernelContext) -> torch.Tensor:
        """This rank's logits of their parts, with the bias."""
        own = DeferredSum(partials_SDV.transpose(0, 1))
        if self.bias is not None:
            own = own.plus(DeferredSum(self.bias.expand(partials_SDV.shape[1], 1, -1)))
        return own.total(context.dtype, context)

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        """This layer's tensors, less one that is the embedding's; ``prefix`` ends with a dot."""
        if not self.tied:
            shape = (self.vocab_size, self.hidden_size)
            yield part(f"{prefix}weight", shape, 0, self.start, self.weight)
        if self.bias is not None:
            yield part(f"{prefix}bias", (self.vocab_size,), 0, self.start, self.bias)
