"""What the table of kernels says of launches: their labels, their parts and their floors."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DeepseekV3Config

from benchmarks import kernels
from benchmarks.kernels import Launch
from moe.base.int4_format import Int4Format
from moe.base.parallel import resolve_parallel
from switchyard.worker.v1 import worker_pb2
from tests.workers.families.draws import save_family
from tests.workers.steps import interpreted, start_rank
from tests.workers.tiny_models import random_config, save_model
from workers.config_json.model_config import ModelConfig
from workers.config_json.quantization import MADE
from workers.config_json.quantized_modules import Quantization
from workers.models.mla import LatentAttention
from workers.step.batch import BatchBuilder
from workers.step.roofline import Device, Roofline, Seen, StepWork
from workers.step.runner import Measure

CONFIGS = Path("benchmarks/configs")
LIBRARY_GEMM = "nvjet_tst_64x8_64x16_4x1_v_bz_TNN"
COPY_IN, COPY_OUT = "Memcpy HtoD (Pinned -> Device)", "Memcpy DtoH (Device -> Pinned)"


def test_gemms_are_told_by_their_place() -> None:
    """A sparse layer whose GEMMs are the library's, a dense one whose are ours, and the head."""
    launches = [
        (COPY_IN, "copies"),
        ("_embed_kernel", "embed"),
        ("_sum_norm_kernel", "sum + residual + norm"),
        (LIBRARY_GEMM, "qkv"),
        ("_qk_rope_wide_kernel", "qk-norm + rope + cache"),
        ("_chunk_kernel", "attention"),
        ("_join_kernel", "attention join"),
        ("Memset (Device)", "copies"),
        (LIBRARY_GEMM, "o_proj"),
        ("_sum_norm_kernel", "sum + residual + norm"),
        (LIBRARY_GEMM, "router"),
        ("_topk_kernel", "top-k"),
        ("_align_count_kernel", "align"),
        ("_align_many_kernel", "align"),
        ("_gate_up_kernel", "experts gate·up"),
        ("_down_kernel", "experts down"),
        ("_sum_norm_kernel", "sum + residual + norm"),
        ("_linear_kernel", "qkv"),
        ("_qk_rope_kernel", "qk-norm + rope + cache"),
        ("_tile_kernel", "attention"),
        ("_linear_vector_kernel", "o_proj"),
        ("_sum_norm_kernel", "sum + residual + norm"),
        ("_linear_kernel", "dense gate·up"),
        ("_swiglu_kernel", "swiglu"),
        ("_linear_kernel", "dense down"),
        ("_sum_norm_kernel", "sum + residual + norm"),
        ("_expert_load_kernel", "expert load"),
        ("void at::native::index_elementwise_kernel<128>", "copies"),
        (LIBRARY_GEMM, "head"),
        ("_race_kernel", "draw"),
        ("_winner_kernel", "draw"),
        (COPY_OUT, "copies"),
    ]
    names, expected = zip(*launches, strict=True)
    assert kernels.labels(names) == list(expected)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # One GEMM in two launches.
        ([LIBRARY_GEMM, "Memset (Device)", "gemmk1", "_qk_rope_kernel"], ["qkv", "copies", "qkv"]),
        # The head, its depth cut: parts are summed before tokens are drawn.
        (["_expert_load_kernel", "_linear_kernel", "_sum_norm_kernel"], ["expert load", "head"]),
        # A library's name that holds pieces of ours.
        (["_chunk_kernel", "cutlass_16816gemm_tn_align8_down_embed"], ["attention", "o_proj"]),
        # What nobody knows.
        (["_down_kernel", LIBRARY_GEMM], ["experts down", "other gemm"]),
        (["_" + "abcd" * 10], ["_" + "abcd" * 9 + "abc"]),
    ],
)
def test_labels_of_the_rarer_launches(names: list[str], expected: list[str]) -> None:
    assert kernels.labels(names)[: len(expected)] == expected


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of kernels that are interpreted, and of the library's GEMMs, as they are launched."""
    if torch.cuda.is_available():
        pytest.skip("kernels are not interpreted")
    from triton.runtime.interpreter import InterpretedFunction

    names: list[str] = []
    run, mm = InterpretedFunction.run, torch.mm

    def recorded_run(kernel: Any, *args: Any, **options: Any) -> Any:
        names.append(kernel.fn.__name__)
        return run(kernel, *args, **options)

    def recorded_mm(*args: Any, **options: Any) -> torch.Tensor:
        names.append(LIBRARY_GEMM)
        return mm(*args, **options)

    monkeypatch.setattr(InterpretedFunction, "run", recorded_run)
    monkeypatch.setattr(torch, "mm", recorded_mm)
    return names


