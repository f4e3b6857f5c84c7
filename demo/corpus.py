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

from demo.chat import Chat
from demo.data import Example, draw
from demo.tasks import TASKS
from demo.tokenizer import END_OF_TEXT, SYSTEM_PROMPTS
from demo.tool_tasks import covered, unhelpful

TURNS, TURN_WEIGHTS = (1, 2, 3, 5), (70, 15, 10, 5)
SYSTEM_SHARE = 0.15
CASUAL_SHARE = 0.1
TOOLS_SHARE = 0.05  # of chats whose first question needs no tool: some are there all the same
THINKING, THINKING_WEIGHTS = (None, True, False), (80, 12, 8)


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


def _training_example(rng: Random, kinds: set[str]) -> Example:
    """Beside tools of ``kinds``: of a task that needs no tool, and that none of these answers.
    Without kinds: of any task."""
    tasks = list(TASKS.values())
    weights = [task.weight for task in tasks]
    answered = covered(kinds)
    while True:
        (task,) = rng.choices(tasks, weights=weights)
        if task.name in answered or (example := draw(task, "train", rng)) is None:
            continue
        if not (kinds and example.exchange.rounds):
            return example


def draw_chat(rng: Random) -> Chat:
    """A chat of a few turns; its tools are those of its first question."""
    first = _training_example(rng, set())
    tools = dict(first.tools)
    if not tools and rng.random() < TOOLS_SHARE:
        tools = unhelpful(rng, first.task, least=0)
    exchanges = [first.exchange]
    for _ in range(rng.choices(TURNS, weights=TURN_WEIGHTS)[0] - 1):
        exchanges.append(_training_example(rng, set(tools)).exchange)
    rng.shuffle(exchanges)
    (thinking,) = rng.choices(THINKING, weights=THINKING_WEIGHTS)
    return Chat(
        exchanges=tuple(
            dataclasses.replace(each, question=_casual(each.question, rng)) for each in exchanges
        ),
        system=rng.choice(SYSTEM_PROMPTS) if rng.random() < SYSTEM_SHARE else "",
        tools=tuple(tools.values()),
        thinking=thinking,
    )


def encode(tokenizer: Tokenizer, chat: Chat) -> tuple[list[int], list[bool]]:
    """A chat as the template renders it, without the end of its last line: its ids, and which are
    learnt."""
    ids: list[int] = []
    learnt: list[bool] = []
    pieces = [piece for piece in chat.pieces() if piece[0]]
    encoded = tokenizer.encode_batch_fast([text for text, _ in pieces], add_special_tokens=False)
    for (_, is_said), new in zip(pieces, encoded, strict=True):
        ids.extend(new.ids)
        learnt.extend([is_said] * len(new.ids))
    return ids, learnt


def build_rows(tokenizer: Tokenizer, *, num_rows: int, row_tokens: int, seed: int) -> Rows:
    """Fills ``num_rows`` rows with conversations, each whole in one row. Same seed, same rows."""
    rng = Random(f"rows|{seed}")
    shape = (num_rows, row_tokens)
    tokens = np.full(shape, tokenizer.token_to_id(END_OF_TEXT), np.int16)
    positions, learnt = np.zeros(shape, np.int16), np.zeros(shape, np.bool_)
    row, used = 0, 0
    while row < num_rows:
        ids, answers = encode(tokenizer, draw_chat(rng))
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
