"""Families on a GPU: their kernels against transformers, their graphs, and what a step costs the
host."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.families.draw_parts import VOCAB
from tests.workers.families.draws import FAMILIES, save_family
from tests.workers.gpu.driver import (
    CONFIGS,
    CUDA,
    check_compilations,
)
from tests.workers.gpu.test_graphs import check_graphs
from tests.workers.steps import (
    decode_step,
    prefill_step,
    relative_error,
    start_rank,
    step_logits,
)

pytestmark = pytest.mark.gpu

# Of real sizes, but for layers, experts and words; of each kind of attention and of routers.
REAL: dict[str, dict[str, Any]] = {
    "deepseek-v2-lite": {"num_hidden_layers": 2},
    "deepseek-v3": {"num_hidden_layers": 4, "n_routed_experts": 16, "n_group": 4, "topk_group": 2},
    "glm-4.7-flash": {"num_hidden_layers": 2},
    "glm-4.5-air": {"num_hidden_layers": 2},
    "mixtral-8x7b": {"num_hidden_layers": 1},
    "olmoe-1b-7b": {"num_hidden_layers": 2},
    "qwen1.5-moe-a2.7b": {"num_hidden_layers": 2},
    "minimax-m2": {"num_hidden_layers": 1, "num_local_experts": 32},
    "ernie-4.5-21b-a3b": {"num_hidden_layers": 2},
    "hunyuan-a13b": {"num_hidden_layers": 1},
    "qwen3.5-35b-a3b": {"num_hidden_layers": 4, "num_experts": 32},
}
# Of the largest logit; layers that keep a state carry roundings on: transformers' own logits differ
# by 4e-4 between fp32 and fp64.
LIMITS = dict.fromkeys(("qwen3_next", "qwen3_5_moe"), 1e-3)
WORDS = 2048


@pytest.fixture(autouse=True)
def _shared_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests allocate meanwhile is not counted as graphs'."""
    monkeypatch.setattr("workers.rank.graph_capture.GRAPH_RESERVE_BYTES", 1 << 40)


def real(name: str, folder: Path) -> Path:
    raw = json.loads((CONFIGS / name / "config.json").read_text())
    raw = {key: value for key, value in raw.items() if key != "quantization_config"}
    text = raw.get("text_config", raw)
    text |= REAL[name] | {"vocab_size": WORDS, "eos_token_id": 2, "bos_token_id": 1}
    text |= {"pad_token_id": None}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_compute_what_transformers_does(family: str, tmp_path: Path) -> None:
    """In fp32: a prompt, and the same in chunks and a decode."""
    for seed in range(2):
        config = FAMILIES[family](random.Random(f"{family} {seed}"))
        if getattr(config, "rotary_dim", None) and "partial_rotary_factor" not in str(config):
            continue  # older versions of transformers turn all of a head
        oracle = save_family(config, tmp_path, seed)
        rank = start_rank(
            tmp_path, block_size=(16, 4)[seed], cuda_graphs="off", num_blocks=512, **CUDA
        )
        tokens = torch.randint(VOCAB, (200,), generator=torch.manual_seed(seed)).tolist()
        with torch.inference_mode():
            expected = oracle(torch.tensor([tokens])).logits[0]
        count = -(-len(tokens) // rank.runner.builder.block_size)
        blocks = torch.randperm(rank.num_blocks // rank.model.layer_groups.num_groups).tolist()
        ours = step_logits(rank, prefill_step(0, 2, tokens, blocks[:count]))
        assert relative_error(ours, expected) <= LIMITS.get(family, 1e-4)
        chunks = [(0, 1), (1, 17), (17, 199)]
        parts = [
            step_logits(
                rank,
                prefill_step(
                    n,
                    5,
                    tokens[a:b],
                    blocks[count : 2 * count] if n == 0 else [],
                    position=a,
                    draw=False,
                ),
            ).clone()
            for n, (a, b) in enumerate(chunks)
        ]
        rank.runner.builder.last_token[5] = tokens[199]
        parts.append(step_logits(rank, decode_step(3, [5], [199], [[]])))
        assert relative_error(torch.cat(parts), expected) <= LIMITS.get(family, 1e-4)


@pytest.mark.parametrize("name", REAL)
def test_graphs_of_real_sizes(name: str, tmp_path: Path) -> None:
    """They equal single launches, allocate nothing, and no step behind them compiles."""
    most = 4096 if name == "olmoe-1b-7b" else 1024
    rank = start_rank(
        real(name, tmp_path), load_format="dummy", dtype="bfloat16", max_batch_size=72,
        max_num_batched_tokens=most, max_model_len=4096, num_blocks=4096,
        **CUDA,
    )  # fmt: skip
    assert rank.runner.graphs.num_allocations == 0
    check_graphs(rank, WORDS)
    check_compilations(rank, WORDS, 900)


@pytest.mark.parametrize(
    "name", ["deepseek-v2-lite", "glm-4.7-flash", "olmoe-1b-7b", "qwen3.5-35b-a3b"]
)
def test_no_step_compiles_without_graphs(name: str, tmp_path: Path) -> None:
    rank = start_rank(
        real(name, tmp_path), load_format="dummy", dtype="bfloat16", max_batch_size=72,
        max_num_batched_tokens=1024, max_model_len=4096, num_blocks=4096, cuda_graphs="off",
        **CUDA,
    )  # fmt: skip
    check_compilations(rank, WORDS, 900)
