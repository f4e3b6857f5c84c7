"""Sanity: greedy accuracy of the demo model on its held-out tasks, for every runner and EP backend,
beside transformers.

``python -m benchmarks.sanity [--model FOLDER] [--ranks 1 2] [--count 20] [--device auto]
[--dtype auto] [-- SERVE_FLAGS]``

In fp32 the answers must be transformers' own; a first difference where the oracle's margin between
its two best tokens is below 1e-4 is a tie, which is counted. In bf16, and with flags of the server
that may round, the accuracy must be within 0.5 points, and what differs is listed. Exits non-zero
beyond that. --model serves the demo in another format; transformers computes the demo itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import report
from benchmarks.server import Server, started
from demo import CHECKPOINT
from demo.data import heldout, is_right
from demo.evaluate import MAX_NEW_TOKENS
from switchyard.client import AsyncClient

_TIE = 1e-4
_POINTS = 0.5
_TOGETHER = 32  # prompts that transformers answers at once

# By the number of ranks: flags of `switchyard serve`.
LAYOUTS: dict[int, tuple[str, ...]] = {
    1: ("", "--moe-runner legacy"),
    2: (
        "--tp 2",
        "--tp 2 --moe-runner legacy",
        "--tp 2 --ep 1",
        "--tp 2 --moe-ep-backend allgather_reducescatter",
        "--tp 2 --moe-ep-backend all_to_all",
        "--dp 2",
        "--dp 2 --moe-ep-backend all_to_all",
        "--dp 2 --ep 1",
    ),
    4: (
        "--tp 4",
        "--tp 2 --dp 2",
        "--tp 2 --dp 2 --moe-ep-backend all_to_all",
        "--tp 2 --dp 2 --ep 1",
        "--dp 4 --moe-runner legacy",
    ),
}

Tokens = tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Held-out questions as token prompts, and what is right."""

    prompts: list[list[int]]
    expected: list[str]


class Oracle:
    """transformers' greedy answers, and its margin at any point of one."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device = device
        self.tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
        model = AutoModelForCausalLM.from_pretrained(
            CHECKPOINT, dtype=dtype, experts_implementation="eager"
        )
        self.model = model.to(device).eval()
        self.eos: int = self.model.generation_config.eos_token_id

    def questions(self, count: int, seed: int) -> Questions:
        """``count`` of each task."""
        items = heldout(count, seed)
        prompts = [
            self.tokenizer.apply_chat_template(item.messages, **item.template_kwargs())["input_ids"]
            for item in items
        ]
        return Questions(prompts=prompts, expected=[item.expected for item in items])

    @torch.inference_mode()
    def answers(self, prompts: Sequence[list[int]]) -> Iterator[tuple[int, Tokens]]:
        """By the prompt's index. Those of equal length go together: no padding moves a logit."""
        for batch in _of_equal_length(prompts):
            ids = torch.tensor([prompts[index] for index in batch], device=self.device)
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=MAX_NEW_TOKENS,
                eos_token_id=self.eos,
                pad_token_id=self.eos,
            )
            for index, tokens in zip(batch, out[:, ids.shape[1] :].tolist(), strict=True):
                yield index, tuple(_until(tokens, self.eos))

    @torch.inference_mode()
    def margin(self, tokens: Sequence[int]) -> float:
        """Between the two best logits behind ``tokens``."""
        logits = self.model(torch.tensor([list(tokens)], device=self.device)).logits[0, -1]
        best, second = logits.float().topk(2).values.tolist()
        return float(best - second)

    def text(self, tokens: Tokens) -> str:
        """As a client would see it."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


def _of_equal_length(prompts: Sequence[list[int]]) -> Iterator[list[int]]:
    """Indices of prompts that are answered at once."""
    equal: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        equal.setdefault(len(prompt), []).append(index)
    for indices in equal.values():
        for first in range(0, len(indices), _TOGETHER):
            yield indices[first : first + _TOGETHER]


def _until(tokens: list[int], last: int) -> list[int]:
    """Up to the first ``last``, which is one of them."""
    return tokens[: tokens.index(last) + 1] if last in tokens else tokens


def main() -> None:
    """Compare every layout with the oracle; one row each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sanity", description=__doc__)
    parser.add_argument("--model", default=str(CHECKPOINT), help="the demo in another format")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], choices=sorted(LAYOUTS))
    parser.add_argument("--count", type=int, default=20, help="questions a task")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "serve_args",
        nargs="*",
        metavar="-- SERVE_FLAG",
        help="flags of `switchyard serve` in every layout, behind --",
    )
    report.add_flags(parser)
    flags = parser.parse_args()
    on_cuda = flags.device == "cuda" or (flags.device == "auto" and torch.cuda.is_available())
    bf16 = flags.dtype == "bfloat16" or (flags.dtype == "auto" and on_cuda)
    oracle = Oracle("cuda" if on_cuda else "cpu", torch.bfloat16 if bf16 else torch.float32)
    rounds = bf16 or bool(flags.serve_args) or flags.model != str(CHECKPOINT)
    rows, differing = _compare(flags, oracle, rounds=rounds)
    report.show(
        " ".join(["Sanity: greedy accuracy,", "bf16" if bf16 else "fp32", *flags.serve_args]), rows,
        flags.json, differing=differing,
    )  # fmt: skip
    sys.exit(any(row["verdict"] != "ok" for row in rows))


