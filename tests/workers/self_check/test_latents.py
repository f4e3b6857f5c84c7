"""Latent attention passes its check, and what is wrong with a kernel of it is found, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.workers.self_check.rank import make_rank
from workers.models import mla
from workers.models.mla import LatentAttention

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted"),
]

CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v3", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
    "max_position_embeddings": 512, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 0, "dtype": "float32",
}  # fmt: skip


def findings(few_tokens: int, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[Any]:
    monkeypatch.setattr(LatentAttention, "few_tokens", few_tokens)
    changes = settings.pop("changes", {})
    rank = make_rank(config=CONFIG | changes, max_tokens=5, max_batch_size=2, **settings)
    return rank.findings(LatentAttention)


@pytest.mark.parametrize(
    ("few_tokens", "settings"),
    [
        (0, {"dtype": torch.float16}),
        (256, {"fp8": True, "dtype": torch.float16, "changes": {"q_lora_rank": None}}),
        (0, {"tp": 2}),
    ],
    ids=str,
)
def test_right_kernels_pass(
    few_tokens: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = findings(few_tokens, monkeypatch, **settings)
    assert all(each.is_right for each in found), [str(each) for each in found if not each.is_right]
    assert any("new tokens" in each.what for each in found) == (few_tokens == 0)


Launcher = Callable[..., Any]
WRONG: dict[str, tuple[str, Callable[..., Any], str]] = {
    "pairs": (
        "store_latents",
        lambda launch, *args, **kwargs: launch(*args, **kwargs | {"interleaved": False}),
        "entries",
    ),
    "turned": (
        "absorb_queries",
        lambda launch, *args, **kwargs: launch(*args, **kwargs | {"interleaved": False}),
        "turned queries",
    ),
    "scale": (
        "kernel_latent_attention",
        lambda launch, *args, **kwargs: launch(*args, **kwargs | {"scale": 0.3}),
        "attention",
    ),
    "new": (
        "attend_new",
        lambda launch, *args, **kwargs: launch(*args, **kwargs | {"scale": 0.3}),
        "new tokens",
    ),
    "join": (
        "project_values",
        lambda launch, *args, **kwargs: launch(*args, **kwargs | {"halves": None}),
        "values of",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, change, stage = WRONG[name]
    launch = getattr(mla, function)
    monkeypatch.setattr(mla, function, lambda *args, **kwargs: change(launch, *args, **kwargs))
    found = findings(0, monkeypatch)
    assert stage in next(each.what for each in found if not each.is_right)
