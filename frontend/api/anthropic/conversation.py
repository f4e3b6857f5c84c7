"""Anthropic's messages as turns of `switchyard.v1`.

Owns how blocks become turns: results of tools are turns of their own before the rest of a user's
turn, thoughts and calls are fields of the assistant's, and turns of one role after another are one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence

from frontend.api.anthropic.request_models import Block, MessageParam
from frontend.errors import invalid_field
from switchyard.v1 import inference_pb2 as pb

# A line that Claude Code puts before its system text for Anthropic's accounting. It is no word for
# a model, and differs between conversations, whose prompts would share no prefix.
_ATTRIBUTION = "x-anthropic-billing-header:"
_FAILED = "error"


@dataclasses.dataclass(slots=True)
class _Turn:
    """A turn as it grows; a message of protobuf would keep every text that it ever had."""

    role: pb.Role
    texts: list[str] = dataclasses.field(default_factory=list)
    thoughts: list[str] = dataclasses.field(default_factory=list)
    calls: list[pb.ToolCall] = dataclasses.field(default_factory=list)
    tool_call_id: str = ""

    def goes_on_with(self, other: _Turn) -> bool:
        """Whether ``other`` is part of this one, which a result of a tool never is."""
        return self.role == other.role != pb.ROLE_TOOL

    def add(self, other: _Turn) -> None:
        """Go on with a turn of the same role."""
        self.texts += other.texts
        self.thoughts += other.thoughts
        self.calls += other.calls

    def message(self) -> pb.ChatMessage:
        """The whole turn. An assistant's texts follow each other, those of others are lines."""
        between = "" if self.role == pb.ROLE_ASSISTANT else "\n"
        return pb.ChatMessage(
            role=self.role,
            content=between.join(self.texts),
            reasoning="".join(self.thoughts),
            tool_calls=self.calls,
            tool_call_id=self.tool_call_id,
        )


def turns(system: Sequence[Block], messages: Sequence[MessageParam]) -> list[pb.ChatMessage]:
    """The turns of a conversation.

    Raises:
        RequestError: a block does not belong where it is, or lacks something.
    """
    found: list[_Turn] = []
    said = [block for block in system if not (block.text or "").startswith(_ATTRIBUTION)]
    if said:
        found.append(_Turn(pb.ROLE_SYSTEM, _texts(said, "system")))
    for index, message in enumerate(messages):
        for turn in _turns_of(message, f"messages[{index}].content"):
            if found and found[-1].goes_on_with(turn):
                found[-1].add(turn)
            else:
                found.append(turn)
    return [turn.message() for turn in found]


def _turns_of(message: MessageParam, path: str) -> Iterator[_Turn]:
    match message.role:
        case "user":
            yield from _user(message.content, path)
        case "assistant":
            yield _assistant(message.content, path)
        case "system":
            yield _Turn(pb.ROLE_SYSTEM, _texts(message.content, path))


def _user(blocks: Sequence[Block], path: str) -> Iterator[_Turn]:
    """A turn for each result of a tool, and one for what else the user says."""
    said, has_result = _Turn(pb.ROLE_USER), False
    for number, block in enumerate(blocks):
        if block.type == "tool_result":
            has_result = True
            yield _result(block, f"{path}[{number}]")
        else:
            said.texts.append(_text(block, f"{path}[{number}]"))
    if said.texts or not has_result:
        yield said


def _result(block: Block, path: str) -> _Turn:
    if not block.tool_use_id:
        raise invalid_field(f"{path}.tool_use_id", "is missing; send the tool_use's id")
    texts = _texts(block.content, f"{path}.content")
    if block.is_error and not any(texts):
        texts = [_FAILED]
    return _Turn(pb.ROLE_TOOL, texts, tool_call_id=block.tool_use_id)


def _assistant(blocks: Sequence[Block], path: str) -> _Turn:
    turn = _Turn(pb.ROLE_ASSISTANT)
    for number, block in enumerate(blocks):
        match block.type:
            case "thinking":
                turn.thoughts.append(block.thinking or "")
            case "redacted_thinking":  # nobody here can read it
                pass
            case "tool_use":
                turn.calls.append(_call(block, f"{path}[{number}]"))
            case _:
                turn.texts.append(_text(block, f"{path}[{number}]"))
    return turn


def _call(block: Block, path: str) -> pb.ToolCall:
    if not block.name:
        raise invalid_field(f"{path}.name", "is missing; send it")
    arguments = json.dumps(block.input or {}, ensure_ascii=False)
    return pb.ToolCall(id=block.id or "", name=block.name, arguments_json=arguments)


def _texts(blocks: Sequence[Block], path: str) -> list[str]:
    return [_text(block, f"{path}[{number}]") for number, block in enumerate(blocks)]


def _text(block: Block, path: str) -> str:
    """The text of a block that must be one."""
    if block.type != "text":
        raise invalid_field(f"{path}.type", f"is {block.type}, must be text here")
    if block.text is None:
        raise invalid_field(f"{path}.text", "is missing; send it")
    return block.text
