"""What drawn tokens become: text, log-probabilities, the end of a request and its reason."""

from __future__ import annotations

import pytest

from frontend.engine.output_processor import take_token
from frontend.errors import Code
from frontend.processing.tokenizer import Tokenizer
from frontend.requests.output import FinishReason, TokenLogprobs
from frontend.requests.request import SamplingParams
from frontend.scheduler.sequence import Sequence
from frontend.scheduler.step import Drawn, StepLogprobs
from tests.frontend.builders import LIMITS, Driver, expected_output, failure, make_request, taken


def test_tokens_after_the_end_are_dropped() -> None:
    request = make_request(max_new_tokens=20)
    full = expected_output(request, LIMITS)
    driver = Driver(LIMITS, depth=4)
    request = make_request(max_new_tokens=20, eos={full[2]})
    driver.run(request)
    delta = taken(request)
    cut = full[: full.index(full[2]) + 1]
    assert (delta.token_ids, delta.finish_reason) == (cut, FinishReason.EOS)
    assert driver.outputs.generated_tokens == len(cut)
    assert len(driver.workers.steps) > len(cut), "some were drawn in vain"


def test_end_tokens_within_min_new_tokens_do_not_end_it() -> None:
    """Workers do not draw them; a token that comes nevertheless is one like any other."""
    request = make_request(max_new_tokens=9, min_new_tokens=2, eos={5})
    sequence = Sequence(request, 0, LIMITS.max_model_len)
    assert [take_token(sequence, 5, None, 1.0) for _ in range(3)] == [False, False, True]
    assert taken(request).finish_reason is FinishReason.EOS


def test_text_and_stop_strings(tokenizer: Tokenizer) -> None:
    """Tokens below 50 of the small tokenizer are specials and single characters."""
    plain = make_request(max_new_tokens=30, decoder=tokenizer.decoder((), False, False))
    driver = Driver(LIMITS)
    driver.run(plain)
    full = taken(plain)
    assert full.text == tokenizer.decode(full.token_ids)
    assert full.finish_reason is FinishReason.LENGTH
    stop = full.text[5:7]
    start = full.text.index(stop)
    for include in (False, True):
        decoder = tokenizer.decoder((stop,), include, False)
        request = make_request(max_new_tokens=30, decoder=decoder)
        driver.run(request)
        delta = taken(request)
        assert delta.text == full.text[: start + 2 * include]
        assert (delta.finish_reason, delta.stop_text) == (FinishReason.STOP, stop)
        assert delta.token_ids == full.token_ids[: len(delta.token_ids)]
        assert len(delta.token_ids) < 30


@pytest.mark.parametrize("include", [False, True])
def test_stop_token_counts_but_shows_only_when_asked(tokenizer: Tokenizer, include: bool) -> None:
    tokens = expected_output(make_request(max_new_tokens=8), LIMITS)
    stop_id = next(t for t in tokens if tokenizer.decode([t]))
    place = tokens.index(stop_id)
    request = make_request(
        max_new_tokens=8,
        stop_ids={stop_id},
        include_stop=include,
        decoder=tokenizer.decoder((), include, False),
    )
    Driver(LIMITS).run(request)
    delta = taken(request)
    assert delta.token_ids == tokens[: place + 1]
    assert delta.text == tokenizer.decode(tokens[: place + include])
    assert (delta.finish_reason, delta.stop_token_id) == (FinishReason.STOP, stop_id)


def test_a_numerical_fault_ends_one_request_with_its_id() -> None:
    driver = Driver(LIMITS, depth=1)
    bad, good = make_request("bad"), make_request("good", [7])
    driver.scheduler.submit(bad)
    driver.scheduler.submit(good)
    step = driver.schedule()
    assert step is not None
    driver.in_flight[0][1][0].tokens[0] = -1
    driver.run()
    error = failure(bad)
    assert (error.code, error.reason) == (Code.INTERNAL, "NUMERICAL_FAULT")
    assert "bad" in error.message
    assert taken(good).token_ids == expected_output(good, LIMITS)


def test_an_aborted_request_keeps_the_text_that_was_held_back(tokenizer: Tokenizer) -> None:
    """A stop string's beginning is held back until it is known not to become one."""
    plain = make_request(max_new_tokens=8, decoder=tokenizer.decoder((), False, False))
    driver = Driver(LIMITS, depth=1)
    driver.run(plain)
    text = taken(plain).text
    stop = text[2:6] + "\0"  # never complete
    request = make_request(max_new_tokens=30, decoder=tokenizer.decoder((stop,), False, False))
    driver.scheduler.submit(request)
    while request.num_generated < 8:
        driver.turn()
    assert driver.abort("r")
    delta = taken(request)
    assert (delta.text, delta.finish_reason) == (text, FinishReason.ABORTED)
    assert not driver.abort("r")


def test_log_probabilities_go_to_the_requests_that_want_them() -> None:
    """The columns hold those of a request too that ended meanwhile; they are skipped."""
    driver = Driver(LIMITS, depth=1)
    ended, without, wanting = (make_request(name) for name in ("ended", "without", "wanting"))
    ended.sampling = SamplingParams(num_logprobs=3)
    wanting.sampling = SamplingParams(num_logprobs=2)
    for request in (ended, without, wanting):
        driver.scheduler.submit(request)
    step = driver.schedule()
    assert step is not None
    assert step.batches[0].num_draws == 3
    tokens = driver.in_flight[0][1][0].tokens
    columns = StepLogprobs(
        logprobs=[-1.0, -2.0], top_ids=[4, 5, 6], top_logprobs=[-0.25, -0.5, -0.75]
    )
    driver.in_flight[0] = (step, [Drawn(tokens=tokens, logprobs=columns)])
    assert driver.abort("ended")
    driver.complete()
    assert taken(without).logprobs == []
    assert taken(wanting).logprobs == [TokenLogprobs(-2.0, [6], [-0.75])]
    delta = taken(ended)
    assert (delta.token_ids, delta.logprobs) == ([], [])


def test_a_prompt_s_log_probabilities_arrive_chunk_by_chunk() -> None:
    driver = Driver(LIMITS, depth=1)
    request = make_request(prompt=list(range(20)), max_new_tokens=2)
    request.sampling = SamplingParams(num_logprobs=1, prompt_logprobs=True)
    driver.scheduler.submit(request)
    # 16 tokens a step; each reports the probability of the token after it, the last one draws.
    for values, drawn in (([-float(n) for n in range(1, 17)], []), ([-17.0, -18.0, -19.0], [-9.0])):
        step = driver.schedule()
        assert step is not None
        tokens = driver.in_flight[0][1][0].tokens
        columns = Drawn(
            tokens=tokens,
            logprobs=StepLogprobs(logprobs=drawn),
            prompt_logprobs=StepLogprobs(logprobs=values),
        )
        driver.in_flight[0] = (step, [columns])
        driver.complete()
    assert [each.logprob for each in request.prompt_logprobs] == [-float(n) for n in range(1, 20)]
    assert [each.logprob for each in taken(request).logprobs] == [-9.0]
