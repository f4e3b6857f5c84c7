"""The tasks: what each asks, how it is split, how much of the training it is.

Knows nothing of how the split is made (demo/data.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from random import Random
from typing import Literal

from demo import json_tasks, thinking_tasks, tool_tasks
from demo import language_tasks as language
from demo import numbers_tasks as numbers
from demo.fact import Fact


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A kind of question.

    ``by`` says what the split is on (demo/data.py), ``split_as`` is the task whose split it is
    where questions are those of another one, ``weight`` is the relative share of training,
    ``exact`` says the answer is scored.
    """

    name: str
    draw: Callable[[Random], Fact]
    by: Literal["fact", "question"] = "fact"
    split_as: str = ""
    weight: float = 1.0
    exact: bool = True


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(name="addition", draw=numbers.addition, weight=3),
        Task(name="subtraction", draw=numbers.subtraction, weight=3),
        Task(name="multiplication", draw=numbers.multiplication, by="question"),
        Task(name="count_up", draw=numbers.count_up),
        Task(name="count_down", draw=numbers.count_down),
        Task(name="count_by", draw=numbers.count_by),
        Task(name="compare", draw=numbers.compare),
        Task(name="parity", draw=numbers.parity, weight=0.5),
        Task(name="sort", draw=numbers.sort, weight=2),
        Task(name="largest", draw=numbers.largest),
        Task(name="reverse", draw=language.reverse, weight=3),
        Task(name="spell", draw=language.spell),
        Task(name="letter", draw=language.letter),
        Task(name="length", draw=language.length),
        Task(name="days", draw=language.days, by="question"),
        Task(name="months", draw=language.months, by="question"),
        Task(name="facts", draw=language.table, by="question", weight=1.5),
        Task(name="story", draw=language.story, by="question", weight=1.5, exact=False),
        Task(name="small_talk", draw=language.small_talk, by="question", weight=0.5, exact=False),
        Task(name="chain", draw=thinking_tasks.chain, weight=2.5),
        Task(name="word_problem", draw=thinking_tasks.word_problem, weight=1.5),
        Task(name="letter_count", draw=thinking_tasks.letter_count, weight=1.5),
        Task(name="sum_parity", draw=thinking_tasks.sum_parity, weight=0.5),
        Task(name="calculator", draw=tool_tasks.calculation, weight=2),
        Task(name="two_numbers", draw=tool_tasks.of_two_numbers),
        Task(name="lookup", draw=tool_tasks.look_up, by="question", split_as="facts", weight=1.5),
        Task(name="errand", draw=tool_tasks.errand, weight=2),
        Task(name="two_calls", draw=tool_tasks.two_calls, weight=0.5),
        Task(name="two_rounds", draw=tool_tasks.two_rounds, weight=1),
        Task(name="json_person", draw=json_tasks.person, weight=1.5),
        Task(name="json_thing", draw=json_tasks.thing),
        Task(name="json_fact", draw=json_tasks.json_fact, by="question"),
        Task(name="json_list", draw=json_tasks.json_list),
    )
}
