"""Converts requests of vLLM's own protocol to `switchyard.v1`.

Owns the meaning of their fields, of which zero is mostly "unset". The service checks ranges. Knows
nothing of streams.
"""

from __future__ import annotations

from frontend.errors import invalid_field
from frontend.processing.constraints.grammars import choice_grammar
from switchyard.v1 import inference_pb2 as pb
from switchyard.vllm import native_pb2 as vllm

TARGET_RANK = "x-data-parallel-rank"


def generate_request(
    request: vllm.GenerateRequest, *, streams: bool, has_tokenizer: bool = True
) -> pb.GenerateRequest:
    """The service's form of a request.

    Args:
        streams: the answer is a stream, which alone can hold several outputs.
        has_tokenizer: text can be made of tokens.

    Raises:
        RequestError: it asks for what is not done here.
    """
    _refuse(request, streams=streams)
    generation = pb.GenerateRequest(
        request_id=request.request_id,
        model=request.model,
        priority=request.priority,
        prompt=_prompt(request),
    )
    _set_sampling(request, generation)
    _set_stops(request.stopping, generation.stop_conditions)
    _set_output(request.response, generation.output)
    if not has_tokenizer or (
        request.response.HasField("output_text")
        and not request.response.output_text
        and not request.stopping.stop_strings
    ):
        generation.output.skip_detokenize = True
    _set_constraint(request.decoding, generation.constraint)
    return generation


def _refuse(request: vllm.GenerateRequest, *, streams: bool) -> None:
    """What this service does not do, each by its name."""
    kv = request.kv
    for field, is_there in (
        ("media", bool(request.media)),
        ("lora_name", bool(request.lora_name)),
        ("kv.bypass_prefix_cache", kv.bypass_prefix_cache),
        ("kv.cache_salt", bool(kv.cache_salt)),
        ("kv.kv_transfer_params", kv.HasField("kv_transfer_params")),
        ("kv.ec_transfer_params", kv.HasField("ec_transfer_params")),
        ("decoding.structural_tag", request.decoding.HasField("structural_tag")),
    ):
        if is_there:
            raise invalid_field(field, "is not supported; leave it unset")
    if request.sampling.num_sequences > 1 and not streams:
        raise invalid_field("sampling.num_sequences", "above 1 needs GenerateStream")


def _prompt(request: vllm.GenerateRequest) -> pb.Prompt:
    """The prompt, of which a truncation keeps the end."""
    kept = request.truncate_prompt_tokens
    if request.WhichOneof("prompt") == "text":
        if kept:
            raise invalid_field("truncate_prompt_tokens", "needs a prompt of token_ids")
        return pb.Prompt(text=request.text)
    return pb.Prompt(tokens=pb.TokenIds(ids=request.token_ids.ids[-kept:]))


def _set_sampling(request: vllm.GenerateRequest, generation: pb.GenerateRequest) -> None:
    """Without a temperature that protocol is greedy, whatever the model's default."""
    random, decoding, sampling = request.sampling, request.decoding, generation.sampling
    sampling.temperature = request.temperature
    for field in ("top_k", "top_p", "min_p"):
        if value := getattr(random, field):
            setattr(sampling, field, value)
    for field in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
        if value := getattr(decoding, field):
            setattr(sampling, field, value)
    if random.HasField("seed"):
        sampling.seed = random.seed % 2**64
    for token, bias in decoding.logit_bias.items():
        sampling.logit_bias[token] = bias
    sampling.allowed_token_ids.extend(decoding.allowed_token_ids)
    if random.num_sequences > 1:
        generation.n = random.num_sequences


def _set_stops(stopping: vllm.StoppingCriteria, stops: pb.StopConditions) -> None:
    if stopping.max_new_tokens:
        stops.max_new_tokens = stopping.max_new_tokens
    stops.min_new_tokens = stopping.min_new_tokens
    stops.stop.extend(stopping.stop_strings)
    stops.stop_token_ids.extend(stopping.stop_token_ids)
    stops.include_stop = stopping.include_stop_strings
    stops.ignore_eos = stopping.ignore_eos


def _set_output(response: vllm.ResponseOptions, output: pb.OutputOptions) -> None:
    """Candidates count where log-probabilities are asked for; one number serves both kinds."""
    output.prompt_logprobs, output.logprobs = response.prompt_logprobs, response.output_logprobs
    output.keep_special_tokens = (
        response.HasField("skip_special_tokens") and not response.skip_special_tokens
    )
    for kind, is_asked, candidates in (
        ("prompt", response.prompt_logprobs, response.prompt_candidates),
        ("output", response.output_logprobs, response.output_candidates),
    ):
        if not is_asked:
            continue
        if candidates.all or candidates.token_ids.ids:
            raise invalid_field(f"response.{kind}_candidates", "may select top_n only")
        output.top_logprobs = max(output.top_logprobs, candidates.top_n)


def _set_constraint(decoding: vllm.DecodingParameters, constraint: pb.Constraint) -> None:
    match decoding.WhichOneof("structured_output"):
        case "json":
            constraint.json_schema = decoding.json
        case "regex":
            constraint.regex = decoding.regex
        case "grammar":
            constraint.grammar = decoding.grammar
        case "choice":
            constraint.grammar = choice_grammar(decoding.choice.choices)
        case "json_object" if decoding.json_object:
            constraint.json_object = True
