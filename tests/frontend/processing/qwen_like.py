"""A tokenizer of Qwen3's shape, trained on a few words: byte-level BPE over NFC, split by Qwen's
expression, with added tokens that are special (<|im_end|>) and some that are not (<think>)."""

from __future__ import annotations

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from tests.frontend.conftest import CORPUS

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NOT_SPECIAL = [
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>",
]  # fmt: skip
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Merges within the added tokens' texts and across their ends, so that how they are cut matters.
_MARKUP = ["<|im_end|>\n<|im_start|>user\n", "a <tool_call> b</think>\n\nc <think>\n tool_call>"]


def library_tokenizer() -> Library:
    library = Library(models.BPE())
    library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator([*CORPUS, *_MARKUP, *_MARKUP, *_MARKUP], trainer)
    library.add_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    library.add_tokens([AddedToken(text, normalized=False) for text in NOT_SPECIAL])
    return library
