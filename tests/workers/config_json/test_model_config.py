"""ModelConfig reads both spellings as transformers does, and refuses what is not built by name."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from tests.workers.tiny_models import random_config, respell_as_hub
from workers.attention.any import AnyAttention
from workers.attention.mla_spec import MlaSpec
from workers.config_json.model_config import ModelConfig

CONFIGS = Path("benchmarks/configs")


def assert_same(folder: Path) -> None:
    ours, theirs = ModelConfig.from_folder(folder), AutoConfig.from_pretrained(folder)
    assert ours.hidden_size == theirs.hidden_size
    assert ours.intermediate_size == theirs.intermediate_size
    assert ours.num_layers == theirs.num_hidden_layers
    assert_same_attention(ours.attention[0], theirs)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.ropes[0].theta == theirs.rope_parameters["rope_theta"]
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    if isinstance(ours.attention[0], MlaSpec) or theirs.model_type == "glm4_moe":
        assert_same_mixtures(ours, theirs)
    if theirs.model_type == "qwen3_moe":
        assert ours.moe is not None
        assert ours.moe.num_experts == theirs.num_experts
        assert ours.moe.num_experts_per_tok == theirs.num_experts_per_tok
        assert ours.moe.intermediate_size == theirs.moe_intermediate_size
        assert ours.moe.norm_topk_prob == theirs.norm_topk_prob
        assert ours.moe_layers == tuple(
            layer not in theirs.mlp_only_layers and (layer + 1) % theirs.decoder_sparse_step == 0
            for layer in range(theirs.num_hidden_layers)
        )


def assert_same_attention(spec: AnyAttention, theirs: Any) -> None:
    assert spec.num_heads == theirs.num_attention_heads
    if isinstance(spec, MlaSpec):
        for name in (
            "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
        ):  # fmt: skip
            assert getattr(spec, name) == getattr(theirs, name), name
        assert spec.rope.interleaved == getattr(theirs, "rope_interleave", True)
        return
    head_dim = getattr(theirs, "head_dim", None)
    assert spec.num_kv_heads == theirs.num_key_value_heads
    assert spec.head_dim == (head_dim or theirs.hidden_size // theirs.num_attention_heads)


def assert_same_mixtures(ours: ModelConfig, theirs: Any) -> None:
    """Of DeepSeek's kind."""
    moe = ours.moe
    assert moe is not None
    assert moe.num_experts == theirs.n_routed_experts
    assert moe.num_experts_per_tok == theirs.num_experts_per_tok
    assert moe.shared_expert_size == theirs.n_shared_experts * theirs.moe_intermediate_size
    for name in (
        "n_group", "topk_group", "routed_scaling_factor", "norm_topk_prob",
    ):  # fmt: skip
        assert getattr(moe, name) == getattr(theirs, name), name
    layers = range(theirs.num_hidden_layers)
    types = getattr(theirs, "mlp_layer_types", None)
    first = 0 if types else theirs.first_k_dense_replace
    sparse = tuple(types[each] == "sparse" if types else each >= first for each in layers)
    assert ours.moe_layers == sparse


@pytest.mark.parametrize("seed", range(12))
def test_reads_what_transformers_reads(seed: int, tmp_path: Path) -> None:
    random_config(seed, moe=seed % 2 == 0).save_pretrained(tmp_path)
    assert_same(tmp_path)
    respell = json.loads((tmp_path / "config.json").read_text())
    respell.setdefault("dtype", "float32")
    (tmp_path / "config.json").write_text(json.dumps(respell))
    respell_as_hub(tmp_path)
    assert_same(tmp_path)


