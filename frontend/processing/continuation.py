"""Brings a fresh request to where an earlier stream of it was lost, by the tokens it had given.

Owns the checks of `GenerateRequest.generated`. Each token is taken as if it were drawn now, so that
text, stop strings, grammar and end are those of a stream that was not lost. Knows nothing of how
the rest is drawn.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from frontend.errors import invalid_field
from frontend.processing.tokenizer import check_token_ids
from frontend.requests.progress import finish, follow
from frontend.requests.request import Request
from switchyard.v1 import inference_pb2 as pb


def check_generated(request: pb.GenerateRequest, num_samples: int, vocab_size: int) -> None:
    """Refuses entries of samples that there are not, or twice, and ids that are no token's."""
    seen = set()
    for place, given in enumerate(request.generated):
        field = f"generated[{place}]"
        if given.index >= num_samples:
            raise invalid_field(
                f"{field}.index", f"is {given.index}, must be below n {num_samples}"
            )
        if given.index in seen:
            raise invalid_field(f"{field}.index", f"is {given.index}, as that of an entry before")
        seen.add(given.index)
        check_token_ids(given.token_ids, vocab_size, f"{field}.token_ids")


def resume(samples: Sequence[Request], generated: Sequence[pb.GeneratedTokens]) -> None:
    """Lets samples begin with output tokens that their caller has; some may end with them.

    Raises:
        RequestError: INVALID_ARGUMENT; tokens after a sample's end, or outside its constraint.
    """
    for place, given in enumerate(generated):
        _resume(samples[given.index], list(given.token_ids), f"generated[{place}].token_ids")


def _resume(request: Request, token_ids: list[int], field: str) -> None:
    texts, ends = [], False
    for place, token in enumerate(token_ids):
        if ends or place == request.stops.max_new_tokens:
            raise invalid_field(f"{field}[{place}]", "comes after the end of its sample")
        text, ends = follow(request, token)
        texts.append(text)
    request.generated = token_ids
    request.output.begin_with("".join(texts))
    if request.matcher is not None:
        constrained = token_ids[:-1] if ends else token_ids
        num_allowed = request.matcher.advance(constrained)
        if num_allowed < len(constrained):
            raise invalid_field(
                f"{field}[{num_allowed}]",
                "is not what constraint allows there",
                mentions={"constraint": "constraint"},
            )
        ends = ends or request.matcher.is_stopped
    if ends or len(token_ids) == request.stops.max_new_tokens:
        finish(request, token_ids[-1], time.monotonic())
