"""Scores anything that answers questions on the held-out ones.

Owns the score and one answerer: transformers' own model, greedy, in batches. Run it alone with
``python -m demo.evaluate [--checkpoint FOLDER] [--count 50] [--device cpu]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo import CHECKPOINT
from demo.data import Item, heldout, is_right

Answerer = Callable[[Sequence[Item]], list[str]]
MAX_NEW_TOKENS = 160  # the longest, two calls of a tool, are under 150 with their end


def score(answer: Answerer, count_per_task: int, seed: int = 0) -> dict[str, float]:
    """The share of right answers per task, and over all questions under ``"all"``."""
    items = heldout(count_per_task, seed)
    right: dict[str, list[bool]] = {"all": []}
    for item, given in zip(items, answer(items), strict=True):
        hit = is_right(item.expected, given)
        right["all"].append(hit)
        right.setdefault(item.task, []).append(hit)
    return {task: sum(hits) / len(hits) for task, hits in right.items()}


def transformers_answerer(
    folder: Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_size: int = 256,
) -> Answerer:
    """Greedy answers of the checkpoint in ``folder``, ``batch_size`` items at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, experts_implementation="eager"
    )
    model = model.to(device).eval()

    @torch.inference_mode()
    def answer_batch(prompts: Sequence[str]) -> list[str]:
        batch = tokenizer(list(prompts), padding=True, return_tensors="pt").to(device)
        out = model.generate(**batch, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        new = out[:, batch["input_ids"].shape[1] :]
        return tokenizer.batch_decode(new, skip_special_tokens=True)

    def answer(items: Sequence[Item]) -> list[str]:
        prompts = [
            tokenizer.apply_chat_template(item.messages, tokenize=False, **item.template_kwargs())
            for item in items
        ]
        # Alike in length, answers end at about the same time, and little of a batch is padding.
        order = sorted(range(len(items)), key=lambda place: (items[place].task, prompts[place]))
        answers = [""] * len(items)
        for first in range(0, len(items), batch_size):
            places = order[first : first + batch_size]
            for place, text in zip(
                places, answer_batch([prompts[place] for place in places]), strict=True
            ):
                answers[place] = text
        return answers

    return answer


def print_scores(scores: dict[str, float]) -> None:
    """One line a task, the total last."""
    for task, share in sorted(scores.items(), key=lambda item: item[0] == "all"):
        print(f"{task:16s}{100 * share:6.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.evaluate", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--count", type=int, default=50, help="questions per task")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    answer = transformers_answerer(args.checkpoint, device=args.device)
    print_scores(score(answer, args.count))


if __name__ == "__main__":
    main()
