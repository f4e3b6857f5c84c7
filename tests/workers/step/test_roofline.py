"""The floors: published figures, and parameters counted one by one on the models themselves."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moe.base.parallel import ParallelConfig, resolve_parallel
from moe.config import MoEConfig
from tests.workers.tiny_models import random_config
from workers.attention.kv_cache import FP8, CacheSizes
from workers.config_json.model_config import ModelConfig
from workers.step.roofline import Device, Roofline, StepWork, device_ceilings

CONFIGS = Path("benchmarks/configs")
H200 = device_ceilings("NVIDIA H200")


def layout(tp: int = 1, dp: int = 1, ep: int | None = None) -> ParallelConfig:
    return resolve_parallel(tp=tp, dp=dp, ep=ep, backend="auto", has_experts=True)


def of(name: str, parallel: ParallelConfig) -> Roofline:
    config = ModelConfig.from_folder(CONFIGS / name)
    return Roofline.of_layout(config, parallel, dtype="bfloat16")


@pytest.mark.parametrize(
    ("batch", "milliseconds"),
    [(1, 1.44), (8, 6.20), (32, 13.10), (64, 15.34), (128, 17.05), (256, 20.05)],
)
def test_decode_floors_of_one_h200(batch: int, milliseconds: float) -> None:
    cost = of("qwen3-30b-a3b", layout()).decode(batch=batch, context=1024)
    assert 1e3 * cost.floor_seconds(H200) == pytest.approx(milliseconds, rel=0.01)


@pytest.mark.parametrize(
    ("batch", "two_sliced", "two_replicas"),
    [(1, 0.72, 1.01), (8, 3.10, 3.38), (64, 7.67, 7.95), (256, 10.03, 10.31)],
)
def test_decode_floors_of_two_h200(batch: int, two_sliced: float, two_replicas: float) -> None:
    for parallel, wanted in (
        (layout(tp=2), two_sliced),
        (layout(tp=2, ep=1), two_sliced),
        (layout(dp=2), two_replicas),
    ):
        cost = of("qwen3-30b-a3b", parallel).decode(batch=batch, context=1024)
        assert 1e3 * cost.floor_seconds(H200) == pytest.approx(wanted, rel=0.01)


def test_prefill_floors() -> None:
    whole, half = of("qwen3-30b-a3b", layout()), of("qwen3-30b-a3b", layout(tp=2))
    seconds = whole.prefill(prompts=64, length=1024).floor_seconds(H200)
    assert 64 * 1024 / seconds == pytest.approx(137e3, rel=0.01)
    assert whole.prefill(prompts=1, length=1024).floor_seconds(H200) == pytest.approx(
        0.0138, rel=0.01
    )
    seconds = half.prefill(prompts=64, length=1024).floor_seconds(H200)
    assert 64 * 1024 / seconds == pytest.approx(274e3, rel=0.01)


def test_a_dense_model() -> None:
    parallel = resolve_parallel(tp=1, dp=1, ep=None, backend="auto", has_experts=False)
    roofline = of("qwen3-8b", parallel)
    assert 1e3 * roofline.decode(batch=1, context=1024).floor_seconds(H200) == pytest.approx(
        3.56, rel=0.01
    )
    assert roofline.expected_hits(8) == 0


def matrices(config: ModelConfig, tp: int, ep: int) -> tuple[int, int]:
    """Parameters a token passes on a rank without experts and head, and those of one expert: every
    matrix of every layer by its shape."""
    hidden, dense = config.hidden_size, 0
    kv_heads = max(1, config.attention[0].num_kv_heads // tp)
    for is_moe in config.moe_layers:
        q = hidden * (config.attention[0].num_heads // tp * config.attention[0].head_dim)
        k = hidden * (kv_heads * config.attention[0].head_dim)
        dense += q + k + k + q
        if is_moe:
            assert config.moe is not None
            dense += hidden * config.moe.num_experts
        else:
            dense += 3 * hidden * (config.intermediate_size // tp)
    width = 0 if config.moe is None else config.moe.intermediate_size // (tp if ep == 1 else 1)
    return dense, 3 * hidden * width


CONFIG = ModelConfig.from_hf(
    {
        "model_type": "qwen3_moe",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 256,
        "num_experts": 12,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "decoder_sparse_step": 2,
        "torch_dtype": "bfloat16",
    }
)


@pytest.mark.parametrize(("tp", "dp", "ep"), [(1, 1, 1), (2, 1, 2), (4, 1, 1), (2, 2, 4)])
@pytest.mark.parametrize(("dtype", "value_bytes"), [("bfloat16", 2), ("float32", 4)])
def test_a_step_costs_what_its_rows_ask_for(
    tp: int, dp: int, ep: int, dtype: str, value_bytes: int
) -> None:
    rng = random.Random(tp * 10 + ep)
    local = 12 // ep
    roofline = Roofline.of_rank(CONFIG, layout(tp, dp, ep), num_local_experts=local, dtype=dtype)
    dense, expert = matrices(CONFIG, tp, ep)
    # Of the last layer, a sparse one, only drawn tokens need what is behind attention.
    behind = 64 * 8 * 16 // tp + 64 * 12
    positions = np.array([rng.randrange(50) for _ in range(7)])
    counts = np.array([1, 1, 1, 1, 5, 9, 2])
    work = StepWork.of_rows(positions, counts, draws=5)
    pairs = tokens = cached = 0
    for position, count in zip(positions.tolist(), counts.tolist(), strict=True):
        tokens += count
        cached += position + count
        pairs += sum(at + 1 for at in range(position, position + count))
    assert work == StepWork(tokens=tokens, draws=5, cached=cached, attended=pairs, rows=7)
    kv_heads = max(1, 2 // tp)
    hit = rng.randrange(1, 2 * local)
    cost = roofline.cost(work, hit)
    assert cost.dense_bytes == value_bytes * dense
    assert cost.head_bytes == value_bytes * (256 // tp) * 64
    assert cost.expert_bytes == value_bytes * hit * expert
    assert cost.cache_bytes == value_bytes * 4 * 2 * kv_heads * 16 * cached
    parts = (cost.dense_bytes, cost.head_bytes, cost.expert_bytes, cost.cache_bytes)
    assert cost.bytes_moved == sum(parts)
    routes = (tokens + 5) * 3 * (dp / ep if ep > 1 else 1)
    products = tokens * dense - (tokens - 5) * behind + 5 * (256 // tp) * 64 + routes * expert
    assert cost.flops == pytest.approx(2 * products + 4 * pairs * 4 * (8 // tp) * 16)


@pytest.mark.parametrize(("tp", "kv_heads"), [(1, 2), (2, 1), (4, 1)])
def test_an_fp8_cache_moves_a_byte_a_number_and_two_of_scale(tp: int, kv_heads: int) -> None:
    """And all else as before. 4 layers, head_dim 16; measured by the cache itself."""
    work = StepWork(tokens=3, draws=3, cached=100, attended=100)
    plain, fp8 = (
        Roofline.of_layout(CONFIG, layout(tp), dtype="bfloat16", kv_cache_dtype=name).cost(work, 5)
        for name in ("bfloat16", "fp8_e4m3")
    )
    assert plain.cache_bytes == 100 * 4 * 2 * kv_heads * 16 * 2
    assert fp8.cache_bytes == 100 * 4 * 2 * kv_heads * (16 + 2)
    sizes = CacheSizes(
        num_layers=4, block_size=1, num_kv_heads=kv_heads, head_dim=16, v_head_dim=16, dtype=FP8
    )
    assert fp8.cache_bytes == 100 * sizes.bytes_per_block
    assert dataclasses.replace(fp8, cache_bytes=plain.cache_bytes) == plain


def with_windows(*windows: int | None) -> ModelConfig:
    """The model above, a window a layer."""
    layers = zip(CONFIG.attention, windows, strict=True)
    attention = tuple(dataclasses.replace(spec, window=window) for spec, window in layers)
    return dataclasses.replace(CONFIG, attention=attention)


@pytest.mark.parametrize("window", [1, 3, 8, 40])
def test_layers_with_a_window_cost_what_it_shows(window: int) -> None:
    """Of decodes, chunks and whole prompts, shorter and longer than it."""
    config = with_windows(None, window, window, None)
    roofline = Roofline.of_layout(config, layout(), dtype="bfloat16")
    whole = Roofline.of_layout(CONFIG, layout(), dtype="bfloat16")
    positions, counts = np.array([0, 7, 2, 30, 11, 0]), np.array([1, 1, 1, 9, 4, 12])
    work = StepWork.of_rows(positions, counts, draws=4, windows=roofline.windows)
    keys, pairs = 0, 0
    for position, count in zip(positions.tolist(), counts.tolist(), strict=True):
        seen = [
            set(range(max(0, at - window + 1), at + 1)) for at in range(position, position + count)
        ]
        keys += len(set().union(*seen))
        pairs += sum(map(len, seen))
    assert work.seen(window) == (keys, pairs)
    cost, most = roofline.cost(work, 5), whole.cost(work, 5)
    assert cost.cache_bytes == whole.cache_bytes * (work.cached + keys) / 2
    assert most.flops - cost.flops == whole.pair_flops * (work.attended - pairs) / 2
    assert cost.dense_bytes == most.dense_bytes


def test_expected_steps_know_windows() -> None:
    roofline = Roofline.of_layout(with_windows(*[6] * 4), layout(), dtype="bfloat16")
    assert roofline.decode(batch=3, context=100).cache_bytes == 3 * 6 * roofline.cache_bytes
    assert roofline.decode(batch=3, context=4).cache_bytes == 3 * 4 * roofline.cache_bytes
    whole = Roofline.of_layout(CONFIG, layout(), dtype="bfloat16")
    hidden = 2 * sum(at + 1 - 6 for at in range(6, 20))
    less = whole.prefill(prompts=2, length=20).flops - roofline.prefill(prompts=2, length=20).flops
    assert less == whole.pair_flops * hidden


def test_long_contexts_do_not_overflow_the_columns_of_a_step() -> None:
    """Rows come as int32; 65,536 tokens attend to 2,147,516,416 pairs."""
    columns = np.array([0], dtype=np.int32), np.array([65_536], dtype=np.int32)
    assert StepWork.of_rows(*columns, draws=1).attended == 65_536 * 65_537 // 2


def test_what_a_step_does_not_use_is_not_read() -> None:
    roofline = Roofline.of_layout(CONFIG, layout(dp=2), dtype="bfloat16")
    idle = roofline.cost(StepWork(tokens=0, draws=0, cached=0, attended=0), 3)
    assert idle.bytes_moved == idle.expert_bytes == 3 * roofline.expert_bytes > 0
    chunk = roofline.cost(StepWork(tokens=4, draws=0, cached=4, attended=10), 0)
    assert chunk.head_bytes == chunk.expert_bytes == 0 < chunk.dense_bytes


def test_the_floor_is_the_longer_of_moving_and_computing() -> None:
    cost = Roofline.of_layout(CONFIG, layout(), dtype="bfloat16").decode(batch=3, context=9)
    for moved, done in ((1e9, 1e15), (1e15, 1e9)):
        device = Device(name="x", bytes_per_second=moved, flops_per_second=done)
        wanted = cost.bytes_moved / 1e9 if moved < done else cost.flops / 1e9
        assert cost.floor_seconds(device) == wanted
    assert cost.floor_seconds(None) == 0
    assert device_ceilings("NVIDIA Unheard-of") is None
    assert device_ceilings("NVIDIA H200", "float32") is None


def test_expected_hits_are_those_of_random_routing() -> None:
    roofline = Roofline.of_layout(CONFIG, layout(tp=2), dtype="bfloat16")
    rng = random.Random(0)
    for tokens in (1, 4, 40):
        total = 0
        for _ in range(2000):
            chosen = {e for _ in range(tokens) for e in rng.sample(range(12), 3)}
            total += len(chosen & set(range(6)))
        # Two sparse layers.
        assert roofline.expected_hits(tokens) == pytest.approx(2 * total / 2000, rel=0.03)
    few, many = roofline.expected_hits(1), roofline.expected_hits(40)
    assert roofline.expected_hits(40, 1) == pytest.approx((few + many) / 2)


def test_shared_experts_are_dense() -> None:
    assert isinstance(CONFIG.moe, MoEConfig)
    moe = dataclasses.replace(CONFIG.moe, shared_expert_size=16)
    shared = dataclasses.replace(CONFIG, moe=moe)
    for parallel, width in (
        (layout(tp=2), 8),
        (dataclasses.replace(layout(tp=2), backend="all_to_all"), 16),
    ):
        plain = Roofline.of_layout(CONFIG, parallel, dtype="bfloat16")
        more = Roofline.of_layout(shared, parallel, dtype="bfloat16")
        assert more.dense - plain.dense == 2 * 3 * 64 * width


@pytest.mark.parametrize("seed", range(4))
def test_parameters_are_those_of_the_checkpoint(seed: int, tmp_path: Path) -> None:
    """transformers' model of the same config, its matrices summed by name."""
    from transformers import AutoModelForCausalLM

    source = random_config(seed, moe=seed % 2 == 0)
    source.save_pretrained(tmp_path)
    config = ModelConfig.from_folder(tmp_path)
    parallel = resolve_parallel(
        tp=1, dp=1, ep=None, backend="auto", has_experts=config.moe is not None
    )
    roofline = Roofline.of_layout(config, parallel, dtype="float32")
    sizes = {"experts": 0, "dense": 0}
    model = AutoModelForCausalLM.from_config(source)
    for name, parameter in model.named_parameters():
        if "norm" in name or "embed_tokens" in name or "lm_head" in name:
            continue
        sizes["experts" if ".experts." in name else "dense"] += parameter.numel()
    experts = config.moe.num_experts if config.moe else 0
    assert roofline.dense == sizes["dense"]
    assert roofline.expert * experts * roofline.moe_layers == sizes["experts"]
    assert roofline.head == model.get_output_embeddings().weight.numel()


