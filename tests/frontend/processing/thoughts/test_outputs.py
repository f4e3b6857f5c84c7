"""Thoughts and answers of a model that says what it is told: every way to open them, with budgets,
languages, stops and samples, cut at every length."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from frontend.errors import RequestError
from frontend.processing.tokenizer import Tokenizer
from frontend.service import responses
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.played_service import played_service
from tests.frontend.processing.chat import templates

TEMPLATE = (
    templates.CHATML
    + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% elif opens %}<think>\n{% endif %}"
)
TOKENIZER = templates.tokenizer_of(TEMPLATE)
TAGS = TOKENIZER.thought_tags
assert TAGS is not None
[END] = TOKENIZER.encode("<|im_end|>")
[GAP] = TOKENIZER.encode("\n")
THOUGHTS = TOKENIZER.encode("\nstop? <tool_call> no\n")
ANSWER = TOKENIZER.encode("yes, stop here")
OPENS = {"by the model": "{}", "by the template": '{"opens": true}'}


@dataclasses.dataclass(frozen=True)
class Model:
    """Says thoughts, and behind them an answer and the end.

    Attributes:
        begun: the prompt has the first tag.
        thinks: it has thoughts at all.
    """

    begun: bool
    thinks: bool = True

    def __call__(self, output: list[int]) -> int:
        answer = [GAP, *ANSWER, END] if self.thinks else [*ANSWER, END]
        if self.thinks and TAGS.end_id not in output:
            return [*([] if self.begun else [TAGS.begin_id]), *THOUGHTS, TAGS.end_id][len(output)]
        place = len(output) - (output.index(TAGS.end_id) + 1 if self.thinks else 0)
        return answer[place] if place < len(answer) else END


def expected(model: Model, budget: int | None, answer: list[int]) -> tuple[list[int], int]:
    """All tokens of an output, and how many of them are thoughts and tags."""
    thoughts = [] if model.begun else [TAGS.begin_id]
    thoughts += [*THOUGHTS[:budget], TAGS.end_id]
    return [*thoughts, GAP, *answer], len(thoughts)


async def told(service: Service, kwargs: str, **fields: Any) -> pb.CompleteResponse:
    reasoning = fields.pop("reasoning", {})
    request = pb.GenerateRequest(sampling={"temperature": 0.0}, **fields)
    chat = pb.ChatRequest(
        messages=[{"role": pb.ROLE_USER, "content": "hi"}],
        request=request,
        template_kwargs_json=kwargs,
        reasoning=reasoning,
    )
    return await responses.gathered(service.chat(chat))


@pytest.mark.parametrize("budget", [None, 0, 1, 3, 99])
@pytest.mark.parametrize("opened", OPENS)
async def test_every_cut(opened: str, budget: int | None) -> None:
    model = Model(begun=opened == "by the template")
    tokens, num_thoughts = expected(model, budget, [*ANSWER, END])
    reasoning = {} if budget is None else {"max_tokens": budget}
    async with played_service(TOKENIZER, model) as (service, _):
        for cut in range(1, len(tokens) + 1):
            answer = await told(
                service, OPENS[opened], reasoning=reasoning, stop_conditions={"max_new_tokens": cut}
            )
            [output] = answer.outputs
            said = tokens[:cut]
            assert list(output.token_ids) == said
            thoughts = [each for each in said[:num_thoughts] if each in THOUGHTS]
            assert output.reasoning == TOKENIZER.decode(thoughts).strip("\n")
            assert output.text == TOKENIZER.decode(said[num_thoughts + 1 :])
            assert answer.finished.usage.reasoning_tokens == min(cut, num_thoughts)
            ends = cut == len(tokens)
            assert output.finish_reason == (
                pb.FINISH_REASON_EOS if ends else pb.FINISH_REASON_LENGTH
            )


LANGUAGES = {
    "regex": ({"regex": "(yes|no), [a-z ]+ here"}, "yes, stop here"),
    "choice": ({"grammar": 'start: "no" | "yes, stop"'}, "yes, stop"),
    "schema": ({"json_schema": '{"enum": ["a", 7]}'}, None),
}


@pytest.mark.parametrize("budget", [None, 0, 2])
@pytest.mark.parametrize("opened", OPENS)
@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_language_begins_behind_the_thoughts(
    language: str, opened: str, budget: int | None
) -> None:
    model = Model(begun=opened == "by the template")
    constraint, text = LANGUAGES[language]
    reasoning = {} if budget is None else {"max_tokens": budget}
    async with played_service(TOKENIZER, model) as (service, engine):
        answer = await told(service, OPENS[opened], reasoning=reasoning, constraint=constraint, n=2)
        workers = engine._group.workers
        assert [output.index for output in answer.outputs] == [0, 1]
        for output in answer.outputs:
            num_tags = 2 - model.begun
            spent = THOUGHTS if budget is None else THOUGHTS[:budget]
            assert output.reasoning == TOKENIZER.decode(spent).strip("\n")
            assert output.text in ([text] if text else ['"a"', "7"])
            own = list(output.token_ids)[num_tags + len(spent) :]
            assert own[0] == GAP, "one line end is none of the language"
        assert answer.finished.usage.reasoning_tokens == 2 * (num_tags + len(spent))
        # With no budget no draw waited for the end of the thoughts.
        assert workers.num_triggered == (2 if budget is None else 0)


async def test_a_language_without_thoughts() -> None:
    """The model may think, and does not; the template has closed the thoughts."""
    model = Model(begun=False, thinks=False)
    for kwargs in ("{}", '{"enable_thinking": false}'):
        async with played_service(TOKENIZER, model) as (service, _):
            answer = await told(service, kwargs, constraint={"regex": "yes, [a-z ]+here"})
        assert (answer.outputs[0].reasoning, answer.outputs[0].text) == ("", "yes, stop here")
        assert answer.finished.usage.reasoning_tokens == 0


@pytest.mark.parametrize("include_stop", [False, True])
async def test_stops_are_looked_for_in_the_answer(include_stop: bool) -> None:
    async with played_service(TOKENIZER, Model(begun=True)) as (service, _):
        stops = {"stop": ["stop", "\n"], "include_stop": include_stop}
        answer = await told(service, '{"opens": true}', stop_conditions=stops, n=2)
    for output in answer.outputs:
        assert output.reasoning == "stop? <tool_call> no"
        assert output.text == "yes, stop"[: None if include_stop else -4]
        assert (output.finish_reason, output.stop_text) == (pb.FINISH_REASON_STOP, "stop")


async def test_thoughts_are_left_out_or_text() -> None:
    async with played_service(TOKENIZER, Model(begun=False)) as (service, _):
        whole = await told(service, "{}")
        silent = await told(service, "{}", reasoning={"leave_out": True})
        text = await told(service, "{}", reasoning={"in_text": True, "max_tokens": 4})
    assert silent.outputs[0].text == whole.outputs[0].text == "yes, stop here"
    assert (silent.outputs[0].reasoning, whole.outputs[0].reasoning) == ("", "stop? <tool_call> no")
    usages = [each.finished.usage.reasoning_tokens for each in (silent, whole)]
    assert usages == [len(THOUGHTS) + 2] * 2
    thoughts = TOKENIZER.decode(THOUGHTS[:4])
    assert text.outputs[0].text == f"<think>{thoughts}</think>\nyes, stop here"
    assert text.outputs[0].reasoning == ""


async def test_deltas_have_thoughts_before_text() -> None:
    chat = pb.ChatRequest(messages=[{"role": pb.ROLE_USER, "content": "hi"}])
    kinds = []
    async with played_service(TOKENIZER, Model(begun=False)) as (service, _):
        async for event in service.chat(chat):
            kinds += ["reasoning"] * bool(event.delta.reasoning) + ["text"] * bool(event.delta.text)
    assert [kind for kind, _ in itertools.groupby(kinds)] == ["reasoning", "text"]
    assert len(kinds) > 4


async def test_a_prompt_of_tokens_has_no_thoughts() -> None:
    prompt = {"tokens": {"ids": TOKENIZER.encode("<|im_start|>assistant\n<think>\n")}}
    async with played_service(TOKENIZER, Model(begun=True)) as (service, _):
        answer = await service.complete(pb.CompleteRequest(request={"prompt": prompt}))
    assert answer.outputs[0].text == TOKENIZER.decode([*THOUGHTS, TAGS.end_id, GAP, *ANSWER])


async def test_a_turn_that_goes_on() -> None:
    """In its thoughts where they have not ended, else in its answer."""
    turns = {"<think>\nstop": "stop? <tool_call> no", "stop": ""}
    for begun, reasoning in turns.items():
        chat = pb.ChatRequest(
            messages=[
                {"role": pb.ROLE_USER, "content": "hi"},
                {"role": pb.ROLE_ASSISTANT, "content": begun},
            ],
            continue_final_message=True,
        )
        model = Model(begun=True, thinks=bool(reasoning))
        async with played_service(TOKENIZER, model) as (service, _):
            answer = await responses.gathered(service.chat(chat))
        assert answer.outputs[0].reasoning == reasoning
        assert answer.outputs[0].text == "yes, stop here"


async def test_tokens_alone() -> None:
    async with played_service(TOKENIZER, Model(begun=True)) as (service, _):
        answer = await told(
            service,
            '{"opens": true}',
            output={"skip_detokenize": True},
            reasoning={"max_tokens": 2},
        )
    tokens, _ = expected(Model(begun=True), 2, [*ANSWER, END])
    assert list(answer.outputs[0].token_ids) == tokens


def test_tags_are_found_by_template_and_tokenizer() -> None:
    assert (TAGS.begin, TAGS.end) == ("<think>", "</think>")
    assert templates.tokenizer_of(templates.CHATML).thought_tags is None
    wrapped = TOKENIZER._wrapped
    assert Tokenizer(wrapped, "none").thought_tags is None
    assert Tokenizer(wrapped, "qwen3").thought_tags == TAGS
    with pytest.raises(ValueError, match=r"--reasoning-parser mistral: \[THINK\] and \[/THINK\]"):
        Tokenizer(wrapped, "mistral")


async def test_an_effort_is_told_to_the_template_and_bounds_the_thoughts() -> None:
    template = (
        TEMPLATE
        + "{% if reasoning_effort == 'high' %}{{ raise_exception('no such effort') }}{% endif %}"
    )
    tokenizer = templates.tokenizer_of(template)
    model = Model(begun=False)
    async with played_service(tokenizer, model) as (service, _):
        none = await told(service, '{"enable_thinking": true}', reasoning={"effort": "none"})
        closed = Model(begun=False, thinks=False)
        high = await told(service, "{}", reasoning={"effort": "high"})
        with pytest.raises(RequestError, match="no such effort"):
            await told(service, '{"reasoning_effort": "high"}')
        with pytest.raises(RequestError, match=r"reasoning.effort is 'huge', must be one of none,"):
            await told(service, "{}", reasoning={"effort": "huge"})
    assert (none.outputs[0].reasoning, none.outputs[0].text) == ("", "yes, stop here")
    assert none.finished.usage.reasoning_tokens == 2
    assert high.outputs[0].reasoning == "stop? <tool_call> no"
    async with played_service(tokenizer, closed) as (service, _):
        none = await told(service, "{}", reasoning={"effort": "none"})
    assert none.finished.usage.reasoning_tokens == 0, "the template closed the thoughts"
