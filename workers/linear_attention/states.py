"""Where layers' states lie: a recurrent one and the last inputs of a convolution each.

Owns their layout and size. Does not know whose they are, or when they are kept. P states, N value
heads, D width of keys, V of values, C channels of the convolution (queries, keys and values of this
rank), W its taps.
"""

from __future__ import annotations

import dataclasses

import torch

from workers.linear_attention.plan import StateRows
from workers.zeros import zeros


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

    def copy(self, source: int, target: int) -> None:
        """One state over another."""
        self.recurrent[target] = self.recurrent[source]
        self.inputs[target] = self.inputs[source]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StatePlan:
    """Which states a step's rows read, write and keep, and how kernels divide its prompts.

    Attributes:
        rows: on the host; for plain torch.
        sources_T: of each token the state before its row, int32, -1: zeros; ``keeps_T``: where its
            row's is kept, -1: nowhere. Empty without kernels.
        chunks_KF, rows_RF: of the rows behind the decodes, as `plan.plan_rows` makes them, their
            tokens counted from the first of these rows; None without any, or without kernels.
    """

    rows: StateRows
    sources_T: torch.Tensor
    keeps_T: torch.Tensor
    chunks_KF: torch.Tensor | None
    rows_RF: torch.Tensor | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StateSizes:
    """What the states of one rank take.

    Attributes:
        num_states: of each layer.
        inputs_dtype: the model's.
    """

    num_layers: int
    num_states: int
    num_heads: int
    key_width: int
    value_width: int
    channels: int
    taps: int
    inputs_dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Of all layers' states."""
        return self.num_states * self.bytes_per_state

    @property
    def bytes_per_state(self) -> int:
        """Of one sequence, in all layers."""
        recurrent = self.num_heads * self.key_width * self.value_width * torch.float32.itemsize
        inputs = self.taps * self.channels * self.inputs_dtype.itemsize
        return self.num_layers * (recurrent + inputs)

    def allocate(self, device: torch.device) -> list[LayerStates]:
        """Of each layer, zeros."""
        heads = (self.num_states, self.num_heads, self.key_width, self.value_width)
        inputs = (self.num_states, self.taps, self.channels)
        return [
            LayerStates(
                zeros(heads, torch.float32, device), zeros(inputs, self.inputs_dtype, device)
            )
            for _ in range(self.num_layers)
        ]
