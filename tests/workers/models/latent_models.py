"""Random small layers of multi-head latent attention of transformers', and the same as ours.

Owns configs, weights and steps of tests; asserts nothing.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.models.deepseek_v2 import DeepseekV2Config, modeling_deepseek_v2
from transformers.models.deepseek_v3 import DeepseekV3Config, modeling_deepseek_v3
from transformers.models.glm4_moe_lite import Glm4MoeLiteConfig, modeling_glm4_moe_lite
from transformers.models.mistral4 import Mistral4Config, modeling_mistral4

from moe.base.context import KernelContext
from moe.base.fp8_format import Fp8Format
from moe.base.parallel import resolve_parallel
from moe.base.quantize import empty_weight, quantize
from moe.base.weight import Weight
from moe.base.weight_format import WeightFormat
from moe.base.weight_slices import has_scales
from moe.groups import ExpertGroups
from workers.attention.kv_cache import LayerCache
from workers.attention.layer import AttentionBatch, AttentionPlan
from workers.attention.mla_spec import MlaSpec, QueryGrowth, head_groups, softmax_scale
from workers.attention.plan import (
    AttentionKind,
    decode_capacity,
    plan_decode,
    plan_prefill,
    prefill_tile_tokens,
)
from workers.attention.prefill_split import split_tiles
from workers.config_json.quantized_modules import Quantization
from workers.distributed import SINGLE
from workers.layers.rope_spec import RopeSpec, YarnScaling
from workers.layers.rotary import RotaryEmbedding
from workers.models.base import BuildContext
from workers.models.mla import LatentAttention

POSITIONS = 64
CORES = 4
UNIT = 8  # tokens: contexts are cut into multiples of it
PREFIX = "model.layers.0.self_attn."
WITH_MQA = "kv_a_proj_with_mqa.weight"

_YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
    "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1,
    "mscale": 0.8, "mscale_all_dim": 1.2,
}  # fmt: skip
_PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
# config class, attention, rotary embedding, what is said of rotary embeddings
_KINDS: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "deepseek_v2": (
        DeepseekV2Config,
        modeling_deepseek_v2.DeepseekV2Attention,
        modeling_deepseek_v2.DeepseekV2RotaryEmbedding,
        _PLAIN,
    ),
    "deepseek_v3": (
        DeepseekV3Config,
        modeling_deepseek_v3.DeepseekV3Attention,
        modeling_deepseek_v3.DeepseekV3RotaryEmbedding,
        _YARN,
    ),
    "glm4_moe_lite": (
        Glm4MoeLiteConfig,
        modeling_glm4_moe_lite.Glm4MoeLiteAttention,
        modeling_glm4_moe_lite.Glm4MoeLiteRotaryEmbedding,
        _PLAIN,
    ),
    "mistral4": (
        Mistral4Config,
        modeling_mistral4.Mistral4Attention,
        modeling_mistral4.Mistral4RotaryEmbedding,
        _YARN | {"llama_4_scaling_beta": 0.7},
    ),
}
KINDS = list(_KINDS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One of transformers', with all that is needed to make it ours."""

    kind: str
    config: Any
    module: nn.Module
    rotary: nn.Module
    spec: MlaSpec
    weight_format: WeightFormat | None = None

    @classmethod
    def random(cls, kind: str, seed: int, **sizes: int | None) -> Layer:
        """Of random sizes but those that are given."""
        rng = random.Random(f"{kind} {seed}")
        make_config, make_attention, make_rotary, rope = _KINDS[kind]
        rope_dim = rng.choice([4, 8, 16])
        values = {
            "num_attention_heads": rng.choice([2, 4, 6]),
            "q_lora_rank": rng.choice([None, 12, 24]),
            "kv_lora_rank": rng.choice([16, 24]),
            "qk_nope_head_dim": rng.choice([8, 16]),
            "qk_rope_head_dim": rope_dim,
            "v_head_dim": rng.choice([8, 20]),
            "hidden_size": rng.choice([24, 48]),
        } | sizes
        # DeepSeek-V2's pairs are always neighbours.
        interleaved = kind == "deepseek_v2" or rng.random() < 0.7
        # Mistral4Config has another head_dim, and says itself what part of it is turned.
        head_dim = {} if kind == "mistral4" else {"head_dim": values["qk_rope_head_dim"]}
        config = make_config(
            **values,
            **head_dim,
            num_key_value_heads=values["num_attention_heads"],
            max_position_embeddings=POSITIONS,
            rope_parameters=dict(rope),
            rope_interleave=interleaved,
        )
        config._attn_implementation = "eager"
        torch.manual_seed(seed)
        module = make_attention(config, 0)
        for name, weight in module.named_parameters():
            nn.init.normal_(weight, mean=float("norm" in name), std=0.3)
        return cls(
            kind=kind,
            config=config,
            module=module.requires_grad_(False),
            rotary=make_rotary(config),
            spec=_spec(config, values, interleaved),
        )

    def quantized(self, weight_format: Fp8Format) -> Layer:
        """The same whose matrices have eight bits; transformers' has what these say."""
        for name, weight in self.module.named_parameters():
            if name.endswith("proj.weight") or name == WITH_MQA:
                weight.copy_(_in_format(weight, weight_format).plain(torch.float32))
        return dataclasses.replace(self, weight_format=weight_format)

    def tensors(self) -> dict[str, torch.Tensor]:
        """As a checkpoint has them."""
        tensors = {f"{PREFIX}{name}": value for name, value in self.module.state_dict().items()}
        if not has_scales(self.weight_format):
            return tensors
        for name in [each for each in tensors if each.endswith(("proj.weight", WITH_MQA))]:
            weight = _in_format(tensors[name], self.weight_format)
            assert weight.scales is not None
            tensors[name] = weight.values
            tensors[f"{name}{self.weight_format.suffix}"] = weight.scales
        return tensors

    def expected(self, hidden_TH: torch.Tensor) -> torch.Tensor:
        """What transformers' layer makes of a sequence ``[T, H]``."""
        positions_1T = torch.arange(len(hidden_TH))[None]
        mask = torch.full((len(hidden_TH),) * 2, float("-inf")).triu(1)[None, None]
        more = {"position_ids": positions_1T} if self.kind == "mistral4" else {}
        angles = self.rotary(hidden_TH, positions_1T)
        out: torch.Tensor = self.module(
            hidden_TH[None], position_embeddings=angles, attention_mask=mask, **more
        )[0]
        return out[0]

    def ours(
        self,
        tp_rank: int = 0,
        tp_size: int = 1,
        context: KernelContext | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> LatentAttention:
        """A rank's share of the same layer; without a group, so that its result is no sum yet."""
        build = BuildContext(
            groups=dataclasses.replace(SINGLE, tp_rank=tp_rank, tp_size=tp_size),
            expert_groups=ExpertGroups(),
            parallel=resolve_parallel(tp=1, dp=1, ep=None, backend="auto", has_experts=False),
            moe_runner="auto",
            max_positions=POSITIONS,
            max_tokens=64,
            context=context,
            dtype=dtype,
            device=torch.device("cpu"),
            quantization=self.weight_format and Quantization(weight_format=self.weight_format),
        )
        rotary = RotaryEmbedding(self.spec.rope, POSITIONS, build.device)
        rotary.cover(POSITIONS)
        ours = LatentAttention(self.spec, self.config.hidden_size, build, rotary, PREFIX)
        held, names = self.tensors(), set()
        for piece in ours.checkpoint_slices(PREFIX):
            assert piece.index is not None
            assert held[piece.name].shape == piece.shape, piece.name
            piece.fill(held[piece.name][piece.index])
            names.add(piece.name)
        assert names == held.keys()
        return ours


def _in_format(plain: torch.Tensor, weight_format: Fp8Format) -> Weight:
    weight = empty_weight(
        tuple(plain.shape), weight_format, dtype=torch.float32, device=plain.device
    )
    quantize(plain, weight)
    return weight


def _spec(config: Any, values: dict[str, Any], interleaved: bool) -> MlaSpec:
    rope = config.rope_parameters
    growth = None
    if "llama_4_scaling_beta" in rope:
        growth = QueryGrowth(
            beta=rope["llama_4_scaling_beta"], length=rope["original_max_position_embeddings"]
        )
    scaling = None
    if rope["rope_type"] == "yarn":
        scaling = YarnScaling(
            factor=rope["factor"],
            original=rope["original_max_position_embeddings"],
            mscale=rope["mscale"],
            mscale_all_dim=rope["mscale_all_dim"],
        )
    turned = RopeSpec(
        dim=values["qk_rope_head_dim"],
        theta=rope["rope_theta"],
        interleaved=interleaved,
        scaling=scaling,
    )
    return MlaSpec(
        num_heads=values["num_attention_heads"],
        q_lora_rank=values["q_lora_rank"],
        kv_lora_rank=values["kv_lora_rank"],
        qk_nope_head_dim=values["qk_nope_head_dim"],
        qk_rope_head_dim=values["qk_rope_head_dim"],
        v_head_dim=values["v_head_dim"],
        scale=softmax_scale(values["qk_nope_head_dim"] + turned.dim, turned),
        rope=turned,
        query_growth=growth,
    )


def latent_cache(
    spec: MlaSpec, num_blocks: int, block_size: int, dtype: torch.dtype = torch.float32
) -> LayerCache:
    """Zeros."""
    keys = torch.zeros(num_blocks, block_size, 1, spec.entry_width, dtype=dtype)
    return LayerCache(keys, keys[..., :0].contiguous())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Rows of a step, decodes first: slot, first position, number of tokens."""

    rows: list[tuple[int, int, int]]
    num_decodes: int

    def batch(
        self, tables: torch.Tensor, num_heads: int | None = None, padding: int = 0
    ) -> AttentionBatch:
        """Of this step; with ``num_heads`` of a rank kernels can read it, with ``padding`` tokens
        behind it is as graphs hold mixed steps: decodes are prompts of one token."""
        counts = [count for _, _, count in self.rows]
        num_decodes = 0 if padding else self.num_decodes

        def column(of_row: list[int], filler: int) -> torch.Tensor:
            values = np.repeat(of_row, counts).tolist() + [filler] * padding
            return torch.tensor(values, dtype=torch.int32)

        starts = [first for _, first, _ in self.rows]
        places = [place for count in counts for place in range(count)] + [0] * padding
        return AttentionBatch(
            positions_T=column(starts, 0) + torch.tensor(places, dtype=torch.int32),
            slots_T=column([slot for slot, _, _ in self.rows], -1),
            tables=tables,
            slots=[slot for slot, _, _ in self.rows],
            lengths=[first + count for _, first, count in self.rows],
            num_tokens=counts,
            num_decodes=num_decodes,
            starts_T=column(starts, 0),
            **({} if num_heads is None else self._plans(num_heads, num_decodes, padding)),
        )

    def _plans(self, num_heads: int, decodes: int, padding: int) -> dict[str, Any]:
        """As `workers.step.batch.BatchBuilder` makes them."""
        groups = head_groups(num_heads)
        slots, positions, num_tokens = (np.array(each) for each in zip(*self.rows, strict=True))
        chunks = tiles = None
        if decodes:
            capacity = decode_capacity(decodes, groups, CORES)
            lengths = (positions + num_tokens)[:decodes]
            chunks = torch.from_numpy(plan_decode(lengths, slots[:decodes], capacity, UNIT))
        if decodes < len(slots):
            tokens = prefill_tile_tokens(64, num_heads, groups)
            first = np.cumsum(num_tokens) - num_tokens
            columns = (each[decodes:] for each in (num_tokens, positions, first, slots))
            plan = split_tiles(plan_prefill(*columns, tokens), CORES, UNIT)
            tiles = torch.from_numpy(np.pad(plan, ((0, padding), (0, 0))))
        return {
            "plans": {AttentionKind(None, num_heads): AttentionPlan(chunks, tiles)},
            "finished_SK": torch.zeros(len(slots), groups, dtype=torch.int32),
            "finished_CK": torch.zeros(2 * CORES, groups, dtype=torch.int32),
        }


# Three sequences in slots 3, 0 and 2: prompts in chunks, decodes beside them, decodes alone.
STEPS = [
    Step(rows=[(3, 0, 5), (0, 0, 9)], num_decodes=0),
    Step(rows=[(3, 5, 1), (0, 9, 11), (2, 0, 3)], num_decodes=1),
    Step(rows=[(0, 20, 1), (3, 6, 1), (2, 3, 1)], num_decodes=3),
    Step(rows=[(2, 4, 1), (3, 7, 1), (0, 21, 14)], num_decodes=2),
]
LENGTHS = {3: 8, 0: 35, 2: 5}
