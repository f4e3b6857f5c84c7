"""Compiles all that a layer of latent attention launches for a Hopper GPU.

``python -m tests.workers.models.compile_mla MODEL [TP]`` writes each launch's kernel and bytes of
shared memory: of a step of decodes, and of one of prompts whose tiles are split.
"""

from __future__ import annotations

import dataclasses
import sys

import torch

from moe.base.context import KernelContext
from moe.base.fp8_format import Fp8Format
from moe.base.parallel import resolve_parallel
from moe.base.tiles import TileTable
from moe.base.workspace import Workspace
from moe.groups import ExpertGroups
from tests.absent_gpu import SHARED_BYTES, compile_launches, tell
from workers.attention.kv_cache import LayerCache
from workers.attention.layer import AttentionBatch, AttentionPlan
from workers.attention.mla_spec import MlaSpec, QueryGrowth, head_groups
from workers.attention.plan import CHUNK_FIELDS, AttentionKind
from workers.attention.prefill_split import SPLIT_FIELDS
from workers.config_json.quantized_modules import Quantization
from workers.distributed import SINGLE
from workers.layers.rope_spec import RopeSpec
from workers.layers.rotary import RotaryEmbedding
from workers.models.base import BuildContext
from workers.models.mla import LatentAttention

META = torch.device("meta")
HIDDEN = 2048
ROPE = RopeSpec(dim=64, theta=10000.0, interleaved=True)
FP8 = Fp8Format(block=(128, 128))
# Heads; widths of the queries' latent, the latent, the first part of a query and a value; format.
MODELS = {
    "deepseek-v2-lite": (16, None, 512, 128, 128, None),
    "deepseek-v3": (128, 1536, 512, 128, 128, FP8),
    "glm-4.7-flash": (20, 768, 512, 192, 256, None),
    "mistral-small-4": (32, 1024, 256, 64, 128, None),
}


def layer_of(model: str, tp: int) -> LatentAttention:
    num_heads, q_lora_rank, kv_lora_rank, nope, value, weight_format = MODELS[model]
    spec = MlaSpec(
        num_heads=num_heads,
        q_lora_rank=q_lora_rank,
        kv_lora_rank=kv_lora_rank,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=ROPE.dim,
        v_head_dim=value,
        scale=0.1,
        rope=ROPE,
        query_growth=QueryGrowth(beta=0.1, length=8192) if "mistral" in model else None,
    )
    tiles = TileTable(dtype="bfloat16", item_size=2, shared_bytes=SHARED_BYTES)
    build = BuildContext(
        groups=dataclasses.replace(SINGLE, tp_size=tp),
        expert_groups=ExpertGroups(),
        parallel=resolve_parallel(tp=1, dp=1, ep=None, backend="auto", has_experts=False),
        moe_runner="auto",
        max_positions=4096,
        max_tokens=4096,
        context=KernelContext(workspace=Workspace(META), tiles=tiles, pdl=True, num_cores=132),
        dtype=torch.bfloat16,
        device=META,
        quantization=None if weight_format is None else Quantization(weight_format=weight_format),
    )
    rotary = RotaryEmbedding(spec.rope, build.max_positions, META)
    return LatentAttention(spec, HIDDEN, build, rotary, "model.layers.0.self_attn.")


def run(layer: LatentAttention, num_tokens: int, num_decodes: int) -> None:
    """A step whose rows are all decodes or none."""
    entry, groups = layer.spec.entry_width, head_groups(layer.num_heads)
    keys = torch.empty(64, 16, 1, entry, dtype=torch.bfloat16, device=META)

    def ints(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=META)

    plan = AttentionPlan(ints(150, CHUNK_FIELDS), None)
    if not num_decodes:
        plan = AttentionPlan(None, ints(300, SPLIT_FIELDS))
    batch = AttentionBatch(
        positions_T=ints(num_tokens),
        slots_T=ints(num_tokens),
        tables=ints(64, 256),
        slots=[],
        lengths=[],
        num_tokens=[],
        num_decodes=num_decodes,
        plans={AttentionKind(None, layer.num_heads): plan},
        finished_SK=ints(64, groups),
        finished_CK=ints(528, groups),
        starts_T=ints(num_tokens),
    )
    hidden_TH = torch.empty(num_tokens, HIDDEN, dtype=torch.bfloat16, device=META)
    layer(hidden_TH, LayerCache(keys, keys[..., :0].contiguous()), batch)


if __name__ == "__main__":
    model, tp = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
    launches = compile_launches()
    for num_tokens, num_decodes in ((8, 8), (64, 64), (1000, 0)):
        run(layer_of(model, tp), num_tokens, num_decodes)
    tell(launches)
