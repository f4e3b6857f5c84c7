"""Where one layer's states lie: a recurrent one and the last inputs of a convolution each.

Owns their layout. Does not know whose they are, or when they are kept. P states, N value heads, D
width of keys, V of values, C channels of the convolution (queries, keys and values of this rank), W
its taps.
"""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True, slots=True)
class LayerStates:
    """
    Attributes:
        recurrent: fp32 ``[P, N, D, V]``.
        inputs: ``[P, W, C]`` of the model's dtype: the input of position p at row p % W, so that a
            token writes where nobody who computes it reads.
    """

    recurrent: torch.Tensor
    inputs: torch.Tensor

    @property
    def taps(self) -> int:
        """W."""
        return self.inputs.shape[1]
