"""Facts about small numbers: arithmetic, counting, comparing, sorting.

Each function draws one fact; its key forgets what does not change the answer's difficulty, such as
the order of the terms of a sum, so that the split cannot leak through it.
"""

from __future__ import annotations

from random import Random

from demo.fact import Fact, make_fact


def addition(rng: Random) -> Fact:
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    return make_fact(
        f"{min(a, b)}+{max(a, b)}",
        a + b,
        f"What is {a} + {b}?",
        f"{a} + {b} =",
        f"Add {a} and {b}.",
        f"Calculate {a} + {b}.",
        f"How much is {a} plus {b}?",
        f"What is the sum of {a} and {b}?",
        f"What is {a}+{b}?",
    )


def subtraction(rng: Random) -> Fact:
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    return make_fact(
        f"{a}-{b}",
        a - b,
        f"What is {a} - {b}?",
        f"{a} - {b} =",
        f"Subtract {b} from {a}.",
        f"Calculate {a} - {b}.",
        f"How much is {a} minus {b}?",
        f"Take {b} away from {a}.",
    )


def multiplication(rng: Random) -> Fact:
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    return make_fact(
        f"{a}*{b}",
        a * b,
        f"What is {a} × {b}?",
        f"What is {a} * {b}?",
        f"{a} * {b} =",
        f"Multiply {a} by {b}.",
        f"How much is {a} times {b}?",
        f"Calculate {a} times {b}.",
        f"What is the product of {a} and {b}?",
    )


def _series(first: int, last: int, step: int) -> str:
    return ", ".join(map(str, range(first, last + (1 if step > 0 else -1), step)))


def count_up(rng: Random) -> Fact:
    first = rng.randint(0, 95)
    last = first + rng.randint(3, 10)
    return make_fact(
        f"{first}..{last}",
        _series(first, last, 1),
        f"Count from {first} to {last}.",
        f"List the numbers from {first} to {last}.",
        f"Start at {first} and count up to {last}.",
    )


def count_down(rng: Random) -> Fact:
    last = rng.randint(0, 95)
    first = last + rng.randint(3, 10)
    return make_fact(
        f"{first}..{last}",
        _series(first, last, -1),
        f"Count down from {first} to {last}.",
        f"Count backwards from {first} to {last}.",
        f"Start at {first} and count down to {last}.",
    )


def count_by(rng: Random) -> Fact:
    step, first = rng.choice((2, 3, 5, 10)), rng.randint(0, 50)
    last = first + step * rng.randint(3, 8)
    return make_fact(
        f"{first}..{last}/{step}",
        _series(first, last, step),
        f"Count from {first} to {last} by {step}s.",
        f"Count by {step}s from {first} to {last}.",
        f"Count from {first} to {last} in steps of {step}.",
    )


def compare(rng: Random) -> Fact:
    top = rng.choice((99, 999))
    a, b = rng.sample(range(top + 1), 2)
    larger = rng.random() < 0.5
    words = ("larger", "bigger", "greater") if larger else ("smaller", "lower", "less")
    return make_fact(
        f"{min(a, b)},{max(a, b)}",
        max(a, b) if larger else min(a, b),
        *(f"Which is {word}, {a} or {b}?" for word in words),
        f"Which number is {words[0]}: {a} or {b}?",
    )


def parity(rng: Random) -> Fact:
    number = rng.randint(0, 999)
    return make_fact(
        str(number),
        "odd" if number % 2 else "even",
        f"Is {number} even or odd?",
        f"Is {number} odd or even?",
        f"Is the number {number} even or odd?",
        f"Tell me if {number} is even or odd.",
    )


def _numbers(rng: Random) -> tuple[list[int], str, str]:
    """Three to five distinct numbers, how they read, and a key that forgets their order."""
    numbers = rng.sample(range(100), rng.randint(3, 5))
    return numbers, ", ".join(map(str, numbers)), str(sorted(numbers))


def sort(rng: Random) -> Fact:
    numbers, text, key = _numbers(rng)
    return make_fact(
        key,
        ", ".join(map(str, sorted(numbers))),
        f"Sort these numbers: {text}.",
        f"Sort {text}.",
        f"Put {text} in order.",
        f"Order these numbers from small to large: {text}.",
    )


def largest(rng: Random) -> Fact:
    numbers, text, key = _numbers(rng)
    return make_fact(
        key,
        max(numbers),
        f"What is the largest of {text}?",
        f"Which of {text} is the largest?",
        f"Find the maximum of {text}.",
    )
