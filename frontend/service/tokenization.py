"""Tokenize and Detokenize: text to token ids and back, without a generation.

Owns how long their input may be. Knows nothing of requests to the engine.
"""

from __future__ import annotations

from frontend.backend import Backend
from frontend.bounds import MAX_DETOKENIZE_IDS, MAX_MESSAGE_BYTES, MAX_TOKENIZE_CHARS
from frontend.errors import invalid_field, too_many
from frontend.processing.preprocess import offloaded, tokenizer_of
from frontend.processing.threads import in_pieces
from frontend.processing.tokenizer import check_token_ids
from switchyard.v1 import inference_pb2 as pb


async def text_ids(backend: Backend, text: str, add_special_tokens: bool) -> list[int]:
    """Token ids of a text, which may be too many for a message.

    Raises:
        RequestError: the text is too long, or there is no tokenizer.
    """
    tokenizer = tokenizer_of(backend)
    if len(text) > MAX_TOKENIZE_CHARS:
        raise too_many("text", len(text), MAX_TOKENIZE_CHARS, "characters")
    return await offloaded(len(text), tokenizer.encode, text, add_special_tokens)


async def tokenize(backend: Backend, request: pb.TokenizeRequest) -> pb.TokenizeResponse:
    """Text to token ids.

    Raises:
        RequestError: the text is too long, or there is no tokenizer.
    """
    ids = await text_ids(backend, request.text, not request.skip_special_tokens)
    answer = pb.TokenizeResponse()
    async for piece in in_pieces(ids):
        answer.token_ids.extend(piece)
    if answer.ByteSize() > MAX_MESSAGE_BYTES:
        num_tokens = len(answer.token_ids)
        raise invalid_field("text", f"has {num_tokens} tokens, too many for a message")
    return answer


async def detokenize(backend: Backend, request: pb.DetokenizeRequest) -> pb.DetokenizeResponse:
    """Token ids to text.

    Raises:
        RequestError: ids are too many or no tokens, the text is too long, or there is no tokenizer.
    """
    tokenizer = tokenizer_of(backend)
    if len(request.token_ids) > MAX_DETOKENIZE_IDS:
        raise too_many("token_ids", len(request.token_ids), MAX_DETOKENIZE_IDS, "ids")
    check_token_ids(request.token_ids, backend.info.vocab_size, "token_ids")
    ids = list(request.token_ids)
    text = await offloaded(len(ids), tokenizer.decode, ids, request.keep_special_tokens)
    answer = pb.DetokenizeResponse(text=text)
    if answer.ByteSize() > MAX_MESSAGE_BYTES:
        raise invalid_field("token_ids", f"have {len(text)} characters, too many for a message")
    return answer
