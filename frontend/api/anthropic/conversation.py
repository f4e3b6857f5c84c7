"""Anthropic's messages as turns of `switchyard.v1`.

Owns how blocks become turns: results of tools are turns of their own before the rest of a user's
turn, thoughts and calls are fields of the assistant's, and turns of one role after another are one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from frontend.api.anthropic.request_models import Block, MessageParam
from frontend.errors import invalid_field
from switchyard.v1 import inference_pb2 as pb

# A line that Claude Code puts before its system text for Anthropic's accounting. It is no word for
# a model, and differs between conversations, whose prompts would share no prefix.
_ATTRIBUTION = "x-anthropic-billing-header:"
_FAILED = "error"


def turns(system: Sequence[Block], messages: Sequence[MessageParam]) -> list[pb.ChatMessage]:
    """The turns of a conversation.

    Raises:
        RequestError: a block does not belong where it is, or lacks something.
    """
    found: list[pb.ChatMessage] = []
    said = [block for block in system if not (block.text or "").startswith(_ATTRIBUTION)]
    if said:
        found.append(pb.ChatMessage(role=pb.ROLE_SYSTEM, content=_text(said, "system")))
    for index, message in enumerate(messages):
        path = f"messages[{index}].content"
        match message.role:
            case "user":
                new = _user(message.content, path)
            case "assistant":
                new = [_assistant(message.content, path)]
            case "system":
                text = _text(message.content, path)
                new = [pb.ChatMessage(role=pb.ROLE_SYSTEM, content=text)]
        for turn in new:
            if not found or not _joined(found[-1], turn):
                found.append(turn)
    return found


def _joined(turn: pb.ChatMessage, following: pb.ChatMessage) -> bool:
    """Whether ``following`` went into ``turn``, which is of the same role."""
    if turn.role != following.role or turn.role == pb.ROLE_TOOL:
        return False
    between = "" if turn.role == pb.ROLE_ASSISTANT else "\n"
    turn.content = between.join(filter(None, (turn.content, following.content)))
    turn.reasoning += following.reasoning
    turn.tool_calls.extend(following.tool_calls)
    return True


def _user(blocks: Sequence[Block], path: str) -> list[pb.ChatMessage]:
    """A turn for each result of a tool, and one for what else the user says."""
    found, said = [], []
    for number, block in enumerate(blocks):
        if block.type == "tool_result":
            found.append(_result(block, f"{path}[{number}]"))
        else:
            said.append(_text([block], path, number))
    if said or not found:
        found.append(pb.ChatMessage(role=pb.ROLE_USER, content="\n".join(said)))
    return found


def _result(block: Block, path: str) -> pb.ChatMessage:
    if not block.tool_use_id:
        raise invalid_field(f"{path}.tool_use_id", "is missing; send the tool_use's id")
    text = _text(block.content, f"{path}.content")
    return pb.ChatMessage(
        role=pb.ROLE_TOOL,
        content=text or (_FAILED if block.is_error else ""),
        tool_call_id=block.tool_use_id,
    )


def _assistant(blocks: Sequence[Block], path: str) -> pb.ChatMessage:
    turn = pb.ChatMessage(role=pb.ROLE_ASSISTANT)
    for number, block in enumerate(blocks):
        match block.type:
            case "thinking":
                turn.reasoning += block.thinking or ""
            case "redacted_thinking":  # nobody here can read it
                pass
            case "tool_use":
                turn.tool_calls.append(_call(block, f"{path}[{number}]"))
            case _:
                turn.content += _text([block], path, number)
    return turn


def _call(block: Block, path: str) -> pb.ToolCall:
    if not block.name:
        raise invalid_field(f"{path}.name", "is missing; send it")
    arguments = json.dumps(block.input or {}, ensure_ascii=False)
    return pb.ToolCall(id=block.id or "", name=block.name, arguments_json=arguments)


def _text(blocks: Sequence[Block], path: str, first: int = 0) -> str:
    """Blocks that must be text, a line or more each.

    Args:
        first: number of the first block under ``path``.
    """
    for number, block in enumerate(blocks, first):
        if block.type != "text":
            raise invalid_field(f"{path}[{number}].type", f"is {block.type}, must be text here")
        if block.text is None:
            raise invalid_field(f"{path}[{number}].text", "is missing; send it")
    return "\n".join(block.text or "" for block in blocks)
