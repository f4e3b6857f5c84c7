"""Training rows: conversations made of training questions, tokenized and packed.

Owns which tokens are learnt (the assistant's, with the end of its turn) and how conversations share
a row without seeing each other. Knows nothing of torch: it runs in worker processes on the CPU.

Shape legend: N rows, L tokens a row.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
from tokenizers import Tokenizer

from demo.data import Example, draw
from demo.tasks import TASKS
from demo.tokenizer import END_OF_TEXT, SYSTEM_PROMPTS, TURN_END, header

TURNS, TURN_WEIGHTS = (1, 2, 3, 5), (70, 15, 10, 5)
SYSTEM_SHARE = 0.1
CASUAL_SHARE = 0.1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Packed conversations, each array [N, L].

    tokens: int16 ids, padded with <|endoftext|> at the end of a row.
    positions: int16; each conversation counts from 0, so a 0 is where one begins. Padding is 0.
    learnt: bool; the tokens that the model is taught to predict.
    """

    tokens: np.ndarray
    positions: np.ndarray
    learnt: np.ndarray


def _casual(question: str, rng: Random) -> str:
    """A question as people type it: now and then without its capital or its last sign."""
    if rng.random() < CASUAL_SHARE:
        question = question[0].lower() + question[1:]
    if rng.random() < CASUAL_SHARE and question[-1] in "?.":
        question = question[:-1]
    return question


def _training_example(rng: Random) -> Example:
    tasks = list(TASKS.values())
    while True:
        (task,) = rng.choices(tasks, weights=[task.weight for task in tasks])
        if (example := draw(task, "train", rng)) is not None:
            return example


def conversation(tokenizer: Tokenizer, rng: Random) -> tuple[list[int], list[bool]]:
    """One chat of a few turns as the template renders it: its ids, and which are learnt."""
    ids: list[int] = []
    learnt: list[bool] = []

    def add(text: str, *, learn: bool) -> None:
        new = tokenizer.encode(text).ids
        ids.extend(new)
        learnt.extend([learn] * len(new))

    prefix = ""
    if rng.random() < SYSTEM_SHARE:
        prefix = f"{header('system')}{rng.choice(SYSTEM_PROMPTS)}{TURN_END}\n"
    for _ in range(rng.choices(TURNS, weights=TURN_WEIGHTS)[0]):
        example = _training_example(rng)
        question = _casual(example.question, rng)
        add(f"{prefix}{header('user')}{question}{TURN_END}\n{header('assistant')}", learn=False)
        add(f"{example.answer}{TURN_END}", learn=True)
        prefix = "\n"
    return ids, learnt


def build_rows(tokenizer: Tokenizer, *, num_rows: int, row_tokens: int, seed: int) -> Rows:
    """Fills ``num_rows`` rows with conversations, each whole in one row. Same seed, same rows."""
    rng = Random(f"rows|{seed}")
    shape = (num_rows, row_tokens)
    tokens = np.full(shape, tokenizer.token_to_id(END_OF_TEXT), np.int16)
    positions, learnt = np.zeros(shape, np.int16), np.zeros(shape, np.bool_)
    row, used = 0, 0
    while row < num_rows:
        ids, answers = conversation(tokenizer, rng)
        if len(ids) > row_tokens:
            continue
        if used + len(ids) > row_tokens:
            row, used = row + 1, 0
            if row == num_rows:
                break
        place = slice(used, used + len(ids))
        tokens[row, place] = ids
        positions[row, place] = np.arange(len(ids))
        learnt[row, place] = answers
        used += len(ids)
    return Rows(tokens=tokens, positions=positions, learnt=learnt)


def _shard(tokenizer_file: Path, num_rows: int, row_tokens: int, seed: int) -> Rows:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    return build_rows(tokenizer, num_rows=num_rows, row_tokens=row_tokens, seed=seed)


def build_corpus(
    tokenizer_file: Path, *, num_rows: int, row_tokens: int, seed: int, num_processes: int
) -> Rows:
    """``num_rows`` rows, made in shards of 2,048 by a pool of processes.

    The rows depend on the seed and the number of rows, not on the number of processes.
    """
    sizes = [min(2048, num_rows - first) for first in range(0, num_rows, 2048)]
    seeds = [seed * 1_000_003 + index for index in range(len(sizes))]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=spawn) as pool:
        shards = list(
            pool.map(_shard, [tokenizer_file] * len(sizes), sizes, [row_tokens] * len(sizes), seeds)
        )
    return Rows(
        **{
            field.name: np.concatenate([getattr(shard, field.name) for shard in shards])
            for field in dataclasses.fields(Rows)
        }
    )