@pytest.mark.interpreter
def test_every_launch_of_a_model_has_a_label(
    ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dense layer and a sparse one: as the model launches them, not as a test lists them."""
    monkeypatch.setattr("workers.rank.kv_sizing.warm_up_steps", lambda **shape: iter(()))
    config = random_config(35, moe=True)
    assert (config.num_hidden_layers, config.decoder_sparse_step) == (2, 2)
    save_model(config, tmp_path)
    rank = start_rank(tmp_path, interpreted(), max_batch_size=1, max_num_batched_tokens=12)
    once = ("embed", "dense gate·up", "dense down", "swiglu", "top-k", "expert load")
    shared = dict.fromkeys((*once, "experts gate·up", "experts down", "head"), 1)
    shared |= dict.fromkeys(("qkv", "qk-norm + rope + cache", "attention", "o_proj", "draw"), 2)
    shared |= {"sum + residual + norm": 5}
    first, decode, *_ = kernels.decode_steps(1, 20, 16)
    rank.runner.launch(first).result()
    prefill = next(kernels.prefill_steps(12, 16, config.vocab_size))
    # The norm of so few tokens makes the router's logits; the last layer's are those of a decode.
    for step, own in ((decode, {"attention join": 2}), (prefill, {})):
        ran.clear()
        rank.runner.launch(step).result()
        assert Counter(kernels.labels(ran)) == shared | own
    assert LIBRARY_GEMM in ran


@pytest.mark.interpreter
@pytest.mark.parametrize("narrow", [True, False])
def test_every_launch_of_latent_attention_has_a_label(
    narrow: bool, ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries are made of latents or not; prompts meet each other by kernels of their own."""
    monkeypatch.setattr("workers.rank.kv_sizing.warm_up_steps", lambda **shape: iter(()))
    monkeypatch.setattr(LatentAttention, "few_tokens", 8)
    config = DeepseekV3Config(
        vocab_size=97, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, q_lora_rank=16 if narrow else None,
        kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, eos_token_id=1,
        max_position_embeddings=64, first_k_dense_replace=1,
    )  # fmt: skip
    save_family(config, tmp_path)
    rank = start_rank(tmp_path, interpreted(), max_batch_size=1, max_num_batched_tokens=12)
    of_layer = ("latents", "norms + latents", "absorbed queries", "attention", "values", "o_proj")
    shared = Counter((*of_layer, *["queries"] * narrow))
    first, decode, *_ = kernels.decode_steps(1, 20, 16)
    rank.runner.launch(first).result()
    prefill = next(kernels.prefill_steps(12, 16, config.vocab_size))
    both = {"keys and values": 1, "attention to new": 1}
    for step, own in ((decode, {"attention join": 1}), (prefill, both)):
        ran.clear()
        rank.runner.launch(step).result()
        found = Counter(kernels.labels(ran))
        assert {label: found[label] for label in shared | own} == shared | own
        assert found["other gemm"] == found["qkv"] == 0


def test_a_part_begins_where_the_one_before_ended() -> None:
    """But for the host's own time: before the first kernel, and before the copies ahead of it."""
    launches = [
        Launch(COPY_IN, 0.0, 2.0),
        Launch("index_kernel", 50.0, 53.0),
        Launch("_embed_kernel", 1000.0, 1004.0),
        Launch("_sum_norm_kernel", 1003.0, 1010.0),  # it began before the end of the other
        Launch("_linear_kernel", 1011.0, 1015.0),
        Launch("_qk_rope_kernel", 1011.5, 1018.0),
        Launch("_tile_kernel", 1018.0, 1020.0),
        Launch("_sum_norm_kernel", 1030.0, 1031.0),
        Launch(COPY_OUT, 1033.0, 1034.0),
    ]
    parts = kernels.parts(launches)
    assert parts == {
        "copies": [2.0, 3.0, 3.0],
        "embed": [4.0],
        "sum + residual + norm": [6.0, 11.0],
        "qkv": [5.0],
        "qk-norm + rope + cache": [3.0],
        "attention": [2.0],
    }
    assert list(parts)[:3] == ["copies", "embed", "sum + residual + norm"]
    assert sum(map(sum, parts.values())) == (2.0 - 0.0) + (53.0 - 50.0) + (1034.0 - 1000.0)
    assert kernels.parts(launches[2:])["embed"] == [4.0]
    assert kernels.parts([]) == {}


WORKS = {
    "decode": StepWork(tokens=64, draws=64, cached=64 * 1088, attended=64 * 1088),
    "prefill": StepWork(tokens=3000, draws=3, cached=3000, attended=3 * 1000 * 1001 / 2),
}


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
@pytest.mark.parametrize("window", [None, 512])
@pytest.mark.parametrize(
    ("name", "hits"), [("qwen3-30b-a3b", 5000), ("qwen3-8b", 0), ("deepseek-v2-lite", 1000)]
)
def test_floors_add_up_to_the_roofline_s(
    name: str, hits: int, window: int | None, work: StepWork
) -> None:
    """All but the router's, which is too small to have one; half of the layers with a window."""
    config = ModelConfig.from_folder(CONFIGS / name)
    if window is not None and name != "deepseek-v2-lite":
        attention = [
            dataclasses.replace(spec, window=window) if index % 2 else spec
            for index, spec in enumerate(config.attention)
        ]
        config = dataclasses.replace(config, attention=tuple(attention))
        work = dataclasses.replace(work, windows={window: Seen(64 * 512, 64 * 512)})
    parallel = resolve_parallel(tp=1, dp=1, ep=None, backend="auto", has_experts=True)
    cost = Roofline.of_layout(config, parallel, dtype="bfloat16").cost(work, hits)
    others = other_bytes = 0
    if config.moe is not None:
        row = sum(config.moe_layers) * config.hidden_size
        others = row * config.moe.num_experts
        other_bytes = (4 if config.moe.fp32_gate else 2) * others

    def total(bytes_per_second: float, flops_per_second: float) -> float:
        device = Device(
            name="", bytes_per_second=bytes_per_second, flops_per_second=flops_per_second
        )
        return sum(kernels.floors(config, work, hits, 2, device).values())

    assert total(1e6, 1e30) == pytest.approx(cost.bytes_moved - other_bytes)
    unread = (
        0 if config.moe is None else (work.tokens - work.draws) * others / sum(config.moe_layers)
    )
    assert total(1e30, 1e6) == pytest.approx(cost.flops - 2 * (others * work.tokens - unread))


def test_a_floor_is_the_longer_of_bytes_and_operations() -> None:
    config = ModelConfig.from_folder(CONFIGS / "qwen3-30b-a3b")
    device = Device(name="NVIDIA H200", bytes_per_second=4.3e12, flops_per_second=790e12)
    few = kernels.floors(config, WORKS["decode"], 5000, 2, device)
    many = kernels.floors(config, WORKS["prefill"], 6144, 2, device)
    qkv = 48 * 2048 * (32 + 2 * 4) * 128
    assert few["qkv"] == pytest.approx(1e6 * 2 * qkv / 4.3e12)
    assert many["qkv"] == pytest.approx(1e6 * 2 * qkv * 3000 / 790e12)
    assert few["experts down"] == pytest.approx(1e6 * 2 * 5000 * 2048 * 768 / 4.3e12)
    assert few["experts gate·up"] == pytest.approx(2 * few["experts down"])
    assert many["head"] == pytest.approx(1e6 * 2 * 2048 * 151936 / 4.3e12)
    assert kernels.floors(config, WORKS["decode"], 5000, 2, None) == {}
    small = kernels.floors(config, WORKS["decode"], 5000, 2, device, 48 * 2 * 4 * 130)
    assert small["attention"] == pytest.approx(few["attention"] * 130 / 256)
    assert {**small, "attention": few["attention"]} == few
    quantization = Quantization(weight_format=MADE)
    narrow = dataclasses.replace(config, quantization=quantization)
    halved = kernels.floors(narrow, WORKS["decode"], 5000, 2, device)
    assert halved["head"] == few["head"]
    assert halved["attention"] == few["attention"]
    for name in ("qkv", "o_proj", "experts gate·up", "experts down"):
        assert halved[name] == pytest.approx(few[name] / 2)
    assert kernels.floors(narrow, WORKS["prefill"], 6144, 2, device)["qkv"] == many["qkv"]
    int4 = Quantization(weight_format=Int4Format(group=128, zero_points=True))
    narrow = dataclasses.replace(config, quantization=int4)
    one = StepWork(tokens=1, draws=1, cached=100.0, attended=100.0)
    whole, quarter = (kernels.floors(each, one, 384, 2, device) for each in (config, narrow))
    # Half a byte, and a scale of two and a zero point of one for 128.
    for name in ("qkv", "experts down"):
        assert quarter[name] == pytest.approx(whole[name] * (0.5 + 3 / 128) / 2)
    assert quarter["head"] == whole["head"]


def test_rows_are_medians_and_the_last_is_the_device_s_own() -> None:
    steps = [
        {"embed": [4.0], "qkv": [10.0, 20.0]},
        {"embed": [6.0], "qkv": [20.0, 40.0], "copies": [3.0]},
        {"embed": [5.0], "qkv": [10.0, 30.0]},
    ]
    results = [
        worker_pb2.StepResult(device_seconds=seconds, floor_seconds=1e-4)
        for seconds in (5e-4, 9e-4, 4e-4)
    ]
    rows = kernels.table("decode B=1", steps, {"qkv": 8.0, "head": 1.0}, results)
    assert [list(row) for row in rows] == [
        ["step", "kernel", "launches", "µs", "floor µs", "share %"]
    ] * 4
    assert {row["step"] for row in rows} == {"decode B=1"}
    cells = {row["kernel"]: list(row.values())[2:] for row in rows}
    assert cells == {
        "embed": [1, 5.0, 0.0, "–"],
        "qkv": [2, 40.0, 8.0, pytest.approx(20.0)],
        "copies": [0, 3.0, 0.0, "–"],
        "step (device seconds)": [3, *map(pytest.approx, (500.0, 100.0, 20.0))],
    }
    assert list(cells)[-1] == "step (device seconds)"


def test_prompts_do_not_share_blocks() -> None:
    """Of 1,024 tokens and what is left; a rank takes them, and the decodes of the others."""
    builder = BatchBuilder(
        num_slots=3, max_blocks=80, block_size=16, max_tokens=2100, device=torch.device("cpu")
    )
    steps = list(kernels.prefill_steps(2100, 16, vocab=50))
    for step in steps:
        assert list(step.num_tokens) == [1024, 1024, 52]
        assert list(step.num_new_blocks) == [64, 64, 4]
        assert sorted(step.new_blocks) == list(range(132))
        assert set(step.token_ids) == set(range(50))
        assert len(builder.build(step).forward.ids_T) == 2100
    assert len({tuple(step.token_ids) for step in steps}) == len(steps) == 7
    first, *decodes = kernels.decode_steps(3, 1085, 16)
    assert list(first.num_new_blocks) == [69] * 3  # 1,085 tokens and 7 steps
    assert sorted(first.new_blocks) == list(range(3 * 69))
    builder.build(first)
    for number, step in enumerate(decodes):
        assert step.decode_only
        batch = builder.build(step)
        assert batch.forward.attention.lengths == [1086 + number] * 3
    assert len(decodes) == 7


def profiler_of(launches: list[Launch]) -> types.SimpleNamespace:
    """A profiler that saw these on a device, in no order, and as much on the host."""
    events = [
        types.SimpleNamespace(
            name=name,
            device_type=types.SimpleNamespace(name=side),
            time_range=types.SimpleNamespace(start=start, end=end),
        )
        for name, start, end in reversed(launches)
        for side in ("CUDA", "CPU")
    ]
    return types.SimpleNamespace(events=lambda: events)


def test_a_run_but_for_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps run on a CPU; the profiler's events are made up."""
    save_model(random_config(1, moe=True), tmp_path)
    rank = start_rank(tmp_path)
    device = Device(name="cpu", bytes_per_second=1e9, flops_per_second=1e12)
    rank.runner.measure = Measure(rank.runner.measure.roofline, device)
    started: list[int] = []
    asked: list[str] = []

    def start(model: Path, *, max_batch_size: int, quantization: str, kv_cache_dtype: str) -> Any:
        asked.append(quantization)
        started.append(max_batch_size)
        assert kv_cache_dtype == "auto"
        return rank

    monkeypatch.setattr(kernels, "start_rank", start)
    launches = [
        Launch(COPY_IN, 0.0, 1.0),
        Launch("_embed_kernel", 900.0, 902.0),
        Launch("_sum_norm_kernel", 901.0, 904.0),
        Launch("_linear_kernel", 904.0, 907.0),
        Launch("_qk_rope_kernel", 905.0, 908.0),
        Launch("_down_vector_kernel", 906.0, 910.0),
    ]
    monkeypatch.setattr(kernels, "profile", lambda activities: nullcontext(profiler_of(launches)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(kernels, "PROMPT", 3)
    flags = ["--batch-sizes", "2", "--context", "20", "--prefill", "9", "--json", "-"]
    monkeypatch.setattr(sys, "argv", ["kernels", str(tmp_path), *flags])
    kernels.main()
    written = json.loads(capsys.readouterr().out)
    assert asked == ["auto"]
    assert started == [3]  # the prompts of a prefill need as many slots
    assert written["title"] == f"Kernels: {tmp_path.name}, cpu, float32"
    rows = {(row["step"], row["kernel"]): row for row in written["rows"]}
    assert {step for step, _ in rows} == {"decode B=2", "prefill 9"}
    assert rows["decode B=2", "embed"]["µs"] == 2.0
    assert rows["decode B=2", "qkv"]["µs"] == 3.0
    assert rows["prefill 9", "copies"]["launches"] == 1
    config = rank.model_config
    qkv = config.attention[0].num_heads + 2 * config.attention[0].num_kv_heads
    weights = config.num_layers * config.hidden_size * qkv * config.attention[0].head_dim
    assert rows["decode B=2", "qkv"]["floor µs"] == pytest.approx(4e-3 * weights)
    hits = int(rank.runner.results.hits_L.sum())
    expert = config.hidden_size * config.moe.intermediate_size
    assert hits > 0
    assert rows["prefill 9", "experts down"]["floor µs"] == pytest.approx(4e-3 * expert * hits)
    step = rows["prefill 9", "step (device seconds)"]
    assert step["launches"] == len(launches)
    assert step["share %"] == pytest.approx(100 * step["floor µs"] / step["µs"])
    assert step["µs"] > 0
