"""Any kind of attention as numbers. Torch-free."""

from __future__ import annotations

from workers.attention.mla_spec import MlaSpec
from workers.attention.spec import AttentionSpec
from workers.linear_attention.spec import DeltaSpec

CachedAttention = AttentionSpec | MlaSpec
"""Of keys and values that a cache holds."""

AnyAttention = CachedAttention | DeltaSpec
