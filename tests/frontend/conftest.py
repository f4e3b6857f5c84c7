"""Fixtures: a small byte-level BPE tokenizer with special and added tokens, a chat template, and
clients that do not try again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from frontend.processing.tokenizer import Tokenizer
from switchyard import client, resumption

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog does not mind the fox at all.",
    "Größe, naïve, façade, 東京と京都, Ελλάδα, emoji 🙂🚀 and more text to merge: 東京 東京 🙂🙂",
]
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if shout %}!{% endif %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level_backend() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>", "<|user|>", "<|assistant|>"],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<tool call>", special=False), AddedToken("é!", special=False)])
    return backend


def write_folder(folder: Path, backend: Backend) -> Path:
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tokenizer"), byte_level_backend())


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    loaded = Tokenizer.load(tokenizer_folder)
    assert loaded is not None
    return loaded


@pytest.fixture
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients show the first failure, without the pauses before they try again."""
    options = [pair for pair in client.CHANNEL_OPTIONS if pair[0] != "grpc.service_config"]
    monkeypatch.setattr(client, "CHANNEL_OPTIONS", options)
    monkeypatch.setattr(resumption, "CONNECT_SECONDS", 0.0)
