"""What a request says of its tokens, through real ranks on the demo model, in fp32 on a CPU."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

import demo
from frontend.bounds import MAX_COMPILES
from switchyard.client import AsyncClient, Client
from switchyard.requests import Options
from switchyard.v1 import inference_pb2 as pb
from tests.server import Server
from tests.service.oracle import TIE

pytestmark = pytest.mark.processes

FOLDER = Path(demo.__path__[0]) / "checkpoint"
PROMPT = "Once upon a time, there was a little"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "likes": {"type": "array", "items": {"enum": ["cats", "dogs"]}, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ["--device", "cpu", "--dtype", "float32", "--block-size", "4"]
    with Server(tmp_path_factory.mktemp("server"), *flags) as running:
        yield running


@pytest.fixture(scope="module")
def oracle() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def ask(server: Server, *asked: Options, prompt: str = PROMPT) -> list[pb.CompleteResponse]:
    """The answers to one prompt under several options, all at once."""

    async def all_of_them() -> list[pb.CompleteResponse]:
        async with AsyncClient(server.address) as client:
            return await asyncio.gather(*(client.complete(prompt, **each) for each in asked))

    return asyncio.run(all_of_them())


def tokens(answer: pb.CompleteResponse, index: int = 0) -> list[int]:
    return list(answer.outputs[index].token_ids)


def eos_token_ids(server: Server) -> list[int]:
    with Client(server.address) as client:
        return list(client.model_info().eos_token_ids)


def token_ids(server: Server, text: str) -> list[int]:
    async def ids() -> list[int]:
        async with AsyncClient(server.address) as client:
            answer = await client.stub.Tokenize(pb.TokenizeRequest(text=text))
            return list(answer.token_ids)

    return asyncio.run(ids())


def prompt_ids(server: Server) -> list[int]:
    return token_ids(server, PROMPT)


@torch.inference_mode()
def logits_of(model: torch.nn.Module, ids: Sequence[int]) -> torch.Tensor:
    """[T, V], in fp32."""
    return model(torch.tensor([list(ids)])).logits[0]


@torch.inference_mode()
def penalised(
    model: torch.nn.Module,
    prompt: Sequence[int],
    drawn: Sequence[int],
    *,
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    """Assert that each drawn token is the greedy one under the penalties, or a tie."""
    processor = RepetitionPenaltyLogitsProcessor(repetition)
    for index, token in enumerate(drawn):
        so_far = [*prompt, *drawn[:index]]
        scores = logits_of(model, so_far)[-1:]
        if repetition != 1.0:
            scores = processor(torch.tensor([so_far]), scores)
        counts = torch.bincount(torch.tensor(drawn[:index], dtype=torch.long), minlength=1024)
        scores = scores[0] - presence * (counts > 0) - frequency * counts
        assert scores[token] >= scores.max() - TIE, f"token {index}"


@pytest.mark.parametrize(
    ("repetition", "presence", "frequency"),
    [(1.3, 0.0, 0.0), (0.5, 0.0, 0.0), (1.0, 1.5, 0.0), (1.0, 0.0, 0.75), (1.2, -0.5, 0.5)],
)
def test_greedy_tokens_keep_to_the_penalties(
    server: Server, oracle: torch.nn.Module, repetition: float, presence: float, frequency: float
) -> None:
    plain, answer = ask(
        server,
        Options(temperature=0, max_new_tokens=24, ignore_eos=True),
        Options(
            temperature=0,
            max_new_tokens=24,
            ignore_eos=True,
            repetition_penalty=repetition,
            presence_penalty=presence,
            frequency_penalty=frequency,
        ),
    )
    assert tokens(answer) != tokens(plain), "the penalties must matter for the test to"
    penalised(
        oracle,
        prompt_ids(server),
        tokens(answer),
        repetition=repetition,
        presence=presence,
        frequency=frequency,
    )


def test_log_probabilities_are_those_of_the_raw_distribution(
    server: Server, oracle: torch.nn.Module
) -> None:
    [answer] = ask(
        server,
        Options(
            temperature=0.7,
            top_k=20,
            seed=4,
            repetition_penalty=1.2,
            max_new_tokens=16,
            ignore_eos=True,
            logprobs=True,
            prompt_logprobs=True,
            top_logprobs=3,
        ),
    )
    prompt, output = prompt_ids(server), answer.outputs[0]
    drawn = list(output.token_ids)
    expected_TV = torch.log_softmax(logits_of(oracle, [*prompt, *drawn]), dim=-1)[:-1]
    values = [*answer.started.prompt_logprobs, *output.logprobs]
    tops = [*answer.started.prompt_top_logprobs, *output.top_logprobs]
    following = [*prompt[1:], *drawn]
    assert len(answer.started.prompt_logprobs) == len(prompt) - 1
    assert len(values) == len(tops) == len(following)
    for expected_V, token, value, top in zip(expected_TV, following, values, tops, strict=True):
        assert value == pytest.approx(float(expected_V[token]), abs=1e-3)
        best = expected_V.topk(3).values.tolist()
        assert list(top.logprobs) == pytest.approx(best, abs=1e-3)
        for each, logprob in zip(top.token_ids, top.logprobs, strict=True):
            assert logprob == pytest.approx(float(expected_V[each]), abs=1e-3)


def test_lists_of_tokens_are_kept_to(server: Server) -> None:
    common = Options(temperature=1.5, seed=1, max_new_tokens=24, ignore_eos=True)
    [plain] = ask(server, common)
    banned = sorted(set(tokens(plain)))
    without, only, biased = ask(
        server,
        Options(**common, bad_token_ids=banned),
        Options(**common, allowed_token_ids=[50, 60, 70]),
        Options(**common, logit_bias={99: 100.0}),
    )
    assert len(tokens(without)) == 24
    assert not set(tokens(without)) & set(banned)
    assert set(tokens(only)) <= {50, 60, 70}
    assert len(set(tokens(only))) > 1
    assert set(tokens(biased)) == {99}
    [ended] = ask(server, Options(temperature=0, allowed_token_ids=[50], max_new_tokens=24))
    assert set(tokens(ended)) <= {50, *eos_token_ids(server)}


def test_words_of_one_and_of_several_tokens_do_not_come(server: Server) -> None:
    """A greedy output has each word until it is banned; then it goes on without it, in the tokens
    that a tokenizer cuts it into."""
    words: list[str] = []
    banned: list[list[int]] = []
    for _ in range(4):
        [answer] = ask(server, Options(temperature=0, max_new_tokens=9, bad_words=words))
        text, drawn = answer.outputs[0].text, tokens(answer)
        for spelling in banned:
            places = range(len(drawn) - len(spelling) + 1)
            assert spelling not in [drawn[at : at + len(spelling)] for at in places], text
        words.append(" ".join(text.split()[:2]))
        banned += [token_ids(server, words[-1]), token_ids(server, f" {words[-1]}")]
    assert any(" " in word for word in words)
    assert len(set(words)) > 1


def test_samples_are_single_requests_with_an_index(server: Server) -> None:
    common = Options(temperature=1.2, seed=7, max_new_tokens=16, ignore_eos=True)
    four, one, again, two = ask(
        server, Options(**common, n=4), common, Options(**common, n=4), Options(**common, n=2)
    )
    assert [output.index for output in four.outputs] == [0, 1, 2, 3]
    drawn = [tokens(four, index) for index in range(4)]
    assert drawn[0] == tokens(one)
    assert drawn == [tokens(again, index) for index in range(4)]
    assert drawn[:2] == [tokens(two, index) for index in range(2)]
    assert len({tuple(each) for each in drawn}) == 4
    usage = four.finished.usage
    assert usage.completion_tokens == 4 * 16
    assert usage.prompt_tokens == one.finished.usage.prompt_tokens


def test_answers_keep_to_a_json_schema(server: Server) -> None:
    asked = [
        Options(temperature=1.0, seed=seed, max_new_tokens=200, json_schema=json.dumps(SCHEMA))
        for seed in range(20)
    ]
    groups = [asked[first : first + MAX_COMPILES] for first in range(0, len(asked), MAX_COMPILES)]
    answers = [answer for group in groups for answer in ask(server, *group)]
    for answer in answers:
        [output] = answer.outputs
        assert output.finish_reason in (pb.FINISH_REASON_EOS, pb.FINISH_REASON_STOP)
        said = json.loads(output.text)
        assert set(said) == {"name", "age", "likes"}
        assert isinstance(said["name"], str)
        assert len(said["name"]) <= 12
        assert 0 <= said["age"] <= 99
        assert len(said["likes"]) <= 3
        assert set(said["likes"]) <= {"cats", "dogs"}
    assert len({answer.outputs[0].text for answer in answers}) > 10


def test_other_languages_beside_other_requests(server: Server) -> None:
    grammar = 'start: pair ("," pair)+\npair: "(" /[0-9]/ " " WORD ")"\nWORD: "yes" | "no"'
    common = Options(temperature=1.0, max_new_tokens=120)
    matched, parsed, anything, stopped, samples, plain = ask(
        server,
        Options(**common, regex="(cat|dog), [a-z]{3} [0-9]{2}!", seed=1),
        Options(**common, grammar=grammar, seed=2),
        Options(**common, json_object=True, seed=3, stop=['"']),
        Options(**common, regex="[ab]{30}", seed=4, stop=["ab"]),
        Options(**common, regex="[a-z]{9}", seed=5, n=3),
        Options(temperature=0, max_new_tokens=24, ignore_eos=True),
    )
    assert re.fullmatch("(cat|dog), [a-z]{3} [0-9]{2}!", matched.outputs[0].text)
    assert matched.outputs[0].finish_reason == pb.FINISH_REASON_STOP
    assert re.match(r"\([0-9] (yes|no)\)(,\([0-9] (yes|no)\))+", parsed.outputs[0].text)
    assert anything.outputs[0].text.lstrip().startswith("{")
    assert stopped.outputs[0].stop_text in ("", "ab")
    assert re.fullmatch("b*a*|[ab]{30}", stopped.outputs[0].text)
    assert len({output.text for output in samples.outputs}) == 3
    assert all(re.fullmatch("[a-z]{9}", output.text) for output in samples.outputs)
    [alone] = ask(server, Options(temperature=0, max_new_tokens=24, ignore_eos=True))
    assert tokens(plain) == tokens(alone)
