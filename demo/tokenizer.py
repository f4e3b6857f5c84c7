"""The demo model's tokenizer: byte-level BPE of 1,024 tokens.

Owns how text is cut up before merging: a digit, a letter and a sign stand alone, and only whole
words that follow a space, or a capitalised word or chat role that begins a line, may merge. So
``"apple"`` in quotes is five letters, which spelling and reversing need, while the words around it
are a token each. Merges are learnt from ASCII text only: an accent or an emoji is always several
byte tokens, so that streaming them crosses token borders.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo import chat
from demo.data import examples
from demo.tasks import TASKS

VOCAB_SIZE = 1024
END_OF_TEXT = "<|endoftext|>"
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer the question.",
    "You are a small model. Give short answers.",
    "You are a helpful assistant with tools.",
    "Use the tools to answer.",
    "Think before you answer.",
    "Be brief.",
)
PIECES = (
    r"(?<![^\n])(?:user|assistant|system|\p{Lu}\p{Ll}+)"  # role or capitalised word, line start
    r"| \p{L}+"  # a word after a space, with the space
    r"|\p{L}|\p{N}| ?[^\s\p{L}\p{N}]|\s"  # all else, one character at a time
)
CORPUS_PER_TASK, CORPUS_SEED = 2000, 0


def _ascii_corpus() -> list[str]:
    """Training questions and answers of every task, non-ASCII characters left out."""
    texts = ["user", "assistant", "system"] * CORPUS_PER_TASK + list(SYSTEM_PROMPTS) * 100
    for task in TASKS:
        for example in examples(task, "train", CORPUS_PER_TASK, CORPUS_SEED):
            texts += [example.question, example.exchange.thought, example.answer]
    return [text.encode("ascii", "ignore").decode() for text in texts]


def build() -> PreTrainedTokenizerFast:
    """Trains the tokenizer. Deterministic; takes a few seconds.

    Raises RuntimeError when the corpus has too few distinct words for VOCAB_SIZE tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(chat.MARKUP),
        special_tokens=[
            AddedToken(token, special=True, normalized=False)
            for token in (END_OF_TEXT, chat.TURN_START, chat.TURN_END)
        ],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_ascii_corpus(), trainer)
    tokenizer.add_tokens(
        [AddedToken(text, special=False, normalized=False) for text in chat.MARKUP]
    )
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise RuntimeError(
            f"the corpus gives {tokenizer.get_vocab_size()} tokens, not {VOCAB_SIZE}: "
            "lower VOCAB_SIZE or raise CORPUS_PER_TASK"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=chat.TURN_END,
        pad_token=END_OF_TEXT,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        chat_template=chat.TEMPLATE.strip(),
    )


def save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, the chat template inside the latter.

    The class has the name that transformers 4 and 5 know, not 5's own.
    """
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
