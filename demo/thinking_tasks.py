"""Questions of more than one step, whose steps are thought before the answer is given."""

from __future__ import annotations

import dataclasses
from random import Random

from demo.fact import Fact, make_fact, sum_step
from demo.stories import NAMES
from demo.tables import WORDS


def _worked_out(key: str, first: int, later: list[tuple[str, int]], *phrasings: str) -> Fact:
    """A fact whose thought is one sum a line, each going on from the last."""
    lines, steps, total = [], [], first
    for sign, number in later:
        result = total + number if sign == "+" else total - number
        lines.append(f"{total} {sign} {number} = {result}")
        steps.append(sum_step(total, sign, number))
        total = result
    fact = make_fact(key, total, *phrasings)
    return dataclasses.replace(fact, thought="\n".join(lines), steps=tuple(steps))


def chain(rng: Random) -> Fact:
    """A sum of three or four terms."""
    first = rng.randint(0, 99)
    later = [(rng.choice("+-"), rng.randint(0, 99)) for _ in range(rng.randint(2, 3))]
    text = " ".join([str(first), *(f"{sign} {number}" for sign, number in later)])
    return _worked_out(
        text,
        first,
        later,
        f"What is {text}?",
        f"{text} =",
        f"Calculate {text}.",
        f"How much is {text}?",
    )


_THINGS = ("apples", "books", "coins", "eggs", "pears", "shells", "stones", "stars")


def word_problem(rng: Random) -> Fact:
    """Someone has things, gets some and gives some away."""
    name, things = rng.choice(NAMES), rng.choice(_THINGS)
    first, more = rng.randint(1, 60), rng.randint(1, 39)
    less = rng.randint(1, first)
    gets_first = rng.random() < 0.5
    gets, gives = f"gets {more} more", f"gives {less} away"
    then = f"{gets} and {gives}" if gets_first else f"{gives} and {gets}"
    return _worked_out(
        f"{first}{then}",
        first,
        [("+", more), ("-", less)][:: 1 if gets_first else -1],
        f"{name} has {first} {things} and {then}. How many {things} does {name} have?",
        f"{name} has {first} {things}. {name} {then}. How many are left?",
        f"How many {things} has {name}, who had {first} and {then}?",
    )


def letter_count(rng: Random) -> Fact:
    """How often a letter is in a word: counted letter by letter."""
    word = rng.choice(WORDS) if rng.random() < 0.5 else "".join(rng.choices("abcdelnorst", k=6))
    letter = rng.choice(word) if rng.random() < 0.8 else rng.choice("abcdelnorst")
    counts = (f"{each} {word[: place + 1].count(letter)}" for place, each in enumerate(word))
    fact = make_fact(
        f"{letter}|{word}",
        word.count(letter),
        f'How often is "{letter}" in "{word}"?',
        f'How many times is "{letter}" in "{word}"?',
        f'Count the letter "{letter}" in "{word}".',
    )
    return dataclasses.replace(fact, thought=" ".join(counts))


def sum_parity(rng: Random) -> Fact:
    """Whether a sum is even or odd."""
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    fact = make_fact(
        f"{min(a, b)}+{max(a, b)}",
        "odd" if (a + b) % 2 else "even",
        f"Is {a} + {b} even or odd?",
        f"Is the sum of {a} and {b} even or odd?",
        f"Is {a} plus {b} odd or even?",
    )
    thought = f"{a} + {b} = {a + b}"
    return dataclasses.replace(fact, thought=thought, steps=(sum_step(a, "+", b),))
