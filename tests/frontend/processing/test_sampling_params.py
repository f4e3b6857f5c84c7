"""Sampling and output options of the API: ranges, bounds, defaults, and what the engine gets."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from frontend.errors import Code, RequestError
from frontend.model_folder import SamplingDefaults
from frontend.processing.sampling_params import (
    check_prompt_logprobs,
    sampling_params,
    stop_conditions,
)
from frontend.requests.request import SamplingParams
from switchyard.v1 import inference_pb2 as pb

VOCAB_SIZE = 100
EOS = (7, 8)
Change = Callable[[pb.GenerateRequest], object]


def params(asked: pb.GenerateRequest, defaults: SamplingDefaults | None = None) -> SamplingParams:
    return sampling_params(
        asked,
        defaults or SamplingDefaults(),
        vocab_size=VOCAB_SIZE,
        eos_token_ids=EOS,
    )


def of(**sampling: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(sampling=sampling)


BAD: list[tuple[str, pb.GenerateRequest]] = [
    ("repetition_penalty", of(repetition_penalty=0.0)),
    ("repetition_penalty", of(repetition_penalty=-1.0)),
    ("repetition_penalty", of(repetition_penalty=1e4)),
    ("repetition_penalty", of(repetition_penalty=math.nan)),
    ("repetition_penalty", of(repetition_penalty=math.inf)),
    ("presence_penalty", of(presence_penalty=2.1)),
    ("presence_penalty", of(presence_penalty=math.nan)),
    ("frequency_penalty", of(frequency_penalty=-2.1)),
    ("frequency_penalty", of(frequency_penalty=-math.inf)),
    ("logit_bias[100]", of(logit_bias={100: 1.0})),
    ("logit_bias[3]", of(logit_bias={3: 100.5})),
    ("logit_bias[3]", of(logit_bias={3: math.nan})),
    ("logit_bias", of(logit_bias=dict.fromkeys(range(1025), 1.0))),
    ("allowed_token_ids[1]", of(allowed_token_ids=[1, 100])),
    ("allowed_token_ids", of(allowed_token_ids=[1] * 4097)),
    ("bad_token_ids[0]", of(bad_token_ids=[2**32 - 1])),
    ("bad_token_ids", of(bad_token_ids=[1] * 4097)),
    ("bad_token_ids", of(bad_token_ids=range(100))),
    ("allowed_token_ids", of(allowed_token_ids=[1, 2], bad_token_ids=[1, 2, *EOS])),
    (
        "allowed_token_ids",
        pb.GenerateRequest(
            sampling={"allowed_token_ids": [1]},
            stop_conditions={"min_new_tokens": 2, "stop_token_ids": [1]},
        ),
    ),
    (
        "bad_token_ids",
        pb.GenerateRequest(
            sampling={"bad_token_ids": [t for t in range(100) if t not in EOS]},
            stop_conditions={"min_new_tokens": 1},
        ),
    ),
]


@pytest.mark.parametrize(("field", "asked"), BAD)
def test_a_bad_field_is_named(field: str, asked: pb.GenerateRequest) -> None:
    with pytest.raises(RequestError) as caught:
        params(asked)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.field == f"sampling.{field}"
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("output", [{"top_logprobs": 1}, {"top_logprobs": 21, "logprobs": True}])
def test_alternatives_need_log_probabilities(output: dict[str, object]) -> None:
    with pytest.raises(RequestError) as caught:
        params(pb.GenerateRequest(output=output))
    assert caught.value.field == "output.top_logprobs"


def test_every_field_reaches_the_engine() -> None:
    asked = of(
        temperature=0.5, top_p=0.25, top_k=9, min_p=0.125, seed=3, repetition_penalty=1.5,
        presence_penalty=-2.0, frequency_penalty=2.0, logit_bias={9: 100.0, 2: -100.0},
        allowed_token_ids=[30, 5, 30], bad_token_ids=[6, 2],
    )  # fmt: skip
    asked.output.logprobs = asked.output.prompt_logprobs = True
    asked.output.top_logprobs = 20
    assert params(asked) == SamplingParams(
        temperature=0.5, top_p=0.25, top_k=9, min_p=0.125, seed=3, repetition_penalty=1.5,
        presence_penalty=-2.0, frequency_penalty=2.0, logit_bias=((2, -100.0), (9, 100.0)),
        allowed_token_ids=(5, 7, 8, 30), banned_token_ids=(2, 6), num_logprobs=21,
        prompt_logprobs=True,
    )  # fmt: skip


def test_ignored_end_tokens_are_not_allowed() -> None:
    asked = of(allowed_token_ids=[5])
    assert params(asked).allowed_token_ids == (5, 7, 8)
    asked.stop_conditions.ignore_eos = True
    assert params(asked).allowed_token_ids == (5,)


def test_log_probabilities_are_counted_with_the_drawn_token() -> None:
    for output, count in (
        ({}, 0),
        ({"logprobs": True}, 1),
        ({"prompt_logprobs": True}, 1),
        ({"prompt_logprobs": True, "top_logprobs": 3}, 4),
    ):
        assert params(pb.GenerateRequest(output=output)).num_logprobs == count


def test_the_models_repetition_penalty_is_a_default() -> None:
    defaults = SamplingDefaults(repetition_penalty=1.25)
    assert params(of(), defaults).repetition_penalty == 1.25
    assert params(of(repetition_penalty=1.0), defaults).repetition_penalty == 1.0


@pytest.mark.parametrize("num_top", [0, 1, 20])
def test_the_longest_prompts_log_probabilities_fit_a_message(num_top: int) -> None:
    asked = pb.OutputOptions(prompt_logprobs=True, top_logprobs=num_top)
    with pytest.raises(RequestError) as caught:
        check_prompt_logprobs(asked, 10**9)
    most = int(caught.value.message.partition("at most ")[2].split()[0])
    check_prompt_logprobs(asked, most)
    # Measured on a few of them, with the longest ids there are.
    message = pb.GenerateStarted(prompt_logprobs=[-1.0] * 1000)
    for _ in range(1000 if num_top else 0):
        message.prompt_top_logprobs.add(token_ids=[2**32 - 1] * num_top, logprobs=[-1.0] * num_top)
    assert message.ByteSize() * most / 1000 <= 7.5 * 2**20
    check_prompt_logprobs(pb.OutputOptions(), 10**9)


@pytest.mark.parametrize(("asked", "given"), [(5, 5), (90, 90), (91, 90), (2**32 - 1, 90)])
def test_a_limit_up_to_the_context_ends_there(asked: int, given: int) -> None:
    for cache_tokens, room in ((1000, given), (49, min(given, 40))):
        stops = stop_conditions(
            pb.StopConditions(max_new_tokens=asked, up_to_context=True),
            prompt_tokens=10,
            max_context=100,
            cache_tokens=cache_tokens,
            eos_token_ids=frozenset(),
        )
        assert stops.max_new_tokens == room
