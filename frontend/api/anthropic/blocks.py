"""What a turn says as content blocks: events of a stream, and the blocks of a whole message."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import cast

from frontend.api.anthropic.response_models import (
    BlockDelta,
    ContentBlock,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
)
from frontend.api.http.long_json import JsonText, encode
from frontend.processing.tool_calls.events import Arguments, CallBegun, Event, Text
from frontend.processing.tool_calls.json_objects import is_json_object, members
from frontend.service.turns import Call, Reasoning, WholeTurn

SIGNATURE = "switchyard"
"""Of thoughts. Clients send only signed ones back; nobody checks it here."""

BlockEvent = ContentBlockStart | ContentBlockDelta | ContentBlockStop


class BlockWriter:
    """The blocks of one turn, one after the other, as events of a stream."""

    def __init__(self) -> None:
        self._num_blocks = 0
        self._open = ""  # the type of the block that goes on

    def write(self, events: Iterable[Reasoning | Event]) -> list[BlockEvent]:
        """What is new."""
        told: list[BlockEvent] = []
        for event in events:
            match event:
                case Reasoning(text):
                    if self._open != "thinking":
                        empty: ContentBlock = {"type": "thinking", "thinking": "", "signature": ""}
                        told += self._begin(empty)
                    told.append(self._delta({"type": "thinking_delta", "thinking": text}))
                case Text(text):
                    if self._open != "text":
                        told += self._begin({"type": "text", "text": ""})
                    told.append(self._delta({"type": "text_delta", "text": text}))
                case CallBegun():
                    told += self._begin(
                        {"type": "tool_use", "id": _id(event), "name": event.name, "input": {}}
                    )
                case Arguments(_, text):
                    assert self._open == "tool_use", "calls come one after the other"
                    told.append(self._delta({"type": "input_json_delta", "partial_json": text}))
        return told

    def end(self) -> list[BlockEvent]:
        """The end of the block that goes on, if one does."""
        told: list[BlockEvent] = []
        if self._open == "thinking":
            told.append(self._delta({"type": "signature_delta", "signature": SIGNATURE}))
        if self._open:
            told.append({"type": "content_block_stop", "index": self._num_blocks - 1})
        self._open = ""
        return told

    def _begin(self, block: ContentBlock) -> list[BlockEvent]:
        ended = self.end()
        self._open = block["type"]
        self._num_blocks += 1
        return [
            *ended,
            {
                "type": "content_block_start",
                "index": self._num_blocks - 1,
                "content_block": block,
            },
        ]

    def _delta(self, delta: BlockDelta) -> ContentBlockDelta:
        return {"type": "content_block_delta", "index": self._num_blocks - 1, "delta": delta}


def blocks(turn: WholeTurn) -> list[ContentBlock]:
    """The content of a whole message."""
    told: list[ContentBlock] = []
    for part in turn.pieces:
        match part:
            case Reasoning(text):
                told.append({"type": "thinking", "thinking": text, "signature": SIGNATURE})
            case Text(text):
                told.append({"type": "text", "text": text})
            case Call(name):
                told.append(
                    {"type": "tool_use", "id": _id(part), "name": name, "input": _input(part)}
                )
    return told


def _id(call: CallBegun | Call) -> str:
    return call.id or f"toolu_{uuid.uuid4().hex[:24]}"


def _input(call: Call) -> dict[str, object]:
    """The arguments in the model's own text; of a call that was cut, the members that are whole."""
    text = call.arguments
    if not is_json_object(text):
        text = _whole_members(text.lstrip())
    return cast(dict[str, object], JsonText(text))


def _whole_members(text: str) -> str:
    found, _ = members(text) if text else ({}, None)
    return "{" + ",".join(f"{encode(name)}:{value}" for name, value in found.items()) + "}"
