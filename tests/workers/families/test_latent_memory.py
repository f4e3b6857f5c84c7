"""What a rank of a latent model takes and moves, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moe.base.parallel import ParallelConfig, resolve_parallel
from tests.workers.self_check.rank import NOBODY
from workers.attention.kv_cache import CacheSizes
from workers.config_json.model_config import ModelConfig
from workers.distributed import Groups, expert_groups
from workers.models.base import BuildContext
from workers.models.decoder import Decoder
from workers.step.roofline import Roofline, StepWork

CONFIGS = Path("benchmarks/configs")
V2_LITE, V3 = "deepseek-v2-lite", "deepseek-v3"


def layout(tp: int, dp: int = 1) -> ParallelConfig:
    return resolve_parallel(tp=tp, dp=dp, ep=None, backend="auto", has_experts=True)


def planned(name: str, tp: int, dp: int = 1) -> Decoder:
    """A rank's model without memory."""
    config, parallel = ModelConfig.from_folder(CONFIGS / name), layout(tp, dp)
    groups = Groups(
        rank=0, world_size=tp * dp, tp_rank=0, tp_size=tp, dp_rank=0, dp_size=dp,
        tp_group=NOBODY if tp > 1 else None, world_group=NOBODY if tp * dp > 1 else None,
    )  # fmt: skip
    build = BuildContext(
        groups=groups,
        expert_groups=expert_groups(groups, parallel),
        parallel=parallel,
        moe_runner="fused",
        max_positions=1,
        max_tokens=1,
        context=None,
        dtype=torch.bfloat16,
        device=torch.device("meta"),
        quantization=config.quantization,
    )
    return Decoder(config, build)


def bytes_of_a_token(config: ModelConfig, num_kv_heads: int) -> float:
    spec = config.attention[0]
    sizes = CacheSizes(
        num_layers=config.num_layers, block_size=16, num_kv_heads=num_kv_heads,
        head_dim=spec.key_width, v_head_dim=spec.value_width, dtype=torch.bfloat16,
    )  # fmt: skip
    return sizes.bytes_per_block / 16


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (V2_LITE, 27 * (512 + 64) * 2),
        (V3, 61 * (512 + 64) * 2),
        ("glm-4.7-flash", 47 * (512 + 64) * 2),
    ],
)
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_token_is_one_latent_a_layer_on_every_rank(name: str, expected: int, tp: int) -> None:
    config = ModelConfig.from_folder(CONFIGS / name)
    assert bytes_of_a_token(config, planned(name, tp).num_kv_heads) == expected
    roofline = Roofline.of_layout(config, layout(tp), dtype="bfloat16")
    assert roofline.cache_bytes == expected


def test_deepseek_v2_lite_by_hand() -> None:
    """Each matrix of its paper's table, of a rank of one and of two."""
    config = ModelConfig.from_folder(CONFIGS / V2_LITE)
    hidden, heads, layers = 2048, 16, 27
    whole = hidden * 576
    split = hidden * heads * 192 + 512 * heads * 256 + heads * 128 * hidden
    dense_mlp, expert = 3 * hidden * 10944, 3 * hidden * 1408
    gate, shared, table = hidden * 64, 2 * expert, 102400 * hidden
    norms = layers * (2 * hidden + 512) + hidden
    for tp in (1, 2):
        dense = layers * (whole + split / tp) + dense_mlp / tp + 26 * (gate + shared / tp)
        roofline = Roofline.of_layout(config, layout(tp), dtype="bfloat16")
        assert roofline.dense == dense
        assert roofline.expert == expert
        assert roofline.head == table / tp
        cost = roofline.cost(StepWork(tokens=1, draws=1, cached=1000, attended=1000), 26 * 6)
        assert cost.dense_bytes == 2 * dense + 2 * 26 * gate  # routers of fp32
        assert cost.expert_bytes == 2 * 26 * 6 * expert
        assert cost.cache_bytes == 1000 * 31104
        assert roofline.pair_flops == layers * 2 * heads // tp * (192 + 128)
        numbers = dense + 26 * 64 / tp * expert + table + table / tp + norms
        assert sum(each.numel() for each in planned(V2_LITE, tp).parameters()) == numbers
        assert numbers == 15_706_484_224 or tp > 1  # 15.7 B, as the paper says


def test_deepseek_v3_by_hand() -> None:
    """671 B, of which a rank of eight replicas has an eighth of the experts and all of the rest."""
    hidden, heads = 7168, 128
    attention = hidden * (1536 + 576) + 1536 * heads * 192 + 512 * heads * 256
    attention += heads * 128 * hidden
    expert, dense_mlp = 3 * hidden * 2048, 3 * hidden * 18432
    rest = 61 * attention + 3 * dense_mlp + 58 * (expert + hidden * 256) + 2 * 129280 * hidden
    assert rest + 58 * 256 * expert == pytest.approx(671.03e9, rel=1e-4)
    held = planned(V3, tp=1, dp=8)
    values = [each for each in held.parameters() if each.dtype == torch.float8_e4m3fn]
    blocks = [each for each in held.parameters() if each.dtype == torch.float32]
    quantized = 61 * attention + 3 * dense_mlp + 58 * 33 * expert
    assert sum(each.numel() for each in values) == quantized
    # A scale for 128 × 128 values, of kv_a_proj_with_mqa's last 64 rows too, and 58 routers.
    scales = quantized + 61 * 64 * hidden
    assert sum(each.numel() for each in blocks) == scales / 128**2 + 58 * 256 * (hidden + 1)
    assert held.num_kv_heads == 1
    small = sum(each.nbytes for each in held.parameters() if each.dtype == torch.bfloat16)
    tables = 2 * 129280 * hidden
    norms = 61 * (2 * hidden + 1536 + 512) + hidden
    assert small == 2 * (tables + norms)
