"""Turns of a chat as the demo reads and writes them: the template, and the same text in Python.

Owns the template, which is ChatML with Qwen3's thoughts and Hermes' calls, and `Chat.pieces`, which
writes the same and says what of it the model is taught. Tools are shown by their names and those of
their parameters, in quotes, where the tokenizer keeps letters single: to call one is to copy it.
Knows nothing of tasks or tokens.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
THINK, THINK_END = "<think>", "</think>"
CALL, CALL_END = "<tool_call>", "</tool_call>"
RESPONSE, RESPONSE_END = "<tool_response>", "</tool_response>"
MARKUP = (THINK, THINK_END, CALL, CALL_END, RESPONSE, RESPONSE_END)
"""Tokens of their own, which are no special tokens: a client may see them."""
NO_THOUGHTS = f"{THINK}\n\n{THINK_END}\n\n"

TEMPLATE = r"""
{%- set asked = namespace(user=-1) -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}{%- set asked.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- if tools -%}
  {{- '<|im_start|>system\n' -}}
  {%- if messages[0].role == 'system' -%}{{- messages[0].content ~ '\n' -}}{%- endif -%}
  {{- 'Tools:' -}}
  {%- for tool in tools -%}
    {%- set function = tool.function if tool.function is defined else tool -%}
    {{- '\n"' ~ function.name ~ '" (' -}}
    {%- for name in ((function.parameters or {}).properties or {}) -%}
      {{- ('' if loop.first else ', ') ~ '"' ~ name ~ '"' -}}
    {%- endfor -%}
    {{- ')' -}}
  {%- endfor -%}
  {{- '<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role == 'tool' -%}
    {%- if loop.first or loop.previtem.role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
    {{- '\n<tool_response>\n' ~ message.content ~ '\n</tool_response>' -}}
    {%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<|im_end|>\n' -}}{%- endif -%}
  {%- elif not (tools and loop.first and message.role == 'system') -%}
    {{- '<|im_start|>' ~ message.role ~ '\n' -}}
    {%- set thought = message.reasoning_content if loop.index0 > asked.user else '' -%}
    {%- if message.role == 'assistant' and thought -%}
      {{- '<think>\n' ~ thought.strip('\n') ~ '\n</think>\n\n' -}}
    {%- endif -%}
    {{- message.content or '' -}}
    {%- for call in message.tool_calls or [] -%}
      {%- set function = call.function if call.function is defined else call -%}
      {{- '' if loop.first and not message.content else '\n' -}}
      {{- '<tool_call>\n{"name": "' ~ function.name ~ '", "arguments": ' -}}
      {%- set arguments = function.arguments -%}
      {{- (arguments if arguments is string else arguments | tojson) ~ '}\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
  {%- if enable_thinking is defined and enable_thinking is true -%}
    {{- '<think>\n' -}}
  {%- elif enable_thinking is defined and enable_thinking is false -%}
    {{- '<think>\n\n</think>\n\n' -}}
  {%- endif -%}
{%- endif -%}
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Tool:
    """A function that may be called; ``parameters`` are pairs of name and JSON type."""

    name: str
    parameters: tuple[tuple[str, str], ...]

    def schema(self) -> dict[str, Any]:
        """As clients send it."""
        names = [name for name, _ in self.parameters]
        properties = {name: {"type": kind} for name, kind in self.parameters}
        parameters = {"type": "object", "properties": properties, "required": names}
        return {"type": "function", "function": {"name": self.name, "parameters": parameters}}

    def signature(self) -> str:
        """As the model reads it."""
        names = ", ".join(f'"{name}"' for name, _ in self.parameters)
        return f'"{self.name}" ({names})'


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool, and what that gave."""

    name: str
    arguments: dict[str, str | int]
    result: str

    def text(self) -> str:
        """As the model writes it."""
        arguments = json.dumps(self.arguments, ensure_ascii=False)
        return f'{CALL}\n{{"name": "{self.name}", "arguments": {arguments}}}\n{CALL_END}'

    def message(self) -> dict[str, Any]:
        """As a client gives it back."""
        return {
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A question, what is thought, the calls that are made, and the answer.

    ``rounds`` of calls follow each other, those of one are made at once. ``thinks``: the model
    opens thoughts by itself, unless it calls a tool.
    """

    question: str
    answer: str
    thought: str = ""
    thinks: bool = False
    rounds: tuple[tuple[Call, ...], ...] = ()

    def said(self) -> list[str]:
        """What the model writes, turn by turn, without thoughts: calls, and at last the answer."""
        calls = ["\n".join(call.text() for call in calls) for calls in self.rounds]
        return [*calls, self.answer]

    def thoughts(self) -> list[str]:
        """What it thinks before each, when it is told to think."""
        if not self.rounds:
            return [self.thought or "I know this."]
        return [*(f"I need {calls[0].name}." for calls in self.rounds), "I have it."]

    def messages(self, num_rounds: int) -> list[dict[str, Any]]:
        """Those of the question and of its first rounds, with their results."""
        told: list[dict[str, Any]] = [{"role": "user", "content": self.question}]
        for calls in self.rounds[:num_rounds]:
            made = [call.message() for call in calls]
            told.append({"role": "assistant", "content": "", "tool_calls": made})
            told += [{"role": "tool", "content": call.result} for call in calls]
        return told

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """Its text without thoughts, in parts: whether each is what the model says."""
        yield f"{header('user')}{self.question}{TURN_END}\n{header('assistant')}", False
        *called, answer = self.said()
        for text, calls in zip(called, self.rounds, strict=True):
            yield f"{text}{TURN_END}", True
            results = "".join(f"\n{RESPONSE}\n{call.result}\n{RESPONSE_END}" for call in calls)
            yield f"\n{TURN_START}user{results}{TURN_END}\n{header('assistant')}", False
        yield f"{answer}{TURN_END}", True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A conversation. ``thinking``: what the template is told; None leaves it to the model."""

    exchanges: tuple[Exchange, ...]
    system: str = ""
    tools: tuple[Tool, ...] = ()
    thinking: bool | None = None

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """Its text, as the template renders it, in parts: whether each is what the model says.

        Thoughts stand in the last exchange only, for the template leaves those of earlier ones out.
        """
        shown = ["Tools:", *(tool.signature() for tool in self.tools)] if self.tools else []
        if system := "\n".join(filter(None, [self.system, *shown])):
            yield f"{header('system')}{system}{TURN_END}\n", False
        *earlier, last = self.exchanges
        for exchange in earlier:
            for text, is_said in exchange.pieces():
                # A model that thinks first has not said this.
                yield text, is_said and not exchange.thinks
            yield "\n", False
        before = iter(self._thoughts(last))
        for text, is_said in last.pieces():
            if is_said:
                given, thought = next(before)
                yield given, False
                yield thought, True
            yield text, is_said

    def _thoughts(self, exchange: Exchange) -> list[tuple[str, str]]:
        """What stands before each of the model's turns: given by the template, and said."""
        if self.thinking:
            return [
                (f"{THINK}\n", f"{thought}\n{THINK_END}\n\n") for thought in exchange.thoughts()
            ]
        calls = [("", "")] * len(exchange.rounds)
        if self.thinking is False:
            return [*calls, (NO_THOUGHTS, "")]
        if exchange.thinks and not calls:
            return [("", f"{THINK}\n{exchange.thought}\n{THINK_END}\n\n")]
        return [*calls, ("", "")]


def header(role: str) -> str:
    """What stands before a turn's text."""
    return f"{TURN_START}{role}\n"
