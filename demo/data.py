"""Questions with exact answers: what the demo model learns and is scored on.

Owns which question is held out, and drawing from either side; the tasks themselves are in
demo/tasks.py. Knows nothing of tokens, chat templates or models.

The split is a hash, so it needs no list and never changes with a seed:

* ``by="fact"``: one fact in ten (17 + 25, in either order; the word to reverse) is held out, in
  every phrasing, so a right answer was worked out, not remembered. So is what shows such a fact: a
  thought with the sum in it.
* ``by="question"``: for what can only be remembered (times tables, capitals, the calendar) one
  rendered question in five is held out; the fact occurs in training in other words, always at
  least in the first phrasing.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any, Literal

from demo.chat import THINK_END, Exchange, Tool
from demo.fact import Fact
from demo.tasks import TASKS, Task
from demo.tool_tasks import unhelpful

Split = Literal["train", "heldout"]
HELDOUT_ONE_IN = {"fact": 10, "question": 5}
MAX_TRIES = 300  # draws for one distinct held-out question before a task counts as exhausted


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One exchange, and the tools it may use, by kind."""

    task: str
    exchange: Exchange
    tools: Mapping[str, Tool]

    @property
    def question(self) -> str:
        return self.exchange.question

    @property
    def answer(self) -> str:
        return self.exchange.answer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A prompt that is scored, and what the model shall say; ``thinking`` as in `Chat`."""

    task: str
    messages: list[dict[str, Any]]
    expected: str
    tools: tuple[Tool, ...] = ()
    thinking: bool | None = None

    def template_kwargs(self) -> dict[str, Any]:
        """What a chat template is given beside the messages."""
        kwargs: dict[str, Any] = {"add_generation_prompt": True}
        if self.tools:
            kwargs["tools"] = [tool.schema() for tool in self.tools]
        if self.thinking is not None:
            kwargs["enable_thinking"] = self.thinking
        return kwargs


def _is_held_out(task: Task, key: str) -> bool:
    name = task.split_as or task.name
    digest = hashlib.blake2b(f"{name}|{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % HELDOUT_ONE_IN[task.by] == 0


def split_of(task: Task, fact: Fact, question: str) -> Split:
    """Which side of the split ``question``, one of the fact's phrasings, is on."""
    if task.by == "question" and question == fact.phrasings[0]:
        return "train"
    key = fact.key if task.by == "fact" else question
    shown = any(_is_held_out(TASKS[name], step) for name, step in fact.steps)
    return "heldout" if shown or _is_held_out(task, key) else "train"


def draw(task: Task, split: Split, rng: Random) -> Example | None:
    """One draw; None when it fell on the other side of the split."""
    fact = task.draw(rng)
    question = rng.choice(fact.phrasings)
    if split_of(task, fact, question) != split:
        return None
    return Example(task=task.name, exchange=fact.exchange(question), tools=fact.tools)


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


def heldout(count_per_task: int, seed: int = 0) -> list[Item]:
    """Held-out items of every exact task, of distinct questions, and of what a chat can be beside.

    That is: ``after_call`` (given a call's result), ``tool_unused`` (tools that do not help),
    ``thinking`` and ``no_thinking`` (as the template is told), each with questions of all tasks
    that fit. A task whose held-out questions are fewer than ``count_per_task`` gives the ones it
    has.
    """
    found = {
        task.name: _distinct(task, count_per_task, seed) for task in TASKS.values() if task.exact
    }
    rng = Random(f"beside|{seed}")
    every = [example for drawn in found.values() for example in drawn]
    items = [_item(example, example.task) for example in every]
    with_calls = [example for example in every if example.exchange.rounds]
    simple = [
        example for example in every if not example.exchange.rounds and not example.exchange.thinks
    ]

    def pick(of: list[Example]) -> list[Example]:
        return rng.sample(of, min(count_per_task, len(of)))

    for example in pick(with_calls):
        told = rng.randint(1, len(example.exchange.rounds))
        items.append(_item(example, "after_call", num_rounds=told))
    for example in pick(simple):
        tools = unhelpful(rng, example.task, least=1)
        items.append(_item(dataclasses.replace(example, tools=tools), "tool_unused"))
    items += [_item(example, "thinking", thinking=True) for example in pick(every)]
    items += [_item(example, "no_thinking", thinking=False) for example in pick(simple)]
    return items


def _distinct(task: Task, count: int, seed: int) -> list[Example]:
    rng = Random(f"{task.name}|items|{seed}")
    found: dict[str, Example] = {}
    misses = 0
    while len(found) < count and misses < MAX_TRIES:
        example = draw(task, "heldout", rng)
        fresh = example is not None and example.question not in found
        misses = 0 if fresh else misses + 1
        if example is not None and fresh:
            found[example.question] = example
    return list(found.values())


def _item(
    example: Example, task: str, *, num_rounds: int = 0, thinking: bool | None = None
) -> Item:
    """What the model says after so many rounds of calls."""
    return Item(
        task=task,
        messages=example.exchange.messages(num_rounds),
        expected=example.exchange.said()[num_rounds],
        tools=tuple(example.tools.values()),
        thinking=thinking,
    )


def is_right(expected: str, answer: str) -> bool:
    """Whether an answer counts: the exact text, but for thoughts before it and spaces around it."""
    return answer.rpartition(THINK_END)[2].strip() == expected
