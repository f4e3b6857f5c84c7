"""The committed checkpoint is within its limits and answers what it has not seen."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from demo import CHECKPOINT
from demo.data import Item, heldout
from demo.evaluate import Answerer, score, transformers_answerer

MAX_PARAMETERS, MAX_BYTES = 8_000_000, 16_000_000


@pytest.fixture(scope="module")
def answer() -> Answerer:
    """In batches of few tasks each, which do not wait for the longest answers of all."""
    return transformers_answerer(CHECKPOINT, batch_size=32)


def test_size() -> None:
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as weights:
        slices = [weights.get_slice(name) for name in weights.keys()]  # noqa: SIM118
        sizes = [part.get_shape() for part in slices]
        assert {part.get_dtype() for part in slices} == {"BF16"}
    count = 0
    for size in sizes:
        count += size[0] * (size[1] if len(size) == 2 else 1)
    assert 1_000_000 < count <= MAX_PARAMETERS
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= MAX_BYTES


@pytest.mark.slow
def test_held_out_answers(answer: Answerer) -> None:
    shares = score(answer, count_per_task=6, seed=1)
    assert shares["all"] >= 0.97
    assert {task for task, share in shares.items() if share < 0.8} == set()


def test_the_questions_of_the_readme(answer: Answerer) -> None:
    questions = ["What is 17 + 25?", 'Reverse the word "planet".', "17 + 25 ="]
    items = [
        Item(task="", messages=[{"role": "user", "content": question}], expected="")
        for question in questions
    ]
    assert answer(items) == ["42", "tenalp", "42"]


def test_recorded_accuracies() -> None:
    record = json.loads((CHECKPOINT / "training.json").read_text())
    assert {task for task, share in record["accuracy"].items() if share < 0.95} == set()


@torch.inference_mode()
def test_tokens_choose_their_experts() -> None:
    """Every expert is used, and tokens differ in the set they choose: routing is no formality."""
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    text = " ".join(item.messages[0]["content"] for item in heldout(5))
    tokens = torch.tensor([tokenizer.encode(text)[:512]])
    for logits_TE in model(tokens, output_router_logits=True).router_logits:
        chosen = logits_TE.topk(4).indices.sort().values
        assert chosen.unique().numel() == logits_TE.shape[1]
        assert chosen.unique(dim=0).shape[0] > 100


@pytest.mark.slow
def test_tokenizer_is_the_one_the_code_builds(tokenizer: PreTrainedTokenizerFast) -> None:
    stored = AutoTokenizer.from_pretrained(CHECKPOINT)
    for item in heldout(5, seed=2):
        text = f"{item.messages[0]['content']}\n{item.expected}"
        assert stored(text).input_ids == tokenizer(text).input_ids
    assert stored.chat_template == tokenizer.chat_template
