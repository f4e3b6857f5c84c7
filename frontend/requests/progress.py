"""What one more token means for its request: the text it adds, whether it is the last, and why.

Owns the counting of output tokens and the order of the reasons to end. Knows nothing of steps, nor
of whether the token was drawn just now or by an earlier stream of the same request.
"""

from __future__ import annotations

from frontend.requests.output import FinishReason
from frontend.requests.request import Request


def follow(request: Request, token: int) -> tuple[str, bool]:
    """Count one token of the output.

    An end token of the model goes through the decoder, which leaves special tokens out unless the
    caller wants them; a stop token's text is treated as a stop string's: left out unless
    ``include_stop``.

    Returns:
        The text that it adds, and whether an end token, a stop token or a stop string ends the
        output with it.
    """
    request.num_generated += 1
    stops, decoder = request.stops, request.decoder
    is_end = _is_end(request, token)
    if decoder is None or (is_end and token not in stops.eos_token_ids and not stops.include_stop):
        return "", is_end
    text = decoder.push(token)
    return text, is_end or decoder.matched is not None


def finish(request: Request, token: int, now: float) -> None:
    """End a request whose last token was followed, with the first reason that applies: end token,
    stop token or string, a grammar that is complete, length."""
    decoder, matcher = request.decoder, request.matcher
    stop_text = decoder.matched if decoder is not None else None
    stop_token_id = None
    is_end = _is_end(request, token)
    if is_end and token in request.stops.eos_token_ids:
        reason, stop_text = FinishReason.EOS, None
    elif is_end:
        reason, stop_text, stop_token_id = FinishReason.STOP, None, token
    elif stop_text is not None or (matcher is not None and matcher.is_stopped):
        reason = FinishReason.STOP
    else:
        reason = FinishReason.LENGTH
    request.finish(
        reason, now, text=held_text(request), stop_text=stop_text, stop_token_id=stop_token_id
    )


def held_text(request: Request) -> str:
    """Text that the decoder held back until now."""
    return request.decoder.flush() if request.decoder is not None else ""


def _is_end(request: Request, token: int) -> bool:
    """Whether the newest token is an end or stop token, and one that may end the request."""
    stops = request.stops
    return (
        token in stops.eos_token_ids or token in stops.stop_token_ids
    ) and request.num_generated > stops.min_new_tokens
