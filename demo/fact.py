"""One thing to ask about, and all the ways to ask it. Knows nothing of tasks or the split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from demo.chat import Call, Exchange, Tool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing to ask: ``key`` names it, ``phrasings`` are the questions, all with one answer.

    ``thought`` leads to the answer; ``rounds`` of calls of ``tools``, by kind, are made before it.
    ``steps`` are other facts that this one shows, as task and key: where one of them is held out,
    so is this.
    """

    key: str
    answer: str
    phrasings: tuple[str, ...]
    thought: str = ""
    rounds: tuple[tuple[Call, ...], ...] = ()
    tools: Mapping[str, Tool] = dataclasses.field(default_factory=dict)
    steps: tuple[tuple[str, str], ...] = ()

    def exchange(self, question: str) -> Exchange:
        """The question, in one of its phrasings, and all that follows."""
        return Exchange(
            question=question,
            answer=self.answer,
            thought=self.thought,
            thinks=bool(self.thought),
            rounds=self.rounds,
        )


def make_fact(key: str, answer: object, *phrasings: str) -> Fact:
    return Fact(key=key, answer=str(answer), phrasings=phrasings)


def sum_step(a: int, sign: str, b: int) -> tuple[str, str]:
    """The fact of a sum or a difference, as ``Fact.steps`` has it."""
    return ("addition", f"{min(a, b)}+{max(a, b)}") if sign == "+" else ("subtraction", f"{a}-{b}")
