"""Questions that are answered in JSON: an object of the keys that the question names, in order."""

from __future__ import annotations

import json
from random import Random

from demo.fact import Fact, make_fact
from demo.stories import NAMES
from demo.tables import FACT_TABLES, WORDS

_CAPITALS = next(table for table in FACT_TABLES if table.name == "capital").rows
_COLORS = ("red", "green", "blue", "white", "black", "yellow", "brown", "pink", "gray", "orange")


def _listed(words: list[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _of(rng: Random, sentences: dict[str, str], values: dict[str, str | int]) -> Fact:
    """Asks for some of ``values``, which the sentences of the same keys tell; the first is told."""
    subject, *others = values
    told = rng.sample(others, rng.randint(1, len(others)))
    told = [subject, *sorted(told, key=others.index)]
    asked = rng.sample(told, rng.randint(len(told) - 1, len(told)))
    text = f"{sentences[subject]} {_listed([sentences[key] for key in told[1:]])}."
    keys = _listed(asked)
    chosen = {key: values[key] for key in asked}
    return make_fact(
        _dumps(chosen),
        _dumps(chosen),
        f"{text} Write it as JSON with {keys}.",
        f"{text} Give me {keys} as JSON.",
        f"Write as JSON with {keys}: {text}",
        f"Extract {keys} as JSON: {text}",
    )


def person(rng: Random) -> Fact:
    """Of a sentence about someone."""
    name = rng.choice(NAMES) if rng.random() < 0.5 else rng.choice(WORDS).capitalize()
    age, city = rng.randint(1, 99), rng.choice(list(_CAPITALS.values()))
    color = rng.choice(_COLORS)
    return _of(
        rng,
        {
            "name": name,
            "age": f"is {age} years old",
            "city": f"lives in {city}",
            "color": f"likes {color}",
        },
        {"name": name, "age": age, "city": city, "color": color},
    )


def thing(rng: Random) -> Fact:
    """Of a sentence about something."""
    item, color = rng.choice(WORDS), rng.choice(_COLORS)
    weight, price = rng.randint(1, 999), rng.randint(1, 999)
    return _of(
        rng,
        {
            "item": f"The {item}",
            "color": f"is {color}",
            "weight": f"weighs {weight} kg",
            "price": f"costs {price} euros",
        },
        {"item": item, "color": color, "weight": weight, "price": price},
    )


def json_fact(rng: Random) -> Fact:
    """A capital and its country."""
    country = rng.choice(list(_CAPITALS))
    keys = rng.sample(("country", "capital"), 2)
    values = {"country": country, "capital": _CAPITALS[country]}
    return make_fact(
        f"{country}|{keys[0]}",
        _dumps({key: values[key] for key in keys}),
        f"Give the capital of {country} as JSON with {keys[0]} and {keys[1]}.",
        f"What is the capital of {country}? Answer as JSON with {keys[0]} and {keys[1]}.",
        f"Write {keys[0]} and {keys[1]} of {country} as JSON.",
        f"Give {keys[0]} and {keys[1]} of {country} as JSON.",
    )


def json_list(rng: Random) -> Fact:
    """Numbers or words as a list under one key."""
    is_word = rng.random() < 0.5
    count = rng.randint(2, 5)
    values = rng.sample(WORDS, count) if is_word else rng.sample(range(1000), count)
    key = rng.choice(("items", "values", "words" if is_word else "numbers", "list"))
    text = _listed([str(value) for value in values])
    return make_fact(
        f"{key}|{text}",
        _dumps({key: values}),
        f"Write {text} as a list in JSON with {key}.",
        f"Give me {text} as JSON with {key}.",
        f"List {text} as JSON with {key}.",
    )
