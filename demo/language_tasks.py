"""Facts about words and the calendar, tables of facts, stories and small talk.

Each function draws one fact. Words to be taken apart stand in double quotes, where the tokenizer
keeps letters single.
"""

from __future__ import annotations

from random import Random

from demo import stories
from demo.fact import Fact, make_fact
from demo.tables import DAYS, FACT_TABLES, MONTHS, SMALL_TALK, WORDS


def _word(rng: Random) -> str:
    """A word of our list, or as often three to seven random letters, so that copying is learnt."""
    if rng.random() < 0.5:
        return rng.choice(WORDS)
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 7)))


def reverse(rng: Random) -> Fact:
    word = _word(rng)
    return make_fact(
        word,
        word[::-1],
        f'Reverse the word "{word}".',
        f'Reverse "{word}".',
        f'Write "{word}" backwards.',
        f'What is "{word}" spelled backwards?',
    )


def spell(rng: Random) -> Fact:
    word = _word(rng)
    return make_fact(
        word,
        "-".join(word),
        f'Spell the word "{word}".',
        f'Spell "{word}".',
        f'How do you spell "{word}"?',
    )


def letter(rng: Random) -> Fact:
    word, first = _word(rng), rng.random() < 0.5
    which, verb = ("first", "start") if first else ("last", "end")
    return make_fact(
        word,
        word[0] if first else word[-1],
        f'What is the {which} letter of "{word}"?',
        f'Name the {which} letter of "{word}".',
        f'With which letter does "{word}" {verb}?',
    )


def length(rng: Random) -> Fact:
    word = _word(rng)
    return make_fact(
        word,
        len(word),
        f'How many letters are in "{word}"?',
        f'How many letters does "{word}" have?',
        f'Count the letters in "{word}".',
        f'How long is the word "{word}"?',
    )


def _cycle(rng: Random, names: tuple[str, ...], unit: str) -> Fact:
    """The name that lies some steps before or after another in a cycle of names."""
    start, later = rng.randrange(len(names)), rng.random() < 0.5
    steps = rng.choice((1, 1, 1, 2, 3, 4, 5, 6))
    answer = names[(start + (steps if later else -steps)) % len(names)]
    name, where = names[start], "after" if later else "before"
    if steps > 1:
        return make_fact(
            f"{name}{where}{steps}",
            answer,
            f"What {unit} is {steps} {unit}s {where} {name}?",
            f"Which {unit} comes {steps} {unit}s {where} {name}?",
            f"Name the {unit} {steps} {unit}s {where} {name}.",
        )
    return make_fact(
        f"{name}{where}",
        answer,
        f"What {unit} comes {where} {name}?",
        f"Which {unit} is {'next after' if later else 'right before'} {name}?",
        f"Name the {unit} {where} {name}.",
        f"What is the {'next' if later else 'previous'} {unit} {where} {name}?",
    )


def days(rng: Random) -> Fact:
    return _cycle(rng, DAYS, "day")


def months(rng: Random) -> Fact:
    return _cycle(rng, MONTHS, "month")


def table(rng: Random) -> Fact:
    table = rng.choice(FACT_TABLES)
    subject, answer = rng.choice(list(table.rows.items()))
    phrasings = (phrasing.format(x=subject) for phrasing in table.phrasings)
    return make_fact(f"{table.name}:{subject}", answer, *phrasings)


def story(rng: Random) -> Fact:
    hero = rng.choice(list(stories.HEROES))
    return make_fact(
        hero,
        stories.story(rng, hero),
        f"Tell me a story about a {hero}.",
        f"Write a short story about a {hero}.",
        f"Please tell a story with a {hero}.",
    )


def small_talk(rng: Random) -> Fact:
    greeting, reply = rng.choice(SMALL_TALK)
    return make_fact(greeting, reply, greeting)
