"""The model whose streams are measured with parsers and without."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from benchmarks.parsers import demo_of_sizes
from demo import CHECKPOINT
from workers.config_json.model_config import ModelConfig


def test_a_model_of_real_sizes_has_the_words_of_the_demo(tmp_path: Path) -> None:
    folder = demo_of_sizes("qwen3-30b-a3b", tmp_path / "sizes")
    config = ModelConfig.from_folder(folder)
    own = ModelConfig.from_folder(CHECKPOINT)
    assert (config.num_layers, config.hidden_size) == (48, 2048)
    assert config.vocab_size == own.vocab_size
    turns = [{"role": "user", "content": "Hello"}]
    both = (AutoTokenizer.from_pretrained(each) for each in (folder, CHECKPOINT))
    ours, theirs = (each.apply_chat_template(turns, tokenize=False) for each in both)
    assert ours == theirs
