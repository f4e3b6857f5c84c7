"""Questions with exact answers: what the demo model learns and is scored on.

Owns which question is held out, and drawing from either side; the tasks themselves are in
demo/tasks.py. Knows nothing of tokens, chat templates or models.

The split is a hash, so it needs no list and never changes with a seed:

* ``by="fact"``: one fact in ten (17 + 25, in either order; the word to reverse) is held out, in
  every phrasing, so a right answer was worked out, not remembered.
* ``by="question"``: for what can only be remembered (times tables, capitals, the calendar) one
  rendered question in five is held out; the fact occurs in training in other words, always at
  least in the first phrasing.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from random import Random
from typing import Literal

from demo.fact import Fact
from demo.tasks import TASKS, Task

Split = Literal["train", "heldout"]
HELDOUT_ONE_IN = {"fact": 10, "question": 5}
MAX_TRIES = 300  # draws for one distinct held-out question before a task counts as exhausted


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One exchange."""

    task: str
    question: str
    answer: str


def split_of(task: Task, fact: Fact, question: str) -> Split:
    """Which side of the split ``question``, one of the fact's phrasings, is on."""
    if task.by == "question" and question == fact.phrasings[0]:
        return "train"
    key = fact.key if task.by == "fact" else question
    digest = hashlib.blake2b(f"{task.name}|{key}".encode(), digest_size=8).digest()
    return "train" if int.from_bytes(digest, "little") % HELDOUT_ONE_IN[task.by] else "heldout"


def draw(task: Task, split: Split, rng: Random) -> Example | None:
    """One draw; None when it fell on the other side of the split."""
    fact = task.draw(rng)
    question = rng.choice(fact.phrasings)
    if split_of(task, fact, question) != split:
        return None
    return Example(task=task.name, question=question, answer=fact.answer)


def examples(task: str, split: Split, count: int, seed: int) -> Iterator[Example]:
    """``count`` examples of one task, drawn with repetition; the same for the same seed.

    Raises ValueError for a task with nothing on that side (small talk is training only).
    """
    rng = Random(f"{task}|{split}|{seed}")
    tries = 0
    while count:
        example = draw(TASKS[task], split, rng)
        tries = 0 if example else tries + 1
        if tries > MAX_TRIES:
            raise ValueError(f"task {task!r} has no {split} questions in {tries} draws")
        if example:
            count -= 1
            yield example


def heldout(count_per_task: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """Distinct held-out (task, question, expected answer) of every exact task.

    A task whose held-out questions are fewer than ``count_per_task`` gives the ones it has.
    """
    items: list[tuple[str, str, str]] = []
    for task in (task for task in TASKS.values() if task.exact):
        rng = Random(f"{task.name}|items|{seed}")
        found: dict[str, str] = {}
        misses = 0
        while len(found) < count_per_task and misses < MAX_TRIES:
            example = draw(task, "heldout", rng)
            fresh = example is not None and example.question not in found
            misses = 0 if fresh else misses + 1
            if example is not None:
                found[example.question] = example.answer
        items += [(task.name, question, answer) for question, answer in found.items()]
    return items


def is_right(expected: str, answer: str) -> bool:
    """Whether an answer counts: the exact text, but for spaces around it."""
    return answer.strip() == expected
