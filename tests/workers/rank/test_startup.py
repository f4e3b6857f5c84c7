"""What flags, model and device make of a rank's settings."""

from __future__ import annotations

import pytest
import torch

from workers.attention.mla_spec import MlaSpec
from workers.attention.spec import AttentionSpec
from workers.layers.rope_spec import RopeSpec
from workers.rank.startup import _kv_cache_dtype

LATENTS = MlaSpec(
    num_heads=2, q_lora_rank=None, kv_lora_rank=32, qk_nope_head_dim=8, qk_rope_head_dim=8,
    v_head_dim=8, scale=1.0, rope=RopeSpec(dim=8, theta=10000.0),
)  # fmt: skip
CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)


def of_width(head_dim: int) -> AttentionSpec:
    return AttentionSpec(
        num_heads=2, num_kv_heads=1, head_dim=head_dim, v_head_dim=head_dim, scale=1.0, rope=None
    )


def test_a_cache_is_of_the_model_s_dtype_unless_asked_otherwise() -> None:
    assert _kv_cache_dtype("auto", torch.bfloat16, of_width(6), CARD) == "bfloat16"
    assert _kv_cache_dtype("auto", torch.float32, of_width(128), CPU) == "float32"
    assert _kv_cache_dtype("fp8_e4m3", torch.bfloat16, of_width(128), CPU) == "fp8_e4m3"


def test_fp8_caches_that_kernels_cannot_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="head_dim is 6; leave it out"):
        _kv_cache_dtype("fp8_e4m3", torch.float32, of_width(6), CPU)
    with pytest.raises(ValueError, match="fp8_e4m3 is not built for latent attention; leave"):
        _kv_cache_dtype("fp8_e4m3", torch.float32, LATENTS, CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ValueError, match=r"needs .* 8\.9 or above, this one has 8\.0"):
        _kv_cache_dtype("fp8_e4m3", torch.bfloat16, of_width(128), CARD)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert _kv_cache_dtype("fp8_e4m3", torch.bfloat16, of_width(128), CARD) == "fp8_e4m3"
