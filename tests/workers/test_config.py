"""ModelConfig reads both spellings as transformers does, and refuses what is not built by name."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from tests.workers.tiny_models import random_config, respell_as_hub
from workers.config import WorkerConfig
from workers.model_config import ModelConfig

CONFIGS = Path("benchmarks/configs")


def assert_same(folder: Path) -> None:
    ours, theirs = ModelConfig.from_folder(folder), AutoConfig.from_pretrained(folder)
    head_dim = getattr(theirs, "head_dim", None)
    assert ours.hidden_size == theirs.hidden_size
    assert ours.intermediate_size == theirs.intermediate_size
    assert ours.num_layers == theirs.num_hidden_layers
    assert ours.num_heads == theirs.num_attention_heads
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (head_dim or theirs.hidden_size // theirs.num_attention_heads)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
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


@pytest.mark.parametrize(("key", "value"), [("rope_scaling", "yarn"), ("layer_types", 5)])
def test_an_odd_type_is_one_line(key: str, value: Any, tmp_path: Path) -> None:
    raw = json.loads((CONFIGS / "qwen3-30b-a3b" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, key: value}))
    with pytest.raises(ValueError, match="wrong type"):
        ModelConfig.from_folder(tmp_path)


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "qwen3-235b-a22b", "qwen3-8b"])
def test_reads_real_configs(name: str) -> None:
    assert_same(CONFIGS / name)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.*yarn"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1.0}}, "rope_parameters"),
        ({"use_sliding_window": True, "sliding_window": 128}, "use_sliding_window"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act.*gelu"),
        ({"model_type": "llama"}, "model_type.*llama.*qwen3"),
        ({"dtype": "int8"}, "dtype.*int8"),
        ({"hidden_size": "x"}, "hidden_size is 'x'; it must be int"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps.*float or int"),
        ({"mlp_only_layers": 3}, "mlp_only_layers.*list"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_hidden_layers": 0}, "num_layers is 0"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"eos_token_id": ["a"]}, "eos_token_id"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"num_experts_per_tok": 129}, "num_experts_per_tok"),
        ({"moe_router_backend": "magic"}, "magic.*softmax"),
    ],
)
def test_what_is_not_built_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    raw = json.loads((CONFIGS / "qwen3-30b-a3b" / "config.json").read_text())
    with pytest.raises(ValueError, match=named):
        ModelConfig.from_hf({**raw, **change})


def test_end_tokens_of_the_generation_config_win(tmp_path: Path) -> None:
    random_config(0, moe=True).save_pretrained(tmp_path)
    assert ModelConfig.from_folder(tmp_path).eos_token_ids == (1,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    assert ModelConfig.from_folder(tmp_path).eos_token_ids == (5, 7)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"device": "tpu"}, "--device.*tpu.*cuda"),
        ({"dtype": "int4"}, "--dtype.*int4"),
        ({"load_format": "pickle"}, "--load-format.*pickle"),
        ({"max_batch_size": 0}, "--max-batch-size is 0"),
        ({"memory_fraction": 1.5}, "--memory-fraction is 1.5"),
        ({"listen": "foo"}, "--listen is 'foo'; give HOST:PORT"),
    ],
)
def test_bad_flags_are_named(flags: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        WorkerConfig(**{"model": Path(), "listen": "127.0.0.1:1", **flags})


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_config_that_is_not_json_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json") as raised:
        ModelConfig.from_folder(tmp_path)
    assert "\n" not in str(raised.value)


def test_heads_must_divide() -> None:
    config = ModelConfig.from_folder(CONFIGS / "qwen3-30b-a3b")
    config.check_tensor_parallel(8)  # 4 KV heads, each on two ranks
    with pytest.raises(ValueError, match="--tp 3 does not divide num_attention_heads 32"):
        config.check_tensor_parallel(3)
