"""From the parameters that chat and completions share to a `switchyard.v1.GenerateRequest`.

Owns what OpenAI's parameters, and the usual ones beside them, mean together. The service checks
ranges. Knows nothing of prompts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from frontend.api.http.values import UINT32_MAX, set_numbers
from frontend.api.openai.parameters.models import (
    GenerationBody,
    JsonSchemaFormat,
    ResponseFormat,
    SamplingBody,
    StructuredOutputs,
)
from frontend.api.openai.parameters.unsupported import SAME_AS_N, TABLE, Api, Unsupported
from frontend.errors import invalid_field
from frontend.processing.constraints.grammars import choice_grammar
from frontend.processing.constraints.schema_edit import closed
from frontend.processing.sampling_params import check_bias
from switchyard.v1 import inference_pb2 as pb

_NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


def generate_request(
    body: GenerationBody, max_tokens: int | None
) -> tuple[pb.GenerateRequest, dict[str, str]]:
    """Everything but the prompt and the output's log-probabilities.

    Args:
        max_tokens: tokens to generate at most; None: what the context has room for.

    Returns:
        The request, and the parameter that its language comes from, by the paths of its fields.

    Raises:
        RequestError: parameters do not fit each other.
    """
    request = sampled_request(body, max_tokens)
    if body.prompt_logprobs is not None:
        if body.stream:
            raise invalid_field("prompt_logprobs", "is not part of a stream; leave one of them out")
        request.output.prompt_logprobs = True
        request.output.top_logprobs = body.prompt_logprobs
    if body.n is not None:
        request.n = body.n
    names = set_language(request, _all_languages(body))
    if body.prompt_logprobs is not None:
        names["output.prompt_logprobs"] = "prompt_logprobs"
    return request, names


def sampled_request(body: SamplingBody, max_tokens: int | None) -> pb.GenerateRequest:
    """What every API has: how tokens are drawn, and what ends them.

    Raises:
        RequestError: a value is out of its range.
    """
    request = pb.GenerateRequest(model=body.model or "", priority=body.priority or 0)
    _set_sampling(body, request.sampling)
    _set_stops(body, request.stop_conditions, max_tokens)
    request.output.keep_special_tokens = body.skip_special_tokens is False
    return request


def _set_sampling(body: SamplingBody, sampling: pb.SamplingParams) -> None:
    set_numbers(body, _NUMBERS, sampling)
    if body.top_k is not None:
        sampling.top_k = max(0, body.top_k)  # -1 is off
    if body.seed is not None:
        sampling.seed = body.seed % 2**64
    if body.allowed_token_ids is not None and not body.allowed_token_ids:
        raise invalid_field("allowed_token_ids", "is empty; name tokens, or leave it out")
    sampling.allowed_token_ids.extend(body.allowed_token_ids or ())
    sampling.bad_words.extend(body.bad_words or ())
    for key, bias in (body.logit_bias or {}).items():  # JSON spells token ids as strings
        if not key.isascii() or not key.isdecimal() or len(key) > 10 or int(key) > UINT32_MAX:
            raise invalid_field("logit_bias", "has a key that is no token id")
        check_bias(int(key), bias)
        sampling.logit_bias[int(key)] = bias


def _set_stops(body: SamplingBody, stops: pb.StopConditions, max_tokens: int | None) -> None:
    if max_tokens is not None:
        stops.max_new_tokens = max_tokens
    if body.min_tokens is not None:
        stops.min_new_tokens = body.min_tokens
    stops.stop.extend(body.stop or ())
    stops.stop_token_ids.extend(body.stop_token_ids or ())
    stops.ignore_eos = bool(body.ignore_eos)
    stops.include_stop = bool(body.include_stop_str_in_output)


Languages = list[tuple[str, str, Any]]
"""Each language: the parameter, the field of `switchyard.v1.Constraint`, and its value."""


def _all_languages(body: GenerationBody) -> Languages:
    """The languages that a body names, in any of three spellings."""
    guided = {
        "json": body.guided_json,
        "regex": body.guided_regex,
        "grammar": body.guided_grammar,
        "choice": body.guided_choice,
    }
    return (
        _response_format(body.response_format)
        + _languages(guided, "guided_")
        + _structured_outputs(body.structured_outputs)
    )


def set_language(request: pb.GenerateRequest, languages: Languages) -> dict[str, str]:
    """Sets the one language of the output; returns the parameter's name by paths of its fields.

    Raises:
        RequestError: there are several.
    """
    if len(languages) > 1:
        also = ", ".join(parameter for parameter, _, _ in languages[1:])
        raise invalid_field(languages[0][0], f"and {also} name a language each; name one")
    names = {}
    for parameter, field, value in languages:
        setattr(request.constraint, field, value)
        names = {"constraint": parameter, f"constraint.{field}": parameter}
    return names


def _response_format(wanted: ResponseFormat | None) -> Languages:
    if wanted is None or wanted.type == "text":
        return []
    if wanted.type is None:
        raise invalid_field(
            "response_format", "has no type; send text, json_object or json_schema, or no format"
        )
    named = wanted.json_schema or JsonSchemaFormat()
    schema = wanted.schema_ if named.schema_ is None else named.schema_
    if schema is not None:
        return [("response_format", "json_schema", schema_text(schema, bool(named.strict)))]
    if wanted.type == "json_schema":
        raise invalid_field("response_format.json_schema", "has no schema; send {name, schema}")
    return [("response_format", "json_object", True)]


def schema_text(schema: dict[str, Any], strict: bool) -> str:
    """A schema as `switchyard.v1.Constraint` has it; strict: see `closed`."""
    return json.dumps(closed(schema) if strict else schema)


def _structured_outputs(wanted: StructuredOutputs | None) -> Languages:
    if wanted is None:
        return []
    given = {
        "json": wanted.json_,
        "regex": wanted.regex,
        "grammar": wanted.grammar,
        "choice": wanted.choice,
    }
    languages = _languages(given, "structured_outputs.")
    if wanted.json_object:
        languages.append(("structured_outputs.json_object", "json_object", True))
    return languages


def _languages(given: dict[str, Any], prefix: str) -> Languages:
    """A JSON schema, a regex, a grammar, choices, as far as they are given."""
    languages: Languages = []
    if given["json"] is not None:
        schema = given["json"]
        text = schema if isinstance(schema, str) else json.dumps(schema)
        languages.append((f"{prefix}json", "json_schema", text))
    for name in ("regex", "grammar"):
        if given[name] is not None:
            languages.append((f"{prefix}{name}", name, given[name]))
    if given["choice"] is not None:
        if not given["choice"]:
            raise invalid_field(f"{prefix}choice", "is empty; send the texts to choose from")
        languages.append((f"{prefix}choice", "grammar", choice_grammar(given["choice"])))
    return languages


def refuse_unsupported(values: Mapping[str, Any], api: Api) -> None:
    """Refuses the first parameter of a body that is not built and changes the answer.

    Raises:
        RequestError: INVALID_ARGUMENT with its name, and what would be taken.
    """
    refuse_rows(values, (row for row in TABLE if row.only in (None, api)))


def refuse_rows(values: Mapping[str, Any], rows: Iterable[Unsupported]) -> None:
    """Refuses the first of some parameters that a body has.

    Raises:
        RequestError: INVALID_ARGUMENT with its name, and what would be taken.
    """
    for row in rows:
        outer, _, inner = row.name.rpartition(".")
        place = values.get(outer) if outer else values
        value = place.get(inner) if isinstance(place, Mapping) else None
        if value is not None and not _is_neutral(value, row.neutral, values):
            taken = [each for each in row.neutral if each != SAME_AS_N]
            instead = row.remedy or " or ".join(
                ["leave it out", *(f"send {json.dumps(each)}" for each in taken)]
            )
            raise invalid_field(row.name, f"is not supported; {instead}")


def _is_neutral(value: Any, neutral: tuple[Any, ...], values: Mapping[str, Any]) -> bool:
    wanted = (values.get("n") or 1 if each == SAME_AS_N else each for each in neutral)
    return any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in wanted
    )
