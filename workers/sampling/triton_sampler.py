"""Drawing tokens by kernels: the GPU's counterpart of `workers.sampling.torch_sampler.sample`.

Owns the buffers and the order suppress → filter → draw, each only when a row needs it. Knows
nothing of batches.
"""

from __future__ import annotations

import torch

from workers.sampling.kernels.draw import Kept, draw
from workers.sampling.kernels.filter_logits import FilterWorkspace, filter_logits
from workers.sampling.kernels.scaled_logits import workspace_size
from workers.sampling.kernels.suppress import suppress
from workers.sampling.torch_sampler import SamplingRows


class TritonSampler:
    """Draws for at most `max_rows` rows of a vocabulary; allocates nothing afterwards."""

    def __init__(self, *, max_rows: int, vocab_size: int, device: torch.device, pdl: bool) -> None:
        self.pdl = pdl
        self.workspace = torch.empty(
            workspace_size(max_rows, vocab_size), dtype=torch.int64, device=device
        )
        self.spoilt = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self.filter_workspace = FilterWorkspace.allocate(max_rows, vocab_size, device)
        self.thresholds = torch.empty(max_rows, dtype=torch.float32, device=device)
        self.last_ids = torch.empty(max_rows, dtype=torch.int32, device=device)

    def draw(
        self,
        logits_DV: torch.Tensor,
        rows: SamplingRows,
        slots_D: torch.Tensor,
        *,
        last_token: torch.Tensor,
        out_D: torch.Tensor,
    ) -> None:
        """Tokens of the rows in `out_D`, int32, and in `last_token` at their slots."""
        num_rows = len(logits_DV)
        spoilt_D = self.spoilt[:num_rows]
        if rows.suppressed is not None:
            suppress(logits_DV, *rows.suppressed, spoilt_D, pdl=self.pdl)
        kept = None
        if rows.any_filter:
            kept = filter_logits(
                logits_DV,
                rows,
                workspace=self.filter_workspace,
                out=Kept(
                    threshold_D=self.thresholds[:num_rows], last_id_D=self.last_ids[:num_rows]
                ),
                pdl=self.pdl,
            )
        draw(
            logits_DV,
            rows,
            kept=kept,
            spoilt_D=spoilt_D,
            slots_D=slots_D,
            last_token_S=last_token,
            workspace=self.workspace,
            out_D=out_D,
            pdl=self.pdl,
        )
