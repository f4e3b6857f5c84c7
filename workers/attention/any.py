"""Either kind of attention as numbers. Torch-free."""

from __future__ import annotations

from workers.attention.mla_spec import MlaSpec
from workers.attention.spec import AttentionSpec

AnyAttention = AttentionSpec | MlaSpec
