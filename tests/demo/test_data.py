"""Questions are right, seeded, and never on both sides of the split."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest

from demo.data import examples, heldout, is_right, split_of
from demo.tasks import TASKS

EXACT = [task.name for task in TASKS.values() if task.exact]


def numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def quoted(text: str) -> str:
    return text.split('"')[1]


ORACLES = {
    "addition": lambda q: str(sum(numbers(q))),
    "multiplication": lambda q: str(numbers(q)[0] * numbers(q)[1]),
    "sort": lambda q: ", ".join(map(str, sorted(numbers(q)))),
    "largest": lambda q: str(max(numbers(q))),
    "parity": lambda q: ("even", "odd")[numbers(q)[0] % 2],
    "reverse": lambda q: "".join(reversed(quoted(q))),
    "spell": lambda q: "-".join(quoted(q)),
    "length": lambda q: str(len(quoted(q))),
    "count_up": lambda q: ", ".join(map(str, range(numbers(q)[0], numbers(q)[1] + 1))),
}


@pytest.mark.parametrize("task", ORACLES)
def test_answers_agree_with_an_oracle(task: str) -> None:
    for example in examples(task, "train", 300, seed=1):
        assert is_right(example.answer, ORACLES[task](example.question)), example


def answer_drawn(task: str, question: str) -> str | None:
    """The answer with which a task asks a question, if most of its questions hold it."""
    rng = Random(0)
    facts = (TASKS[task].draw(rng) for _ in range(40_000))
    return next((fact.answer for fact in facts if question in fact.phrasings), None)


@pytest.mark.parametrize(
    ("task", "question", "answer"),
    [
        ("subtraction", "What is 3 - 11?", "-8"),
        ("subtraction", "Take 30 away from 42.", "12"),
        ("count_down", "Count down from 12 to 8.", "12, 11, 10, 9, 8"),
        ("count_by", "Count by 5s from 10 to 30.", "10, 15, 20, 25, 30"),
        ("days", "What day comes after Sunday?", "Monday"),
        ("days", "What day is 3 days before Tuesday?", "Saturday"),
        ("months", "What month comes before January?", "December"),
        ("facts", "What is the capital of Colombia?", "Bogotá"),
        ("facts", "What is the opposite of cold?", "hot"),
    ],
)
def test_known_answers_occur(task: str, question: str, answer: str) -> None:
    assert answer_drawn(task, question) == answer


@pytest.mark.parametrize("task", EXACT)
def test_no_question_is_on_both_sides(task: str) -> None:
    train = {example.question for example in examples(task, "train", 5_000, seed=0)}
    held = {example.question for example in examples(task, "heldout", 1_000, seed=0)}
    assert held
    assert not train & held


@pytest.mark.slow
def test_a_held_out_sum_is_held_out_in_either_order() -> None:
    def pairs(split: str) -> set[frozenset[int]]:
        sums = examples("addition", split, 20_000, seed=0)
        return {frozenset(numbers(example.question)) for example in sums}

    train, held = pairs("train"), pairs("heldout")
    assert not train & held
    assert 0.05 < len(held) / (len(train) + len(held)) < 0.15


@pytest.mark.parametrize("name", ["multiplication", "days", "months", "facts"])
def test_what_must_be_remembered_occurs_in_training(name: str) -> None:
    task, rng = TASKS[name], Random(0)
    for fact in (task.draw(rng) for _ in range(2_000)):
        assert split_of(task, fact, fact.phrasings[0]) == "train"


def test_examples_are_seeded() -> None:
    first, again, other = (list(examples("sort", "train", 50, seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_task_without_held_out_questions_is_an_error() -> None:
    with pytest.raises(ValueError, match="'small_talk' has no heldout questions"):
        next(examples("small_talk", "heldout", 1, seed=0))


def test_heldout_items_are_distinct_and_cover_the_exact_tasks() -> None:
    items = heldout(40, seed=0)
    assert items == heldout(40, seed=0)
    assert len({question for _, question, _ in items}) == len(items)
    assert Counter(task for task, _, _ in items) == dict.fromkeys(EXACT, 40)


@pytest.mark.parametrize(
    ("answer", "right"), [("42", True), (" 42\n", True), ("42.", False), ("4", False), ("", False)]
)
def test_is_right(answer: str, right: bool) -> None:
    assert is_right("42", answer) is right
