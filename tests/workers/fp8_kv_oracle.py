"""transformers' models with keys and values rounded as an FP8 cache rounds them, by other means.

The rounding is arithmetic in fp64, not a cast: four significant binary digits, the last of them
worth at least 2^-9 of the scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_NAME = "over_an_fp8_cache"


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Each vector of the last dimension, with a scale of its own."""
    exact = x.double()
    top = exact.abs().amax(-1, keepdim=True)
    scale = (top / 448).clamp(min=2.0**-63).log2().ceil().exp2()
    units = exact / scale
    _, exponent = torch.frexp(units)
    step = torch.exp2((exponent - 4).clamp(min=-9).double())
    return ((units / step).round() * step * scale).to(x.dtype)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal, of whole sequences ``[B, heads, L, D]`` without padding."""
    out = F.scaled_dot_product_attention(
        query, rounded(key), rounded(value), is_causal=True, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2).contiguous(), None


def over_fp8_cache(model: torch.nn.Module) -> torch.nn.Module:
    """The model itself, which from now on attends to rounded keys and values."""
    ALL_ATTENTION_FUNCTIONS.register(_NAME, _attend)
    model.config._attn_implementation = _NAME
    return model
