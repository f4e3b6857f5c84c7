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
from demo.data import heldout, is_right

Answerer = Callable[[Sequence[str]], list[str]]
MAX_NEW_TOKENS = 64  # the longest exact answer, eleven numbers, is under 55 with its end


def score(answer: Answerer, count_per_task: int, seed: int = 0) -> dict[str, float]:
    """The share of right answers per task, and over all questions under ``"all"``."""
    items = heldout(count_per_task, seed)
    answers = answer([question for _, question, _ in items])
    right: dict[str, list[bool]] = {"all": []}
    for (task, _, expected), given in zip(items, answers, strict=True):
        hit = is_right(expected, given)
        right["all"].append(hit)
        right.setdefault(task, []).append(hit)
    return {task: sum(hits) / len(hits) for task, hits in right.items()}


def transformers_answerer(
    folder: Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_size: int = 256,
) -> Answerer:
    """Greedy answers of the checkpoint in ``folder``, ``batch_size`` questions at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, experts_implementation="eager"
    )
    model = model.to(device).eval()

    @torch.inference_mode()
    def answer_batch(questions: Sequence[str]) -> list[str]:
        chats = [[{"role": "user", "content": question}] for question in questions]
        batch = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(device)
        out = model.generate(**batch, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        new = out[:, batch["input_ids"].shape[1] :]
        return tokenizer.batch_decode(new, skip_special_tokens=True)

    def answer(questions: Sequence[str]) -> list[str]:
        answers: list[str] = []
        for first in range(0, len(questions), batch_size):
            answers += answer_batch(questions[first : first + batch_size])
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
