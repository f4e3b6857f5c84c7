"""Log-probabilities of a prompt in vLLM's shape: an object a token, by token id.

Knows nothing of chats or completions.
"""

from __future__ import annotations

import asyncio

from frontend.api.http.long_json import AnswerSize, JsonArray
from frontend.api.openai.logprobs import LEAST, TokenTexts, token_ids
from frontend.api.openai.response_models import PromptLogprob
from frontend.service.responses import logprobs_at_once
from switchyard.v1 import inference_pb2 as pb


async def prompt_logprobs(
    started: pb.GenerateStarted,
    num_top: int,
    output: pb.OutputOptions,
    texts: TokenTexts,
    size: AnswerSize,
) -> JsonArray:
    """An entry a token of the prompt, the first of which has none.

    Args:
        num_top: alternatives a token, at most ``output.top_logprobs``.

    Raises:
        RequestError: the answer has become too large.
    """
    array = JsonArray(size)
    array.extend([None])
    ids, tops = started.prompt_token_ids[1:], started.prompt_top_logprobs
    at_once = logprobs_at_once(output)
    for start in range(0, len(ids), at_once):
        piece = slice(start, start + at_once)
        best = [*tops[piece]] or [pb.TopLogprobs()] * len(ids[piece])
        await texts.load(token_ids(ids[piece], best))
        values = zip(ids[piece], started.prompt_logprobs[piece], best, strict=True)
        array.extend([_entry(*value, num_top, texts) for value in values])
        await asyncio.sleep(0)
    return array


def _entry(
    token: int, logprob: float, top: pb.TopLogprobs, num_top: int, texts: TokenTexts
) -> dict[str, PromptLogprob]:
    """The prompt's token, and the likeliest in its place; ranks begin with 1."""
    ranks = {other: rank for rank, other in enumerate(top.token_ids, 1)}
    found = {token: logprob} | dict(
        zip(top.token_ids[:num_top], top.logprobs[:num_top], strict=True)
    )
    return {
        str(each): {
            "logprob": max(value, LEAST),
            "rank": ranks.get(each),
            "decoded_token": texts[each],
        }
        for each, value in found.items()
    }
