"""Questions are right, seeded, and never on both sides of the split."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from random import Random

import pytest

from demo.chat import CALL
from demo.data import examples, heldout, is_right, split_of
from demo.tasks import TASKS

EXACT = [task.name for task in TASKS.values() if task.exact]
BESIDE = ["after_call", "tool_unused", "thinking", "no_thinking"]


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
    "chain": lambda q: str(eval(re.search(r"[\d+ -]*\d", q)[0])),
    "letter_count": lambda q: str(q.split('"')[3].count(q.split('"')[1])),
    "sum_parity": lambda q: ("even", "odd")[sum(numbers(q)) % 2],
    "json_list": lambda q: json.dumps({q.rstrip(".").split()[-1]: listed(q)}),
}


def listed(question: str) -> list[int] | list[str]:
    """What a question of json_list lists."""
    text = re.search(r"(?:Write|me|List) (.*?) as ", question)[1]
    words = re.split(", | and ", text)
    return [int(word) for word in words] if words[0].isdigit() else words


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


def test_thoughts_are_steps_to_the_answer() -> None:
    for task in ("chain", "word_problem", "sum_parity"):
        for example in examples(task, "train", 200, seed=3):
            *_, last = lines = example.exchange.thought.splitlines()
            for line in lines:
                worked, result = line.split(" = ")
                assert eval(worked) == int(result)
            total = int(last.split(" = ")[1])
            expected = ("even", "odd")[total % 2] if task == "sum_parity" else str(total)
            assert example.answer == expected


def test_calls_are_of_tools_that_are_there_and_answers_repeat_results() -> None:
    for task in ("calculator", "two_numbers", "lookup", "errand", "two_calls", "two_rounds"):
        for example in examples(task, "train", 200, seed=4):
            tools = {tool.name: tool for tool in example.tools.values()}
            assert len(tools) == len(example.tools)
            for calls in example.exchange.rounds:
                for call in calls:
                    parameters = tools[call.name].parameters
                    assert list(call.arguments) == [name for name, _ in parameters]
            last = example.exchange.rounds[-1]
            assert example.answer == " and ".join(call.result for call in last)


def test_a_second_call_takes_what_the_first_gave() -> None:
    for example in examples("two_rounds", "train", 100, seed=0):
        (first,), (second,) = example.exchange.rounds
        assert str(next(iter(second.arguments.values()))) == first.result
        multiplies = example.tools["multiply"].name == first.name
        a, b = first.arguments.values()
        assert int(first.result) == (a * b if multiplies else a + b)


def test_what_shows_a_held_out_sum_is_held_out() -> None:
    def sums(text: str) -> set[tuple[int, int]]:
        pairs = re.findall(r"(?<![+*/-] )(?<!\d)(\d\d?) \+ (\d\d?)(?!\d)", text)
        return {(int(a), int(b)) for a, b in pairs}

    held = {
        pair
        for example in examples("addition", "heldout", 5_000, seed=0)
        for pair in itertools.permutations(numbers(example.question))
    }
    for task in ("chain", "word_problem", "sum_parity", "calculator", "two_numbers"):
        for example in examples(task, "train", 2_000, seed=0):
            first_of = example.exchange.thought or "".join(map(str, example.exchange.rounds))
            assert not sums(first_of.splitlines()[0]) & held, example


def test_look_ups_share_the_split_of_facts() -> None:
    held = {example.question for example in examples("facts", "heldout", 3_000, seed=0)}
    asked = {example.question for example in examples("lookup", "train", 10_000, seed=0)}
    assert len(held) > 50
    assert not held & asked


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
    own = [(item.task, item.messages[0]["content"]) for item in items if item.task in EXACT]
    assert len(set(own)) == len(own)
    counts = Counter(item.task for item in items)
    assert counts.pop("json_fact") == 38  # all there are
    assert counts == dict.fromkeys({*EXACT, *BESIDE} - {"json_fact"}, 40)


def test_items_beside_the_tasks_are_what_they_say() -> None:
    items = [item for item in heldout(20, seed=3) if item.task in BESIDE]
    for item in items:
        assert (item.messages[-1]["role"] == "tool") is (item.task == "after_call")
        assert (CALL in item.expected) <= (item.task in ("after_call", "thinking"))
        assert bool(item.tools) or item.task in ("thinking", "no_thinking")
        wanted = {"thinking": True, "no_thinking": False}.get(item.task)
        assert item.thinking is wanted


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("42", True),
        (" 42\n", True),
        ("<think>\n17 + 25 = 42\n</think>\n\n42", True),
        ("<think>\n42", False),
        ("42.", False),
        ("4", False),
        ("", False),
    ],
)
def test_is_right(answer: str, right: bool) -> None:
    assert is_right("42", answer) is right
