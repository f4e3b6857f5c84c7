"""Log-probabilities of a step: of drawn and prompt tokens, and of the most likely alternatives.

Owns their computation, under the model's own distribution in fp32, and the copy to the host.
Knows nothing of how tokens are drawn. The most likely tokens are found in two rounds without
sorting the vocabulary: the k best chunks by their best token contain the k best tokens.
Shapes: N tokens, V vocabulary, K most likely tokens, C chunks, P prompt tokens, D rows that draw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from workers.sampling.options import DrawOptions, PromptSpan
from workers.staging import Staging

_CHUNK = 128
# Prompt tokens whose logits exist at once; every piece is filled up to it, so that the head's
# kernels see one shape.
PROMPT_PIECE = 128
_SPARE_WORDS = 1 << 14


class LogprobColumns(NamedTuple):
    """Columns of a StepResult."""

    logprobs: list[float]
    top_token_ids: list[int]
    top_logprobs: list[float]


@dataclasses.dataclass(frozen=True, slots=True)
class LogprobHandle:
    """Log-probabilities on their way to the host.

    Attributes:
        words: int32 [N, 1 + 2 K]: the bits of a token's log-probability and of those of the most
            likely, then their ids; readable once the step is done.
        num_top_N: how many of the most likely each token reports.
    """

    words: torch.Tensor
    num_top_N: np.ndarray

    def read(self) -> LogprobColumns:
        """The values that each token reports."""
        words = self.words.numpy()
        num_top = words.shape[1] // 2
        values, ids_NK = words[:, : 1 + num_top].view(np.float32), words[:, 1 + num_top :]
        reported_NK = np.arange(num_top) < self.num_top_N[:, None]
        return LogprobColumns(
            values[:, 0].tolist(), ids_NK[reported_NK].tolist(), values[:, 1:][reported_NK].tolist()
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DrawLogprobs:
    """The distributions of draws before the logits processor changed them.

    Attributes:
        rows_N: the draws, by their number in the step, int64.
        num_top_N: as in `LogprobHandle`.
    """

    logprobs_NV: torch.Tensor
    rows_N: torch.Tensor
    num_top_N: np.ndarray


class Logprobs:
    """Computes a rank's log-probabilities."""

    def __init__(self, device: torch.device) -> None:
        self.draws = Staging(device, _SPARE_WORDS)
        self.prompts = Staging(device, _SPARE_WORDS)

    def before_draws(
        self, logits_DV: torch.Tensor, draws: list[DrawOptions]
    ) -> DrawLogprobs | None:
        """Keep the distributions of draws that report any, from the model's own logits."""
        reporting = [draw for draw in draws if draw.options.num_logprobs]
        if not reporting:
            return None
        rows = np.array([draw.row for draw in reporting], dtype=np.int64)
        rows_N = self.draws.copy({"rows": rows})["rows"]
        return DrawLogprobs(
            logprobs_NV=_log_softmax(logits_DV.index_select(0, rows_N)),
            rows_N=rows_N,
            num_top_N=np.array([draw.options.num_logprobs - 1 for draw in reporting]),
        )

    def of_draws(self, draws: DrawLogprobs, tokens_D: torch.Tensor) -> LogprobHandle:
        """Of the drawn tokens; zeros where there is none."""
        tokens_N = tokens_D.index_select(0, draws.rows_N)
        words = _words(draws.logprobs_NV, tokens_N.clamp(min=0).long(), int(draws.num_top_N.max()))
        words.masked_fill_((tokens_N < 0)[:, None], 0)
        return LogprobHandle(_to_host(words), draws.num_top_N)

    def of_prompts(
        self,
        hidden_TH: torch.Tensor,
        prompts: list[PromptSpan],
        head: Callable[[torch.Tensor], torch.Tensor],
        *,
        reports: bool,
    ) -> LogprobHandle | None:
        """Of the prompt tokens that follow those of a step.

        Args:
            head: from hidden states to logits. Every rank of a tensor-parallel group calls it as
                often as the others.
            reports: whether this rank reports them; if not, the result is None.
        """
        num_top_N = np.repeat(
            [span.num_logprobs - 1 for span in prompts], [len(span.next_ids) for span in prompts]
        )
        num_tokens = len(num_top_N)
        columns = np.zeros((2, -(-num_tokens // PROMPT_PIECE) * PROMPT_PIECE), dtype=np.int64)
        columns[0, :num_tokens] = np.concatenate(
            [span.first + np.arange(len(span.next_ids)) for span in prompts]
        )
        columns[1, :num_tokens] = np.concatenate([span.next_ids for span in prompts])
        on = self.prompts.copy({"columns": columns})["columns"]
        pieces = []
        for tokens_N, next_ids_N in zip(*(c.split(PROMPT_PIECE) for c in on), strict=True):
            logits_NV = head(hidden_TH.index_select(0, tokens_N))
            if reports:
                pieces.append(_words(_log_softmax(logits_NV), next_ids_N, int(num_top_N.max())))
        if not reports:
            return None
        return LogprobHandle(_to_host(torch.cat(pieces)[:num_tokens]), num_top_N)


def most_likely(x_NV: torch.Tensor, num_top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest K values of each row and their ids, best first, the lower id first of equals.

    A chunk that is behind K others, by its best value and then its place, has a token behind K
    others.
    """
    padding = -x_NV.shape[1] % _CHUNK
    if padding:
        x_NV = F.pad(x_NV, (0, padding), value=float("-inf"))
    chunks_NCL = x_NV.unflatten(1, (-1, _CHUNK))
    best_NC = chunks_NCL.amax(dim=-1).sort(dim=-1, descending=True, stable=True).indices
    chunks_NK = best_NC[:, :num_top].sort(dim=-1).values
    places_NKL = chunks_NK[:, :, None] * _CHUNK + torch.arange(_CHUNK, device=x_NV.device)
    ids_NM = places_NKL.flatten(1)
    values_NM, order_NM = x_NV.gather(1, ids_NM).sort(dim=-1, descending=True, stable=True)
    return values_NM[:, :num_top], ids_NM.gather(1, order_NM[:, :num_top])


def _log_softmax(logits_NV: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits_NV, dim=-1, dtype=torch.float32)


def _words(logprobs_NV: torch.Tensor, tokens_N: torch.Tensor, num_top: int) -> torch.Tensor:
    """`LogprobHandle.words` of a token in each row; finite whatever the model gave."""
    own_N1 = logprobs_NV.gather(1, tokens_N[:, None])
    top_NK, ids_NK = most_likely(logprobs_NV, num_top)
    values = torch.cat((own_N1, top_NK), dim=1)
    values = values.masked_fill(~values.isfinite(), 0.0)
    return torch.cat((values.view(torch.int32), ids_NK.int()), dim=1)


def _to_host(words: torch.Tensor) -> torch.Tensor:
    """Start the copy."""
    if words.device.type == "cpu":
        return words
    host = torch.empty(words.shape, dtype=words.dtype, pin_memory=True)
    return host.copy_(words, non_blocking=True)
