"""The gated delta rule in plain torch, in chunks of tokens.

A head's state S [D, V] maps keys to values. A token decays it, and replaces what it says of the
token's key by the token's value, as far as beta says (Yang et al., Gated Delta Networks, 2024, eq.
10): S <- exp(g) S, then S <- S + k (beta (v - k S)) with k as a column on the left; the token then
reads S by its query. Within a chunk the replacements, which depend on those before them, are the
solution of a triangular system (section 3.3 there).

Owns the arithmetic alone: nothing of batches, of convolutions or of where states are kept.
Shapes: B rows, T tokens of each, N value heads, D width of queries and keys, V of values, C tokens
of a chunk. All is fp32.
"""

from __future__ import annotations

import torch

CHUNK = 64
"""Chunks begin at positions that are multiples of it, so that cuts there change no bit."""
_NORM_EPS = 1e-6


def l2_norm(x: torch.Tensor) -> torch.Tensor:
    """The last dimension at length 1."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _NORM_EPS)


def gated_delta_rule(
    q_BTND: torch.Tensor,
    k_BTND: torch.Tensor,
    v_BTNV: torch.Tensor,
    log_decay_BTN: torch.Tensor,
    beta_BTN: torch.Tensor,
    state_BNDV: torch.Tensor,
    first: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What tokens read, and the states behind the last of them.

    Args:
        q_BTND: of length 1, times D^-0.5; k_BTND: of length 1.
        log_decay_BTN: at most 0.
        first: position of the first token, the same in every row.

    Returns:
        ``[B, T, N, V]`` and ``[B, N, D, V]``.
    """
    T = q_BTND.shape[1]
    # Heads before tokens, so that a chunk is a matrix.
    q, k, v = (each.transpose(1, 2) for each in (q_BTND, k_BTND, v_BTNV))
    log_decay, beta = (each.transpose(1, 2) for each in (log_decay_BTN, beta_BTN))
    out_BNTV = torch.empty_like(v)
    start = 0
    while start < T:
        stop = min(T, start + CHUNK - (first + start) % CHUNK)
        part = slice(start, stop)
        out_BNTV[:, :, part], state_BNDV = _chunk(
            q[:, :, part], k[:, :, part], v[:, :, part], log_decay[:, :, part], beta[:, :, part],
            state_BNDV,
        )  # fmt: skip
        start = stop
    return out_BNTV.transpose(1, 2), state_BNDV


def _chunk(
    q_BNCD: torch.Tensor,
    k_BNCD: torch.Tensor,
    v_BNCV: torch.Tensor,
    log_decay_BNC: torch.Tensor,
    beta_BNC: torch.Tensor,
    state_BNDV: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    beta_BNC1 = beta_BNC.unsqueeze(-1)
    since_BNC = log_decay_BNC.cumsum(-1)  # the chunk's begin
    kept_BNC1 = since_BNC.exp().unsqueeze(-1)
    # Of a token before, what is left at a later one. Above the diagonal exponents are positive.
    between_BNCC = (since_BNC.unsqueeze(-1) - since_BNC.unsqueeze(-2)).tril().exp().tril()
    system_BNCC = beta_BNC1 * (k_BNCD @ k_BNCD.mT) * between_BNCC  # its diagonal is not read
    right_BNC = beta_BNC1 * (v_BNCV - kept_BNC1 * (k_BNCD @ state_BNDV))
    new_BNCV = torch.linalg.solve_triangular(
        system_BNCC, right_BNC, upper=False, unitriangular=True
    )
    out_BNCV = kept_BNC1 * (q_BNCD @ state_BNDV)
    out_BNCV = out_BNCV + ((q_BNCD @ k_BNCD.mT) * between_BNCC) @ new_BNCV
    left_BNC1 = (since_BNC[..., -1:] - since_BNC).exp().unsqueeze(-1)
    state_BNDV = kept_BNC1[..., -1:, :] * state_BNDV + (left_BNC1 * k_BNCD).mT @ new_BNCV
    return out_BNCV, state_BNDV
