"""OpenAI's chat messages as `switchyard.v1.ChatMessage`.

Owns roles and the forms content may have. Knows nothing of templates.
"""

from __future__ import annotations

from collections.abc import Mapping

from frontend.api.openai.json_fields import Fields
from frontend.errors import RequestError
from switchyard.v1 import inference_pb2 as pb

_ROLES: Mapping[str, pb.Role] = {
    "system": pb.ROLE_SYSTEM,
    "developer": pb.ROLE_SYSTEM,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
    "tool": pb.ROLE_TOOL,
}


def chat_messages(fields: Fields) -> list[pb.ChatMessage]:
    """The turns.

    Raises:
        RequestError: a role or a form of content is not known, or content is no text.
    """
    return [_message(each) for each in fields.children("messages")]


def _message(fields: Fields) -> pb.ChatMessage:
    role = _ROLES.get(fields.text("role") or "")
    if role is None:
        raise fields.wrong("role", f"must be one of {', '.join(_ROLES)}")
    return pb.ChatMessage(
        role=role,
        content=_content(fields),
        tool_call_id=fields.text("tool_call_id") or "",
        tool_calls=[_tool_call(each) for each in fields.children("tool_calls")],
    )


def _content(fields: Fields) -> str:
    """A string, or the text of all parts."""
    if not isinstance(fields.raw("content"), list):
        return fields.text("content") or ""
    return "".join(_part(part) for part in fields.children("content"))


def _part(fields: Fields) -> str:
    kind = fields.text("type")
    if kind not in ("text", "refusal"):
        raise _no_text(fields, kind)
    return fields.text(kind) or ""


def _no_text(fields: Fields, kind: str | None) -> RequestError:
    what = (kind or "nothing")[:32]
    return fields.wrong("type", f"is {what}; this model reads text parts only")


def _tool_call(fields: Fields) -> pb.ToolCall:
    function = fields.child("function")
    if function is None or not function.text("name"):
        raise fields.wrong("function", "has no name; send {name, arguments}")
    return pb.ToolCall(
        id=fields.text("id") or "",
        name=function.text("name"),
        arguments_json=function.text("arguments") or "{}",
    )
