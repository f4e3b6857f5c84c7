"""/tokenize and /detokenize, in the forms that vLLM gave them.

Owns their bodies and answers. The prompt of a chat is the one that /v1/chat/completions would make
of the same body.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field

from frontend.api.http.long_json import AnswerSize, JsonArray
from frontend.api.http.values import validated
from frontend.api.openai.chat import read_chat
from frontend.api.openai.errors import ApiError
from frontend.api.openai.logprobs import TokenTexts
from frontend.api.openai.response_models import Detokenized, Tokenized
from frontend.errors import invalid_field
from frontend.processing.threads import in_pieces
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb


class TokenizeBody(BaseModel):
    """The body of POST /tokenize: a prompt, or what a chat completion takes."""

    model_config = ConfigDict(strict=True)

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = Field(
        default=None, description="In place of a prompt, with what a chat completion takes."
    )
    add_special_tokens: bool | None = Field(
        default=None, description="Default: true. Of a chat they are the template's."
    )
    return_token_strs: bool | None = None


class DetokenizeBody(BaseModel):
    """The body of POST /detokenize."""

    model_config = ConfigDict(strict=True, json_schema_extra={"required": ["tokens"]})

    model: str | None = None
    tokens: list[int] | None = None


async def tokenized(
    values: Mapping[str, Any], service: Service, texts: TokenTexts, model: str
) -> Tokenized:
    """The ids of a prompt or of a chat.

    Args:
        values: the body's JSON object.
        model: served name.

    Raises:
        ApiError: it asks another model.
        RequestError: neither or both are there, or one cannot be encoded.
    """
    body = validated(TokenizeBody, values)
    _check_model(body.model, model)
    if (body.prompt is None) == (body.messages is None):
        raise invalid_field("prompt", "or messages must be there, and not both")
    ids = await _ids(body, values, service, model)
    count, size = len(ids), AnswerSize()
    tokens, strings = JsonArray(size), JsonArray(size)
    async for piece in in_pieces(ids):
        tokens.extend(piece)
        if body.return_token_strs:
            await texts.load(piece)
            strings.extend([texts[each] for each in piece])
    return {
        "count": count,
        "max_model_len": service.model_info().max_context_tokens,
        "tokens": cast(list[int], tokens),
        "token_strs": cast(list[str], strings) if body.return_token_strs else None,
    }


async def _ids(
    body: TokenizeBody, values: Mapping[str, Any], service: Service, model: str
) -> list[int]:
    if body.prompt is not None:
        is_bare = body.add_special_tokens is False
        return await service.tokenize_text(body.prompt, add_special_tokens=not is_bare)
    return await service.tokenize_chat(read_chat(values, "", model, service.tool_format).request)


async def detokenized(values: Mapping[str, Any], service: Service, model: str) -> Detokenized:
    """The text of ids, special tokens included.

    Raises:
        ApiError: it asks another model.
        RequestError: there are none, too many, or one that is no token.
    """
    body = validated(DetokenizeBody, values)
    _check_model(body.model, model)
    if body.tokens is None:
        raise invalid_field("tokens", "is missing; send it")
    for index, token in enumerate(body.tokens):
        if not 0 <= token < 1 << 32:
            raise invalid_field(f"tokens[{index}]", "is no token id")
    request = pb.DetokenizeRequest(token_ids=body.tokens, keep_special_tokens=True)
    return {"prompt": (await service.detokenize(request)).text}


def _check_model(asked: str | None, model: str) -> None:
    if asked and asked != model:
        raise ApiError(
            404,
            "invalid_request_error",
            f"no such model here; this server has {model}",
            code="model_not_found",
            param="model",
        )
