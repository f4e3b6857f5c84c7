"""Token embedding, replicated, and the vocabulary-parallel head.

Shapes: T tokens, D rows that draw, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from moe.checkpoint import CheckpointSlice
from workers.distributed import Groups


class Embedding(nn.Module):
    """Rows of a ``[V, H]`` table, whole on every rank."""

    def __init__(
        self, vocab_size: int, hidden_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.empty(vocab_size, hidden_size, dtype=dtype, device=device), requires_grad=False
        )

    def forward(self, ids_T: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids_T, self.weight)

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        """This layer's tensor; ``prefix`` ends with the layer's own name and a dot."""
        yield CheckpointSlice(
            name=f"{prefix}weight",
            shape=tuple(self.weight.shape),
            index=(slice(None), slice(None)),
            target=self.weight,
        )


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
    ) -> None:
        super().__init__()
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

    def forward(self, hidden_DH: torch.Tensor) -> torch.Tensor:
        """Logits ``[D, V]`` in fp32, the same on every rank of the group."""
        logits = F.linear(hidden_DH, self.weight)
        logits = F.pad(logits, (0, self.share - logits.shape[1]))
        return self.groups.gather_columns(logits)[:, : self.vocab_size].float()

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        """This layer's tensor, none when it is the embedding's; ``prefix`` ends with a dot."""
        if self.tied:
            return
        yield CheckpointSlice(
            name=f"{prefix}weight",
            shape=(self.vocab_size, self.hidden_size),
            index=(slice(self.start, self.stop), slice(None)),
            target=self.weight,
        )