@pytest.mark.processes
def test_no_torch() -> None:
    code = "import sys, workers.step.roofline; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("dtype", "value_bytes"), [("bfloat16", 2), ("float32", 4)])
def test_routers_of_fp32_have_its_bytes(dtype: str, value_bytes: int) -> None:
    """Of two mixtures behind a dense layer."""
    shape = {"num_hidden_layers": 3, "n_routed_experts": 16, "hidden_size": 64, "head_dim": 16}
    config = ModelConfig.from_hf({"model_type": "glm4_moe", "dtype": dtype, **shape})
    roofline = Roofline.of_layout(config, layout(1, 1, 1), dtype=dtype)
    wider = (4 - value_bytes) * 2 * 16 * 64
    assert roofline.dense_bytes == value_bytes * roofline.dense + wider


@pytest.mark.parametrize("tp", [1, 4])
def test_states_are_read_and_written_once_a_row(tp: int) -> None:
    """Those of Qwen3-Next's 36 layers, beside keys and values of the other 12."""
    config = ModelConfig.from_hf({"model_type": "qwen3_next", "dtype": "bfloat16"})
    roofline = Roofline.of_layout(config, layout(tp, 1, tp), dtype="bfloat16")
    recurrent, inputs = 32 * 128 * 128 * 4, 4 * (2 * 16 * 128 + 32 * 128) * 2
    state = 36 * (recurrent + inputs) / tp
    assert roofline.state_bytes == state
    token = 12 * max(1, 2 / tp) * 2 * 256 * 2
    assert roofline.decode(batch=5, context=100).cache_bytes == 5 * (2 * state + 100 * token)
    longer = roofline.prefill(prompts=1, length=200).flops
    shorter = roofline.prefill(prompts=1, length=100).flops
    assert longer - shorter > 100 * 36 * 6 * 32 * 128 * 128 / tp
