"""What drawn tokens become: text, log-probabilities, the end of a request and its reason."""

from __future__ import annotations

import pytest

from frontend.engine.output_processor import take_token
from frontend.errors import Code
from frontend.processing.tokenizer import Tokenizer
from frontend.requests.output import FinishReason
from frontend.scheduler.sequence import Sequence
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
