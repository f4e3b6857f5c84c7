"""One thing to ask about, and all the ways to ask it. Knows nothing of tasks or the split."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing to ask: ``key`` names it, ``phrasings`` are the questions, all with one answer."""

    key: str
    answer: str
    phrasings: tuple[str, ...]


def make_fact(key: str, answer: object, *phrasings: str) -> Fact:
    return Fact(key=key, answer=str(answer), phrasings=phrasings)