@pytest.mark.parametrize("seed", range(12))
def test_absent_keys_take_transformers_defaults(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    random_config(seed, moe=seed % 2 == 0).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    # The default heads do not fit every hidden size; layer_types is derived, one entry a layer.
    raw.pop("layer_types", None)
    fixed = {"model_type", "num_attention_heads", "num_key_value_heads", "num_experts_per_tok"}
    kept = {k: v for k, v in raw.items() if k in fixed or rng.random() < 0.5}
    path.write_text(json.dumps(kept))
    assert_same(tmp_path)


@pytest.mark.parametrize("key", ["hidden_size", "rms_norm_eps", "vocab_size", "hidden_act"])
def test_null_means_absent(key: str) -> None:
    raw = json.loads((CONFIGS / "qwen3-30b-a3b" / "config.json").read_text())
    without = {name: value for name, value in raw.items() if name != key}
    assert ModelConfig.from_hf({**raw, key: None}) == ModelConfig.from_hf(without)


@pytest.mark.parametrize(
    "name",
    [
        "qwen3-30b-a3b",
        "qwen3-235b-a22b",
        "qwen3-8b",
        "deepseek-v2-lite",
        "deepseek-v3",
        "glm-4.7-flash",
        "mixtral-8x7b",
        "olmoe-1b-7b",
        "qwen1.5-moe-a2.7b",
        "glm-4.5-air",
    ],
)
def test_reads_real_configs(name: str) -> None:
    assert_same(CONFIGS / name)
    assert not ModelConfig.from_folder(CONFIGS / name).unknown_keys


def test_end_tokens_are_those_of_both_files(tmp_path: Path) -> None:
    random_config(0, moe=True).save_pretrained(tmp_path)
    assert ModelConfig.from_folder(tmp_path).eos_token_ids == (1,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    assert ModelConfig.from_folder(tmp_path).eos_token_ids == (5, 7, 1)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 1}')
    assert ModelConfig.from_folder(tmp_path).eos_token_ids == (1,)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("said", "words"),
    [
        (151936, "eos_token_id 151936 .* vocab_size is 151936"),
        ([1, 10**30], "eos_token_id 10{30} .* vocab_size is 151936"),
        (-1, "eos_token_id -1 "),
        (True, "eos_token_id is True; it must be a whole number"),
        (1.5, "eos_token_id is 1.5;"),
        ("<|im_end|>", "eos_token_id is '<|im_end|>';"),
        ([1, "a"], r"eos_token_id is \[1, 'a'\];"),
        ([[1]], r"eos_token_id is \[\[1\]\];"),
        ({"id": 1}, "eos_token_id is {'id': 1};"),
        ([1] * 257, "a list of at most 256"),
    ],
)
def test_end_tokens_that_the_model_cannot_draw(
    file: str, said: Any, words: str, tmp_path: Path
) -> None:
    raw = json.loads((CONFIGS / "qwen3-30b-a3b" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw))
    path = tmp_path / file
    path.write_text(json.dumps({**(raw if file == "config.json" else {}), "eos_token_id": said}))
    with pytest.raises(ValueError, match=words.replace("|", r"\|")) as raised:
        ModelConfig.from_folder(tmp_path)
    assert str(raised.value).startswith(f"{path}: eos_token_id")


def test_of_two_spellings_of_the_wavelengths_transformers_choice_counts(tmp_path: Path) -> None:
    raw = json.loads((CONFIGS / "qwen3-30b-a3b" / "config.json").read_text())
    del raw["rope_theta"]
    for rope in (
        {"rope_parameters": {"rope_theta": 5.0}, "rope_theta": 7.0},
        {"rope_parameters": {"rope_theta": 5.0}, "rope_scaling": {"rope_theta": 6.0}},
        {"rope_parameters": {"rope_theta": 5.0}, "rope_scaling": {"type": "default"}},
        {"rope_scaling": {"rope_type": "default"}, "rope_theta": 7.0},
    ):
        (tmp_path / "config.json").write_text(json.dumps({**raw, **rope}))
        assert_same(tmp_path)


def test_heads_must_divide() -> None:
    config = ModelConfig.from_folder(CONFIGS / "qwen3-30b-a3b")
    config.check_tensor_parallel(8)  # 4 KV heads, each on two ranks
    with pytest.raises(ValueError, match="--tp 3 does not divide num_attention_heads 32"):
        config.check_tensor_parallel(3)
