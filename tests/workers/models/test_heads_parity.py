"""q, k and v as transformers' attention of each family gives them to the scores."""

from __future__ import annotations

import dataclasses
import importlib
import types
from typing import Any

import pytest
import torch
from transformers import (
    Ernie4_5_MoeConfig,
    Glm4MoeConfig,
    HunYuanMoEV1Config,
    MiniMaxM2Config,
    OlmoeConfig,
    Qwen2MoeConfig,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from workers.attention.spec import AttentionSpec
from workers.layers.linear import ShardRows
from workers.layers.norm import RMSNorm
from workers.layers.rope_spec import RopeSpec
from workers.layers.rotary import RotaryEmbedding
from workers.models.heads import QkvHeads

CPU, H, N, K, D, T, EPS = torch.device("cpu"), 32, 4, 2, 8, 5, 1e-5
THETA = 1e4


@dataclasses.dataclass(frozen=True)
class Family:
    """A config class, the names of its modules, and what it has beyond plain heads."""

    config: type[Any]
    prefix: str
    module: str
    spec: dict[str, Any]
    rope: dict[str, Any] = dataclasses.field(default_factory=dict)
    keys: dict[str, Any] = dataclasses.field(default_factory=dict)
    norms: tuple[str, str] = ("q_norm", "k_norm")


FAMILIES = [
    Family(OlmoeConfig, "Olmoe", "olmoe", {"qk_norm": "all_heads", "clip_qkv": 0.8}),
    Family(
        MiniMaxM2Config, "MiniMaxM2", "minimax_m2", {"qk_norm": "all_heads"}, {"dim": 4},
        {"rotary_dim": 4},
    ),
    Family(Qwen2MoeConfig, "Qwen2Moe", "qwen2_moe", {"qkv_bias": True}, {}, {"qkv_bias": True}),
    Family(
        Glm4MoeConfig, "Glm4Moe", "glm4_moe", {"qk_norm": "head", "qkv_bias": True}, {"dim": 4},
        {"use_qk_norm": True, "attention_bias": True, "partial_rotary_factor": 0.5},
    ),
    Family(Ernie4_5_MoeConfig, "Ernie4_5_Moe", "ernie4_5_moe", {}, {"interleaved": True}),
    Family(
        HunYuanMoEV1Config, "HunYuanMoEV1", "hunyuan_v1_moe", {"qk_norm": "head_after_rotary"},
        norms=("query_layernorm", "key_layernorm"),
    ),
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.module)
def test_heads_are_transformers(family: Family) -> None:
    torch.manual_seed(0)
    name = f"transformers.models.{family.module}.modeling_{family.module}"
    modeling: Any = importlib.import_module(name)
    clip = {"clip_qkv": family.spec["clip_qkv"]} if "clip_qkv" in family.spec else {}
    config = family.config(
        hidden_size=H, num_attention_heads=N, num_key_value_heads=K, head_dim=D, rms_norm_eps=EPS,
        rope_theta=THETA, **family.keys, **clip,
    )  # fmt: skip
    seen: list[torch.Tensor] = []

    def capture(_: Any, q: Any, k: Any, v: Any, *__: Any, **___: Any) -> tuple[Any, None]:
        seen.extend(each[0].transpose(0, 1) for each in (q, k, v))
        return q.transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("capture", capture)
    config._attn_implementation = "capture"
    theirs = getattr(modeling, f"{family.prefix}Attention")(config, 0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x_TH, positions = torch.randn(T, H), torch.arange(3, 3 + T)
    angles = getattr(modeling, f"{family.prefix}RotaryEmbedding")(config)(x_TH, positions[None])
    with torch.no_grad():
        theirs(x_TH[None], position_embeddings=angles, attention_mask=None)
    ours = _heads(family, theirs)
    projections = (theirs.q_proj, theirs.k_proj, theirs.v_proj)
    qkv_TW = torch.cat([x_TH @ each.weight.T for each in projections], dim=1)
    bias_W = None
    if family.spec.get("qkv_bias"):
        bias_W = torch.cat([each.bias for each in projections])
    with torch.no_grad():
        found = ours.plain(qkv_TW, bias_W, positions)
    for mine, expected in zip(found, seen, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


def _heads(family: Family, theirs: Any) -> QkvHeads:
    """Ours, of one rank, with their norms."""
    spec = AttentionSpec(
        num_heads=N, num_kv_heads=K, head_dim=D, v_head_dim=D, scale=1.0,
        rope=RopeSpec(**{"dim": D, "theta": THETA, **family.rope}), **family.spec,
    )  # fmt: skip
    assert spec.rope is not None
    groups = types.SimpleNamespace(all_reduce=lambda x: x)
    build: Any = types.SimpleNamespace(groups=groups, dtype=torch.float32, device=CPU)
    rotary = RotaryEmbedding(spec.rope, 16, CPU)
    rotary.cover(16)
    rows = ShardRows(N * D, 0, N * D), ShardRows(K * D, 0, K * D)
    heads = QkvHeads(spec, build, EPS, RMSNorm, rotary, *rows, counts_keys=True)
    if heads.norms is not None:
        for norm, name in zip(heads.norms, family.norms, strict=True):
            norm.weight.data.copy_(getattr(theirs, name).weight.data)
    return heads
