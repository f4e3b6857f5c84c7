"""What flags, model and device make of a rank's settings."""

from __future__ import annotations

import pytest
import torch

from workers.rank.startup import _kv_cache_dtype

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)


def test_a_cache_is_of_the_model_s_dtype_unless_asked_otherwise() -> None:
    assert _kv_cache_dtype("auto", torch.bfloat16, 6, CARD) == "bfloat16"
    assert _kv_cache_dtype("auto", torch.float32, 128, CPU) == "float32"
    assert _kv_cache_dtype("fp8_e4m3", torch.bfloat16, 128, CPU) == "fp8_e4m3"


def test_fp8_caches_that_kernels_cannot_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="head_dim is 6; leave it out"):
        _kv_cache_dtype("fp8_e4m3", torch.float32, 6, CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ValueError, match=r"needs .* 8\.9 or above, this one has 8\.0"):
        _kv_cache_dtype("fp8_e4m3", torch.bfloat16, 128, CARD)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert _kv_cache_dtype("fp8_e4m3", torch.bfloat16, 128, CARD) == "fp8_e4m3"
