"""From the items of a request's input to the turns of `switchyard.v1.ChatRequest`.

Owns which items make one turn, and which item a turn's fields came from.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence

from frontend.api.openai.responses.custom_input import INPUT
from frontend.api.openai.responses.models import InputItem, InputPart
from frontend.api.openai.responses.thoughts import unsealed
from frontend.api.openai.responses.tools import shown_name
from frontend.errors import invalid_field
from switchyard.v1 import inference_pb2 as pb

_ROLES: Mapping[str, pb.Role] = {
    "system": pb.ROLE_SYSTEM,
    "developer": pb.ROLE_SYSTEM,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
}
_TAKEN = (
    "message, reasoning, function_call, function_call_output, custom_tool_call and "
    "custom_tool_call_output"
)
# Fields of `switchyard.v1.ToolCall` as items have them, but arguments.
_CALL_FIELDS = {"id": "call_id", "name": "name"}
_OF_TURN = re.compile(r"messages\[(\d+)\](?:\.tool_calls\[(\d+)\])?\.?(\w*)")


@dataclasses.dataclass(slots=True)
class _Turn:
    """One turn as it grows; texts are put together once, however many there are.

    Attributes:
        places: the items of its calls, each with its name of the arguments; or of its result.
    """

    role: pb.Role
    texts: list[str] = dataclasses.field(default_factory=list)
    thoughts: list[str] = dataclasses.field(default_factory=list)
    calls: list[pb.ToolCall] = dataclasses.field(default_factory=list)
    tool_call_id: str = ""
    places: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def message(self) -> pb.ChatMessage:
        """The turn."""
        between = "\n\n" if self.role == pb.ROLE_SYSTEM else "\n"
        return pb.ChatMessage(
            role=self.role,
            content=between.join(filter(None, self.texts)),
            reasoning="\n".join(filter(None, self.thoughts)),
            tool_calls=self.calls,
            tool_call_id=self.tool_call_id,
        )


class InputTurns:
    """The turns of a conversation.

    An assistant's thoughts, messages and calls that follow each other are one turn, as the model
    wrote them; and so are instructions and system messages at the beginning, since many templates
    know one system turn.

    Args:
        instructions: of the system, before everything else.
        items: of the input.

    Raises:
        RequestError: an item is of another type, lacks something, or is the result of no call.
    """

    def __init__(self, instructions: str, items: Sequence[InputItem]) -> None:
        self._turns: list[_Turn] = []
        self._call_ids: set[str] = set()
        if instructions:
            self._turns.append(_Turn(pb.ROLE_SYSTEM, [instructions]))
        for number, item in enumerate(items):
            self._add(item, f"input[{number}]")

    def messages(self) -> list[pb.ChatMessage]:
        """The turns."""
        return [turn.message() for turn in self._turns]

    def names_of(self, field: str) -> dict[str, str]:
        """The parameter that a field of the turns came from, by the field; {}: another field."""
        found = _OF_TURN.fullmatch(field)
        if found is None:
            return {field: "input"} if field == "messages" else {}
        turn, call, last = found.groups()
        places = self._turns[int(turn)].places
        if call is not None:
            path, arguments = places[int(call)]
            return {field: f"{path}.{_CALL_FIELDS.get(last, arguments)}"}
        return {field: f"{places[0][0]}.call_id" if last == "tool_call_id" else "input"}

    def _add(self, item: InputItem, path: str) -> None:
        match item.type:
            case "message" | None:
                self._add_message(item, path)
            case "reasoning":
                self._assistant().thoughts.append(_thoughts(item, path))
            case "function_call":
                self._add_call(item, item.arguments or "{}", (path, "arguments"))
            case "custom_tool_call":
                self._add_call(item, json.dumps({INPUT: item.input or ""}), (path, "input"))
            case "function_call_output" | "custom_tool_call_output":
                self._add_result(item, path)
            case "item_reference":
                raise invalid_field(
                    path,
                    "is an item_reference, and nothing is stored; send the item itself "
                    "(store: false makes clients do so)",
                )
            case _:
                raise invalid_field(f"{path}.type", f"is {item.type[:32]}; {_TAKEN} are taken")

    def _add_message(self, item: InputItem, path: str) -> None:
        if item.role is None:
            raise invalid_field(f"{path}.role", "is missing; send user, assistant or system")
        role, text = _ROLES[item.role], _text(item.content)
        begins = role == pb.ROLE_SYSTEM and len(self._turns) == 1
        if role == pb.ROLE_ASSISTANT:
            self._assistant().texts.append(text)
        elif begins and self._turns[0].role == role:
            self._turns[0].texts.append(text)
        else:
            self._turns.append(_Turn(role, [text]))

    def _add_call(self, item: InputItem, arguments: str, place: tuple[str, str]) -> None:
        path, _ = place
        if not item.name:
            raise invalid_field(f"{path}.name", "is missing; send the tool's name")
        if not item.call_id:
            raise invalid_field(f"{path}.call_id", "is missing; send the call's")
        self._call_ids.add(item.call_id)
        call = pb.ToolCall(
            id=item.call_id, name=shown_name(item.name, item.namespace), arguments_json=arguments
        )
        turn = self._assistant()
        turn.calls.append(call)
        turn.places.append(place)

    def _add_result(self, item: InputItem, path: str) -> None:
        if item.call_id not in self._call_ids:
            raise invalid_field(
                f"{path}.call_id",
                "is of no call before it; nothing is stored, so send the calls too",
            )
        self._turns.append(
            _Turn(
                pb.ROLE_TOOL,
                [_text(item.output)],
                tool_call_id=item.call_id or "",
                places=[(path, "output")],
            )
        )

    def _assistant(self) -> _Turn:
        """The assistant's turn that goes on."""
        if not self._turns or self._turns[-1].role != pb.ROLE_ASSISTANT:
            self._turns.append(_Turn(pb.ROLE_ASSISTANT))
        return self._turns[-1]


def _text(parts: Sequence[InputPart]) -> str:
    return "".join((part.refusal if part.type == "refusal" else part.text) or "" for part in parts)


def _thoughts(item: InputItem, path: str) -> str:
    """The thoughts of an item: what it keeps for the server, else content, else its summary."""
    if item.encrypted_content:
        text = unsealed(item.encrypted_content)
        if text is None:
            raise invalid_field(
                f"{path}.encrypted_content", "was not made by this server; send the item without it"
            )
        return text
    return _text(item.content) or "\n".join(part.text or "" for part in item.summary)
