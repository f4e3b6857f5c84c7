"""A gated delta layer between its projections, in plain torch, row by row.

Owns how states are read and written. Shapes: T tokens of one row, N value heads, M key heads, G = N
/ M, D width of queries and keys, V of values, C = 2·M·D + N·V channels of the convolution, W its
taps.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from workers.linear_attention.delta_rule import gated_delta_rule, l2_norm
from workers.linear_attention.states import LayerStates


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeltaWeights:
    """
    Attributes:
        taps_CW: of the convolution, which has queries' channels first, then keys' and values'.
        rate_N: the logarithm of how fast a head forgets (A_log); ``bias_N`` is added to a token's
            own step (dt_bias).
        norm_V: of what a head reads; ``eps`` is that norm's.
    """

    taps_CW: torch.Tensor
    rate_N: torch.Tensor
    bias_N: torch.Tensor
    norm_V: torch.Tensor
    num_key_heads: int
    eps: float


def delta_row(
    x_TX: torch.Tensor,
    ba_TB: torch.Tensor,
    weights: DeltaWeights,
    states: LayerStates,
    source: int,
    target: int,
    first: int,
) -> torch.Tensor:
    """What the tokens of one row read, normed and gated, ``[T, N·V]``, in x's dtype.

    Args:
        x_TX: queries, keys, values and gates, all heads of each: X = C + N·V.
        ba_TB: what betas and decays are made of: B = 2·N.
        source: the state before the row, -1: zeros; ``target``: where the one behind it goes.
        first: position of the row's first token.
    """
    N, D, V = states.recurrent.shape[1:]
    M, (C, W) = weights.num_key_heads, weights.taps_CW.shape
    T = len(x_TX)
    inputs_UC = torch.cat([_inputs_before(states, source, first), x_TX[:, :C]])
    taps_C1W = weights.taps_CW.unsqueeze(1).float()
    mixed_CT = F.conv1d(inputs_UC.T.float().unsqueeze(0), taps_C1W, groups=C)[0]
    q, k, v = F.silu(mixed_CT.T).split([M * D, M * D, N * V], dim=1)
    q_TND, k_TND = (l2_norm(each.view(T, M, D)).repeat_interleave(N // M, dim=1) for each in (q, k))
    beta_TN, step_TN = ba_TB.float().chunk(2, dim=1)
    log_decay_TN = -weights.rate_N.float().exp() * F.softplus(step_TN + weights.bias_N.float())
    before = states.recurrent.new_zeros((N, D, V)) if source < 0 else states.recurrent[source]
    out, after = gated_delta_rule(
        (q_TND * D**-0.5)[None],
        k_TND[None],
        v.view(1, T, N, V),
        log_decay_TN[None],
        beta_TN.sigmoid()[None],
        before[None],
        first,
    )
    states.recurrent[target] = after[0]
    rows = torch.arange(first + T - W + 1, first + T, device=x_TX.device)
    states.inputs[target, rows % W] = inputs_UC[-(W - 1) :].to(states.inputs.dtype)
    out_TNV = out[0]
    normed_TNV = out_TNV * torch.rsqrt(out_TNV.square().mean(-1, keepdim=True) + weights.eps)
    z_TNV = x_TX[:, C:].float().view(T, N, V)
    return (normed_TNV * weights.norm_V.float() * F.silu(z_TNV)).flatten(1).to(x_TX.dtype)


def _inputs_before(states: LayerStates, source: int, first: int) -> torch.Tensor:
    """The W − 1 inputs before a position, zeros before the sequence's first."""
    W = states.taps
    positions = torch.arange(first - W + 1, first, device=states.inputs.device)
    if source < 0:
        return states.inputs.new_zeros((W - 1, states.inputs.shape[2]))
    return torch.where((positions >= 0)[:, None], states.inputs[source, positions % W], 0)
