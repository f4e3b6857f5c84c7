"""Attention over the paged KV cache in plain torch: one query a row, or several of one row.

Owns the gathering of blocks, what a query sees, and sinks; knows nothing of batches. Shapes: T
tokens, S rows, B blocks, N query heads, K key/value heads, G = N / K, D head_dim of queries and
keys, V of values, L keys that are gathered of a context: all, or those that a window may see.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from workers.attention.kv_cache import LayerCache


@dataclasses.dataclass(frozen=True, slots=True)
class Softmax:
    """What becomes of scores, as `layer.paged_attention` is told."""

    scale: float
    window: int | None
    sinks_N: torch.Tensor | None

    def first_seen(self, position: int) -> int:
        """Position of the first key that a query sees."""
        return 0 if self.window is None else max(0, position - self.window + 1)


def decode(
    q_SND: torch.Tensor,
    cache: LayerCache,
    tables: torch.Tensor,
    slots: list[int],
    lengths: list[int],
    softmax: Softmax,
) -> torch.Tensor:
    """One query token a row, its last, all rows padded to the most keys: ``[S, N, V]``."""
    size, device = cache.block_size, q_SND.device
    starts = [softmax.first_seen(length - 1) // size for length in lengths]
    most = max(length - start * size for length, start in zip(lengths, starts, strict=True))
    starts_S1 = torch.tensor(starts, device=device)[:, None]
    blocks_SB = starts_S1 + torch.arange(-(-most // size), device=device)
    # A row with fewer blocks than another may end at the last column.
    blocks_SB = blocks_SB.clamp(max=tables.shape[1] - 1)
    tables_SB = tables[torch.tensor(slots, device=device)[:, None], blocks_SB]
    gathered = cache.read(tables_SB, q_SND.dtype)
    k_SKLD, v_SKLV = (each.flatten(1, 2)[:, :most].transpose(1, 2) for each in gathered)
    seen = None
    if len(lengths) > 1 or softmax.window is not None:
        positions_SL = starts_S1 * size + torch.arange(most, device=device)
        lengths_S1 = torch.tensor(lengths, device=device)[:, None]
        seen_SL = positions_SL < lengths_S1
        if softmax.window is not None:
            seen_SL &= positions_SL >= lengths_S1 - softmax.window
        seen = seen_SL[:, None, None, :]
    # The N / K query heads of a key head stand where several queries would: no key is repeated.
    q_SKGD = q_SND.unflatten(1, (k_SKLD.shape[1], -1))
    sinks = None if softmax.sinks_N is None else softmax.sinks_N.view(*q_SKGD.shape[1:3], 1)
    return _attend(q_SKGD, k_SKLD, v_SKLV, seen, softmax.scale, sinks).flatten(1, 2)


def prefill(
    q_TND: torch.Tensor, cache: LayerCache, table_B: torch.Tensor, length: int, softmax: Softmax
) -> torch.Tensor:
    """Several query tokens of one row, the last ones of its context: ``[T, N, V]``."""
    num_tokens, size = len(q_TND), cache.block_size
    first = softmax.first_seen(length - num_tokens)
    start = first // size
    gathered = cache.read(table_B[start : -(-length // size)], q_TND.dtype)
    own = slice(first - start * size, length - start * size)
    k_NLD, v_NLV = (each.flatten(0, 1)[own].transpose(0, 1) for each in gathered)
    seen = None
    if num_tokens > 1:
        seen = _seen(num_tokens, length - first, softmax, q_TND.device)
    sinks = None if softmax.sinks_N is None else softmax.sinks_N.view(-1, 1, 1)
    q_NTD = q_TND.transpose(0, 1)
    out = _attend(q_NTD[None], k_NLD[None], v_NLV[None], seen, softmax.scale, sinks)
    return out[0].transpose(0, 1)


def _seen(num_tokens: int, num_keys: int, softmax: Softmax, device: torch.device) -> torch.Tensor:
    """What the last queries of a context see ``[T, L]``."""
    ahead = num_keys - num_tokens
    if device.type == "cpu" or softmax.window is not None or softmax.sinks_N is not None:
        seen = torch.ones(num_tokens, num_keys, dtype=torch.bool, device=device).tril(ahead)
        return seen if softmax.window is None else seen.triu(ahead - softmax.window + 1)
    # Here, not above: it imports torch's compiler, which takes more than a second.
    from torch.nn.attention.bias import causal_lower_right

    return causal_lower_right(num_tokens, num_keys)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    seen: torch.Tensor | None,
    scale: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention ``[…, heads, queries, V]``; fewer key heads than query heads share them.

    Args:
        seen: broadcasts to ``[…, queries, L]``; None: all.
        sinks: broadcasts to ``[…, heads, queries, 1]``.
    """
    width = v.shape[-1]
    if sinks is not None:
        # A key more, of zeros but for a number that all others have as 0 and queries by the sink.
        turned = (sinks / scale).to(q.dtype).expand(*q.shape[:-1], 1)
        q = torch.cat((q, turned), -1)
        k = F.pad(k, (0, 1, 0, 1))
        k[..., -1, -1] = 1
        v = F.pad(v, (0, 0, 0, 1))
        seen = None if seen is None else F.pad(seen, (0, 1), value=True)
    if width < k.shape[-1]:
        # Of equal widths torch need not hold all scores at once.
        v = F.pad(v, (0, k.shape[-1] - width))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True)
    return out[..., :width]
