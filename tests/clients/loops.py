"""Loops of tools that every client runs for real: the demo calls, the client computes, and the demo
says what came of it.

Owns the questions, the calls and answers that are right, and how long each prompt of a loop is, by
which a test knows that a client has sent back all that was before, thoughts included.
"""

from __future__ import annotations

import asyncio
import dataclasses
import operator
from collections.abc import Awaitable, Callable
from concurrent import futures
from functools import cache
from typing import Any

from transformers import AutoTokenizer

from demo import CHECKPOINT
from demo.chat import Call, Exchange, Tool

THINKING_BLOCKS = {"type": "enabled", "budget_tokens": 200}
"""How a request of Anthropic's API has the template open thoughts."""


@dataclasses.dataclass(frozen=True, slots=True)
class Loop:
    """A question, the tools it may use, and what is called, thought and answered.

    ``streams``: whether the client asks for streams. ``thinks``: the template opens thoughts, for
    which a client sends ``body`` too; else the demo has none beside tools.
    """

    tools: tuple[Tool, ...]
    exchange: Exchange
    streams: bool = False
    thinks: bool = False

    @property
    def question(self) -> str:
        return self.exchange.question

    @property
    def answer(self) -> str:
        return self.exchange.answer

    @property
    def calls(self) -> list[str]:
        """All of them, as `Toolbox.made` has them."""
        return sorted(told(call) for calls in self.exchange.rounds for call in calls)

    @property
    def thoughts(self) -> list[str]:
        """Of each turn, if it thinks."""
        return self.exchange.thoughts() if self.thinks else []

    @property
    def body(self) -> dict[str, Any]:
        """What a request has that OpenAI's API has no name for."""
        return {"chat_template_kwargs": self.template_kwargs} if self.thinks else {}

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """What the chat template is told of thoughts."""
        return {"enable_thinking": True} if self.thinks else {}

    def schemas(self) -> list[dict[str, Any]]:
        """The tools of chat completions."""
        return [tool.schema() for tool in self.tools]

    def functions(self) -> list[dict[str, Any]]:
        """The name and parameters of each."""
        return [schema["function"] for schema in self.schemas()]

    def prompt_tokens(self, *, thoughts_are_sent: bool = True) -> list[int]:
        """Of each turn's prompt, by transformers; whether the client sends thoughts back."""
        return [
            self._prompt_tokens(num_rounds, thoughts_are_sent)
            for num_rounds in range(len(self.exchange.rounds) + 1)
        ]

    def _prompt_tokens(self, num_rounds: int, thoughts_are_sent: bool) -> int:
        messages = self.exchange.messages(num_rounds)
        if self.thinks and thoughts_are_sent:
            turns = (message for message in messages if message["role"] == "assistant")
            for turn, thought in zip(turns, self.thoughts, strict=False):
                turn["reasoning_content"] = thought
        options = {"add_generation_prompt": True, "return_dict": True}
        prompt = tokenizer().apply_chat_template(
            messages, tools=self.schemas(), **self.template_kwargs, **options
        )
        return len(prompt["input_ids"])


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def told(call: Call) -> str:
    """A call as Python writes it."""
    return (
        f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})"
    )


_SIGNS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "*": operator.mul}


@dataclasses.dataclass
class Toolbox:
    """The tools, which remember how they were called; as functions, for clients that take these."""

    _made: list[str] = dataclasses.field(default_factory=list)

    @property
    def made(self) -> list[str]:
        """Every call; sorted, for clients run those of one turn in any order."""
        return sorted(self._made)

    def functions(self, loop: Loop) -> list[Callable[..., str]]:
        return [getattr(self, tool.name) for tool in loop.tools]

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        result: str = getattr(self, name)(**arguments)
        return result

    def calculator(self, expression: str) -> str:
        """Calculate an expression."""
        a, sign, b = expression.split(" ")
        return self._done("calculator", {"expression": expression}, _SIGNS[sign](int(a), int(b)))

    def add(self, a: int, b: int) -> str:
        """Add two numbers."""
        return self._done("add", {"a": a, "b": b}, a + b)

    def multiply(self, a: int, b: int) -> str:
        """Multiply two numbers."""
        return self._done("multiply", {"a": a, "b": b}, a * b)

    def _done(self, name: str, arguments: dict[str, str | int], result: int) -> str:
        self._made.append(told(Call(name, arguments, str(result))))
        return str(result)


@dataclasses.dataclass
class Run:
    """A loop as a client runs it: what each turn thought, and how long its prompt was."""

    toolbox: Toolbox = dataclasses.field(default_factory=Toolbox)
    thoughts: list[str] = dataclasses.field(default_factory=list)
    prompt_tokens: list[int] = dataclasses.field(default_factory=list)
    answer: str = ""

    def check(self, loop: Loop) -> None:
        """All of it is right."""
        self.check_words(loop)
        assert self.prompt_tokens == loop.prompt_tokens()

    def check_words(self, loop: Loop) -> None:
        """All but the prompts, which are longer where what was thought comes back with blanks."""
        assert self.answer == loop.answer
        assert self.toolbox.made == loop.calls
        assert self.thoughts == loop.thoughts


def _calculated(expression: str, result: str) -> Call:
    return Call("calculator", {"expression": expression}, result)


def _of_two(name: str, a: int, b: int, result: str) -> Call:
    return Call(name, {"a": a, "b": b}, result)


CALCULATOR = Tool("calculator", (("expression", "string"),))
ADD, MULTIPLY = (Tool(name, (("a", "integer"), ("b", "integer"))) for name in ("add", "multiply"))
CALCULATED = Loop(
    (CALCULATOR,),
    Exchange(
        question="Calculate 123 + 456.",
        rounds=((_calculated("123 + 456", "579"),),),
        answer="579",
    ),
)
_TWO_AT_ONCE = Loop(
    (CALCULATOR,),
    Exchange(
        question="Calculate 123 + 456 and 12 * 34.",
        rounds=((_calculated("123 + 456", "579"), _calculated("12 * 34", "408")),),
        answer="579 and 408",
    ),
)
_TWO_ROUNDS = Loop(
    (ADD, MULTIPLY),
    Exchange(
        question="Add 12 and 30, then multiply by 7.",
        rounds=((_of_two("add", 12, 30, "42"),), (_of_two("multiply", 42, 7, "294"),)),
        answer="294",
    ),
)
LOOPS = {
    "one_call": CALCULATED,
    "two_at_once": dataclasses.replace(_TWO_AT_ONCE, streams=True),
    "two_rounds": _TWO_ROUNDS,
    "thoughts_and_two_at_once": dataclasses.replace(_TWO_AT_ONCE, thinks=True),
    "thoughts_and_two_rounds": dataclasses.replace(_TWO_ROUNDS, streams=True, thinks=True),
}


def check_at_once(check: Callable[[Loop], None]) -> None:
    """Of every loop; at once, since a server's steps cost the same for several."""
    with futures.ThreadPoolExecutor(len(LOOPS)) as pool:
        for done in [pool.submit(check, loop) for loop in LOOPS.values()]:
            done.result()


async def await_at_once(check: Callable[[Loop], Awaitable[None]]) -> None:
    """As `check_at_once`."""
    await asyncio.gather(*(check(loop) for loop in LOOPS.values()))
