"""What /openapi.json says of the API's paths."""

from __future__ import annotations

from frontend.api.anthropic.request_models import MessagesBody, PromptBody
from frontend.api.anthropic.response_models import (
    AssistantMessage,
    MessageEvent,
    MessagesError,
    TokenCount,
)
from frontend.api.http.openapi import Described, Operations

_API = Operations("MessagesError")


def described() -> Described:
    """The API, but for /v1/models, which OpenAI's has too."""
    return Described(
        paths={
            "/v1/messages": {
                "post": _API.generation(
                    "Answer messages with one",
                    "MessagesBody",
                    whole="AssistantMessage",
                    chunk="MessageEvent",
                    last="message_stop",
                )
            },
            "/v1/messages/count_tokens": {
                "post": _API.question("Count a prompt's tokens", "PromptBody", "TokenCount")
            },
        },
        requests=(MessagesBody, PromptBody),
        responses=(AssistantMessage, MessageEvent, MessagesError, TokenCount),
    )
