"""Converts `vllm.grpc.engine` requests, as routers send them, to `switchyard.v1`.

Owns the meaning of their fields: plain numbers, of which zero is mostly "unset". The service checks
ranges. Knows nothing of streams.
"""

from __future__ import annotations

from smg_grpc_proto.generated import vllm_engine_pb2 as vllm

from frontend.errors import invalid_field
from frontend.processing.constraints.grammars import choice_grammar
from switchyard.v1 import inference_pb2 as pb

# Numbers that are unset when they are 0.
_UNSET_WHEN_ZERO = (
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
)
# Fields for work that this service does not do.
_REFUSED = (
    "kv_transfer_params",
    "kv_transfer_params_json",
    "mm_inputs",
    "media_refs",
)


def generate_request(request: vllm.GenerateRequest) -> pb.GenerateRequest:
    """The service's form of a router's request.

    Raises:
        RequestError: it has images, another engine's KV cache, or an unsupported constraint.
    """
    for field in _REFUSED:
        if request.HasField(field):
            raise invalid_field(field, "is not supported; leave it unset")
    params = request.sampling_params
    generation = pb.GenerateRequest(request_id=request.request_id, prompt=_prompt(request))
    _set_sampling(params, generation.sampling)
    _set_stops(params, generation.stop_conditions)
    _set_output(params, generation.output)
    _set_constraint(params, generation.constraint)
    if params.n > 1:
        generation.n = params.n
    return generation


def _prompt(request: vllm.GenerateRequest) -> pb.Prompt:
    if request.WhichOneof("input") == "text":
        return pb.Prompt(text=request.text)
    ids = request.tokenized.input_ids
    params = request.sampling_params
    if params.HasField("truncate_prompt_tokens"):
        if params.truncate_prompt_tokens < 1:
            raise invalid_field("sampling_params.truncate_prompt_tokens", "must be at least 1")
        ids = ids[-params.truncate_prompt_tokens :]
    return pb.Prompt(tokens=pb.TokenIds(ids=ids))


def _set_sampling(params: vllm.SamplingParams, sampling: pb.SamplingParams) -> None:
    if params.HasField("temperature"):
        sampling.temperature = params.temperature
    for field in _UNSET_WHEN_ZERO:
        value = getattr(params, field)
        if value:
            setattr(sampling, field, value)
    if params.HasField("seed"):
        sampling.seed = params.seed % 2**64
    for token, bias in params.logit_bias.items():
        if token < 0:
            raise invalid_field("sampling_params.logit_bias", f"has a key {token} below 0")
        sampling.logit_bias[token] = bias


def _set_stops(params: vllm.SamplingParams, stops: pb.StopConditions) -> None:
    if params.HasField("max_tokens"):
        stops.max_new_tokens = params.max_tokens
    stops.min_new_tokens = params.min_tokens
    stops.stop.extend(params.stop)
    stops.stop_token_ids.extend(params.stop_token_ids)
    stops.ignore_eos = params.ignore_eos
    stops.include_stop = params.include_stop_str_in_output


def _set_output(params: vllm.SamplingParams, output: pb.OutputOptions) -> None:
    """Routers read token ids; text is only made to find stop strings in."""
    output.skip_detokenize = not params.stop
    output.keep_special_tokens = not params.skip_special_tokens
    for field in ("logprobs", "prompt_logprobs"):
        if not params.HasField(field):
            continue
        count = getattr(params, field)
        if count < 0:
            raise invalid_field(f"sampling_params.{field}", f"is {count}, must be at least 0")
        setattr(output, field, True)
        output.top_logprobs = max(output.top_logprobs, count)


def _set_constraint(params: vllm.SamplingParams, constraint: pb.Constraint) -> None:
    match params.WhichOneof("constraint"):
        case "json_schema":
            constraint.json_schema = params.json_schema
        case "regex":
            constraint.regex = params.regex
        case "grammar":
            constraint.grammar = params.grammar
        case "json_object":
            constraint.json_object = params.json_object
        case "choice":
            constraint.grammar = choice_grammar(params.choice.choices)
        case "structural_tag":
            raise invalid_field("sampling_params.structural_tag", "is not supported")
