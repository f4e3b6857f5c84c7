"""From OpenAI's parameters, and the usual ones beside them, to a `switchyard.v1.GenerateRequest`.

Owns the parameters that chat and completions share. Ranges are checked by the service, except
those a message could not hold. Knows nothing of prompts.
"""

from __future__ import annotations

import json
from typing import Any

from frontend.api.openai.json_fields import UINT32_MAX, Fields
from frontend.processing.structured_output import choice_grammar
from switchyard.v1 import inference_pb2 as pb

_NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


def generate_request(fields: Fields, max_tokens: int | None) -> pb.GenerateRequest:
    """Everything but the prompt and what is reported of tokens.

    Args:
        max_tokens: tokens to generate at most; None for what is left of the context.

    Raises:
        RequestError: a parameter is of the wrong type, or may not be set.
    """
    asked = pb.GenerateRequest(model=fields.text("model") or "")
    for name in _NUMBERS:
        value = fields.number(name)
        if value is not None:
            setattr(asked.sampling, name, value)
    top_k = fields.integer("top_k", low=-1)
    if top_k is not None:
        asked.sampling.top_k = max(0, top_k)  # -1 is off
    seed = fields.integer("seed", low=-(2**63), high=2**64 - 1)
    if seed is not None:
        asked.sampling.seed = seed % 2**64
    asked.sampling.allowed_token_ids.extend(fields.integers("allowed_token_ids"))
    _set_bias(fields, asked.sampling)
    _set_stops(fields, asked.stop_conditions, max_tokens)
    asked.output.keep_special_tokens = not fields.flag("skip_special_tokens", default=True)
    n = fields.integer("n")
    if n is not None:
        asked.n = n
    if fields.integer("best_of") not in (None, n or 1):
        raise fields.wrong("best_of", f"must be n, {n or 1}; sampling more than is kept is no use")
    asked.priority = fields.integer("priority", low=-(2**31), high=2**31 - 1) or 0
    _set_constraint(fields, asked)
    return asked


def _set_bias(fields: Fields, sampling: pb.SamplingParams) -> None:
    """``logit_bias`` is an object from token ids, which JSON spells as strings, to numbers."""
    bias = fields.child("logit_bias")
    for key in fields.raw("logit_bias") or ():
        if not key.isascii() or not key.isdecimal() or len(key) > 10 or int(key) > UINT32_MAX:
            raise fields.wrong("logit_bias", "has a key that is no token id")
        assert bias is not None, "it would not be iterated"
        sampling.logit_bias[int(key)] = bias.number(key) or 0.0


def _set_stops(fields: Fields, stops: pb.StopConditions, max_tokens: int | None) -> None:
    if max_tokens is not None:
        stops.max_new_tokens = max_tokens
    min_tokens = fields.integer("min_tokens")
    if min_tokens is not None:
        stops.min_new_tokens = min_tokens
    stops.stop.extend(fields.texts("stop"))
    stops.stop_token_ids.extend(fields.integers("stop_token_ids"))
    stops.ignore_eos = fields.flag("ignore_eos")
    stops.include_stop = fields.flag("include_stop_str_in_output")


def _set_constraint(fields: Fields, asked: pb.GenerateRequest) -> None:
    """The one language that is asked for, in any of three spellings."""
    found = {**_response_format(fields), **_guided(fields), **_structured(fields)}
    if len(found) > 1:
        raise fields.wrong(
            "response_format", f"and others ask for {len(found)} languages; ask for one"
        )
    for language, value in found.items():
        setattr(asked.constraint, language, value)


def _response_format(fields: Fields) -> dict[str, Any]:
    wanted = fields.child("response_format")
    if wanted is None:
        return {}
    match wanted.text("type"):
        case None | "text":
            return {}
        case "json_object":
            return {"json_object": True}
        case "json_schema":
            schema = wanted.child("json_schema")
            if schema is None or schema.child("schema") is None:
                raise wanted.wrong("json_schema", "has no schema; send {name, schema}")
            return {"json_schema": json.dumps(schema.raw("schema"))}
        case _:
            raise wanted.wrong("type", "must be one of text, json_object, json_schema")


def _guided(fields: Fields) -> dict[str, Any]:
    names = {name: f"guided_{name}" for name in ("json", "regex", "grammar", "choice")}
    return _languages(fields, names)


def _structured(fields: Fields) -> dict[str, Any]:
    wanted = fields.child("structured_outputs")
    if wanted is None:
        return {}
    found = _languages(wanted, {name: name for name in ("json", "regex", "grammar", "choice")})
    return {**found, "json_object": True} if wanted.flag("json_object") else found


def _languages(fields: Fields, names: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if names["json"] in fields:
        schema = fields.raw(names["json"])
        found["json_schema"] = schema if isinstance(schema, str) else json.dumps(schema)
    for language in ("regex", "grammar"):
        text = fields.text(names[language])
        if text is not None:
            found[language] = text
    choices = fields.texts(names["choice"])
    if choices:
        found["grammar"] = choice_grammar(choices)
    return found
