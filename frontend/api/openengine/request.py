"""Converts `openengine.v1` requests to `switchyard.v1`.

Owns the meaning of their fields and of the call's metadata. The service checks ranges. Knows
nothing of streams.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from frontend.errors import invalid_field
from frontend.processing.constraints.grammars import choice_grammar
from switchyard.openengine.v1 import openengine_pb2 as oe
from switchyard.v1 import inference_pb2 as pb

PRIORITY = "openengine-priority"
TARGET_RANK = "openengine-target-dp-rank"
_INT32 = range(-(2**31), 2**31)
_SAMPLING = (
    "temperature",
    "top_p",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "seed",
)


def generate_request(
    request: oe.GenerateRequest, metadata: Mapping[str, str], *, has_tokenizer: bool = True
) -> pb.GenerateRequest:
    """The service's form of a request.

    Args:
        metadata: the protocol's own keys of the call.
        has_tokenizer: text can be made of tokens.

    Raises:
        RequestError: it asks for what is not done here, or its metadata is malformed.
    """
    _refuse(request)
    generation = pb.GenerateRequest(request_id=request.request_id, model=request.model)
    if request.WhichOneof("input") == "prompt":
        generation.prompt.text = request.prompt
    else:
        generation.prompt.tokens.ids.extend(request.token_ids.ids)
    _set_sampling(request.sampling, generation)
    _set_stops(request.stopping, generation.stop_conditions)
    _set_output(request.response, generation.output)
    generation.output.skip_detokenize = not has_tokenizer
    _set_constraint(request.guided, generation.constraint)
    # The greater goes first there, the smaller here.
    generation.priority = -_number(metadata, PRIORITY)
    if _number(metadata, TARGET_RANK):
        raise invalid_field(TARGET_RANK, "must be 0: ranks are balanced inside")
    return generation


def own_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    """The protocol's keys of a call.

    Raises:
        RequestError: one is there twice.
    """
    found: dict[str, str] = {}
    for name, value in metadata:
        if name in (PRIORITY, TARGET_RANK):
            if name in found:
                raise invalid_field(name, "is there twice; send it once")
            found[name] = str(value)
    return found


def _number(metadata: Mapping[str, str], name: str) -> int:
    text = metadata.get(name, "0")
    try:
        value = int(text)
    except ValueError:
        value = _INT32.stop
    # The least of all has no counterpart.
    if value not in _INT32 or -value not in _INT32:
        raise invalid_field(name, "must be a number of 32 bits")
    return value


def _refuse(request: oe.GenerateRequest) -> None:
    """What this service does not do, each by its name."""
    kv, guided = request.kv, request.guided
    for field, is_there in (
        ("media", bool(request.media)),
        ("lora_name", bool(request.lora_name)),
        ("kv.session", kv.HasField("session")),
        ("kv.bypass_prefix_cache", kv.bypass_prefix_cache),
        ("kv.cache_salt", bool(kv.cache_salt)),
        ("guided.structural_tag", guided.HasField("structural_tag")),
        ("guided.backend", bool(guided.backend)),
        ("response.prompt_logprob_start", bool(request.response.prompt_logprob_start)),
    ):
        if is_there:
            raise invalid_field(field, "is not supported; leave it unset")


def _set_sampling(params: oe.SamplingParams, generation: pb.GenerateRequest) -> None:
    for field in _SAMPLING:
        if params.HasField(field):
            setattr(generation.sampling, field, getattr(params, field))
    if params.HasField("top_k"):
        generation.sampling.top_k = max(params.top_k, 0)  # -1 is off too
    if params.HasField("num_sequences"):
        generation.n = params.num_sequences


def _set_stops(stopping: oe.StoppingOptions, stops: pb.StopConditions) -> None:
    if stopping.HasField("max_tokens"):
        stops.max_new_tokens = stopping.max_tokens
    if stopping.HasField("min_tokens"):
        stops.min_new_tokens = stopping.min_tokens
    for condition in stopping.conditions:
        if condition.WhichOneof("condition") == "stop_token_id":
            stops.stop_token_ids.append(condition.stop_token_id)
        else:
            stops.stop.append(condition.stop_text)
    stops.ignore_eos = stopping.ignore_eos
    stops.include_stop = stopping.include_stop_in_output


def _set_output(response: oe.ResponseOptions, output: pb.OutputOptions) -> None:
    """One number of candidates serves prompt and output."""
    for field, candidates in (
        ("prompt", response.prompt_candidates),
        ("output", response.output_candidates),
    ):
        kind = candidates.WhichOneof("selection")
        if kind in ("token_ids", "all"):
            raise invalid_field(
                f"response.{field}_candidates.{kind}", "is not supported; use top_n"
            )
        output.top_logprobs = max(output.top_logprobs, candidates.top_n)
    output.prompt_logprobs = response.return_prompt_logprobs or response.prompt_candidates.top_n > 0
    output.logprobs = response.return_output_logprobs or response.output_candidates.top_n > 0


def _set_constraint(guided: oe.GuidedDecoding, constraint: pb.Constraint) -> None:
    match guided.WhichOneof("guide"):
        case "json_schema":
            constraint.json_schema = guided.json_schema
        case "regex":
            constraint.regex = guided.regex
        case "ebnf_grammar":
            constraint.grammar = guided.ebnf_grammar
        case "choice":
            constraint.grammar = choice_grammar(guided.choice.choices)
        case "json_object":
            constraint.json_object = True
