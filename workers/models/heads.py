"""What lies between the projection of q, k and v and attention, in plain torch.

The oracle of `workers.attention.kernels.qk_rope` and `qk_squares`. T tokens, N query heads, K
key/value heads, D head_dim of q and k, V of v, W all of a token.
"""

from __future__ import annotations

import torch

from workers.attention.head_options import HeadOptions
from workers.layers.norm import RMSNorm
from workers.layers.rotary import rotate

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Norms = tuple[RMSNorm, RMSNorm]
Angles = tuple[torch.Tensor, torch.Tensor]


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


def _norm_all(x_TND: torch.Tensor, norm: RMSNorm, mean_square_T: torch.Tensor) -> torch.Tensor:
    """RMSNorm over more heads than these, cast before the weight and after it."""
    scale_T11 = torch.rsqrt(mean_square_T + norm.eps)[:, None, None]
    scaled = (x_TND.float() * scale_T11).to(x_TND.dtype)
    normed: torch.Tensor = norm.weight.view(x_TND.shape[1:]) * scaled
    return normed
