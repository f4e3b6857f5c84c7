"""From what a model returned for a step to its tokens and log-probabilities.

Owns the order head → log-probabilities → logits processor → draw. Knows nothing of the cache,
graphs or the way back to the host.
Shapes: T tokens of the step, D rows that draw, S slots, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from workers.sampling.logits_processor import LogitsProcessor
from workers.sampling.logprobs import LogprobHandle, Logprobs
from workers.sampling.torch_sampler import sample
from workers.sampling.triton_sampler import TritonSampler
from workers.step.batch import DeviceBatch


class TokenSampler:
    """Draws the tokens of steps on one rank.

    Args:
        head: the model's, from hidden states ``[D, H]`` to logits ``[D, V]``.
        logits_processor: that of the builder of the batches.
        last_token_S: int32, takes the token of each slot that draws, for the next step.
        out_tokens_S: int32, takes a step's tokens, in order of the rows that draw.
        reports: whether this rank's results carry the tokens (the first of a tp group).
        triton: draws by kernels; None for plain torch.
    """

    def __init__(
        self,
        head: Callable[[torch.Tensor], torch.Tensor],
        logits_processor: LogitsProcessor,
        *,
        last_token_S: torch.Tensor,
        out_tokens_S: torch.Tensor,
        reports: bool,
        triton: TritonSampler | None = None,
    ) -> None:
        self.head = head
        self.logits_processor = logits_processor
        self.last_token_S = last_token_S
        self.tokens_S = out_tokens_S
        self.reports = reports
        self.triton = triton
        self.logprobs = Logprobs(last_token_S.device)

    def draw(self, out: torch.Tensor, batch: DeviceBatch) -> LogprobHandle | None:
        """Draw from what `StepForward` returned, by the sampling metadata of the rows.

        Returns:
            Log-probabilities of the drawn tokens; None where no row reports any.
        """
        if batch.sampling is None:
            return None
        logits_DV = out if batch.all_draw else self._logits(out, batch)
        metadata = batch.metadata
        if metadata is None:
            self._draw(logits_DV, batch)
            return None
        logprobs = self.logprobs.before_draws(logits_DV, metadata.draws) if self.reports else None
        processed = self.logits_processor.process(logits_DV, metadata, self.last_token_S)
        self._draw(processed.logits_DV, batch)
        tokens_D = self.tokens_S[: len(logits_DV)]
        self.logits_processor.record_draws(processed, tokens_D)
        return None if logprobs is None else self.logprobs.of_draws(logprobs, tokens_D)

    def prompt_logprobs(self, out: torch.Tensor, batch: DeviceBatch) -> LogprobHandle | None:
        """From the hidden states that `StepForward` returned; drawing leaves them as they are."""
        if batch.metadata is None or not batch.metadata.prompts:
            return None
        return self.logprobs.of_prompts(
            out, batch.metadata.prompts, self.head, reports=self.reports
        )

    def _logits(self, hidden_TH: torch.Tensor, batch: DeviceBatch) -> torch.Tensor:
        """Logits ``[D, V]`` of the rows that draw."""
        if batch.last_D is None:
            return self.head(hidden_TH[: len(batch.draw_slots_D)])
        return self.head(hidden_TH[batch.last_D])

    def _draw(self, logits_DV: torch.Tensor, batch: DeviceBatch) -> None:
        """Tokens to `tokens_S` and to their slots' last tokens. A row without a finite token goes
        on with token 0 until the frontend hears of it and ends it."""
        assert batch.sampling is not None
        out_D = self.tokens_S[: len(logits_DV)]
        last_token_S, slots_D = self.last_token_S, batch.draw_slots_D
        if self.triton is not None:
            self.triton.draw(
                logits_DV, batch.sampling, slots_D, last_token=last_token_S, out_D=out_D
            )
            return
        out_D.copy_(sample(logits_DV, batch.sampling))
        last_token_S[slots_D] = out_D.clamp(min=0)