def _compare(
    flags: argparse.Namespace, oracle: Oracle, *, rounds: bool
) -> tuple[list[report.Row], list[str]]:
    questions = oracle.questions(flags.count, flags.seed)
    layouts = [layout for ranks in flags.ranks for layout in LAYOUTS[ranks]]
    with report.progress() as bar:
        task = bar.add_task("transformers", total=len(questions.prompts))
        found: dict[int, Tokens] = {}
        for index, answer in oracle.answers(questions.prompts):
            found[index] = answer
            bar.advance(task)
        reference = [found[index] for index in range(len(questions.prompts))]
        rows = [{"layout": "transformers", **_accuracy(oracle, questions, reference)}]
        rows[0] |= {"ties": 0, "differ": 0, "verdict": "ok"}
        differing: list[str] = []
        task = bar.add_task("layouts", total=len(layouts))
        for layout in layouts:
            extra = [*layout.split(), "--device", flags.device, "--dtype", flags.dtype]
            extra += flags.serve_args
            with started(flags.model, extra) as server:
                answers = asyncio.run(_ask(server, questions.prompts))
            row, named = _judge(oracle, questions, reference, answers, rounds)
            rows.append({"layout": layout or "--tp 1", **row})
            differing += [f"{layout or '--tp 1'}: {name}" for name in named]
            bar.advance(task)
    return rows, differing


async def _ask(server: Server, prompts: Sequence[list[int]]) -> list[Tokens]:
    gate = asyncio.Semaphore(64)
    async with AsyncClient(server.address) as client:

        async def one(prompt: list[int]) -> Tokens:
            async with (
                gate,
                client.generate(
                    prompt, temperature=0.0, max_new_tokens=MAX_NEW_TOKENS, skip_detokenize=True
                ) as stream,
            ):
                return tuple([token async for delta in stream for token in delta.token_ids])

        return await asyncio.gather(*(one(prompt) for prompt in prompts))


def _judge(
    oracle: Oracle,
    questions: Questions,
    reference: Sequence[Tokens],
    answers: Sequence[Tokens],
    rounds: bool,
) -> tuple[report.Row, list[str]]:
    ties, differing = 0, []
    for prompt, ours, theirs in zip(questions.prompts, answers, reference, strict=True):
        if ours == theirs:
            continue
        pairs = zip(ours, theirs, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
        if oracle.margin([*prompt, *theirs[:same]]) < _TIE:
            ties += 1
        else:
            differing.append(f"{oracle.text(theirs)!r} became {oracle.text(ours)!r}")
    row = _accuracy(oracle, questions, answers)
    away = abs(row["accuracy %"] - _accuracy(oracle, questions, reference)["accuracy %"])
    good = away <= _POINTS if rounds else not differing
    row |= {"ties": ties, "differ": len(differing), "verdict": "ok" if good else "WRONG"}
    return row, differing


def _accuracy(oracle: Oracle, questions: Questions, answers: Sequence[Tokens]) -> report.Row:
    right = [
        is_right(expected, oracle.text(answer))
        for expected, answer in zip(questions.expected, answers, strict=True)
    ]
    return {"questions": len(right), "accuracy %": 100 * sum(right) / len(right)}


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
