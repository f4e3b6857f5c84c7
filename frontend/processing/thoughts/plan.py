"""What becomes of the thoughts of one request: its decoders and matchers.

Owns `switchyard.v1.ReasoningOptions`. Knows nothing of how tokens are followed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from frontend.errors import invalid_field
from frontend.processing.thoughts.decoder import ThoughtDecoder
from frontend.processing.thoughts.envelope import Envelope
from frontend.processing.thoughts.matcher import ThoughtMatcher
from frontend.processing.thoughts.message_matcher import MessageMatcher
from frontend.processing.thoughts.messages import MessageProgress
from frontend.processing.thoughts.progress import Progress, ThoughtProgress
from frontend.processing.thoughts.tags import BUDGETS, Place, ThoughtForm
from frontend.requests.output import Output
from frontend.requests.request import Matcher, TextDecoder
from switchyard.v1 import inference_pb2 as pb

DecoderOf = Callable[[int], TextDecoder]
"""Makes a decoder of an answer before which there are as many tokens."""
MatcherOf = Callable[[Matcher | None, int | None, int], Matcher]
"""Makes a matcher around an answer's, of a budget and of masks of as many bytes."""


@dataclasses.dataclass(frozen=True, slots=True)
class ThoughtPlan:
    """How the outputs of one chat are followed.

    Attributes:
        new_progress: makes what follows one output, from where the prompt ends.
        matcher_of: makes what holds one output.
        has_language: the answer keeps to a language, or parts of it do.
        vocab_size: of masks.
    """

    new_progress: Callable[[], Progress]
    matcher_of: MatcherOf
    options: pb.ReasoningOptions
    has_language: bool
    vocab_size: int

    def decoder(
        self, answer: DecoderOf, thoughts: Callable[[], TextDecoder], output: Output
    ) -> TextDecoder:
        """The decoder of one output.

        Args:
            answer: makes the answer's.
            thoughts: makes the thoughts'.
            output: takes their text.
        """
        if self.options.in_text:
            return answer(0)
        tell = _drop if self.options.leave_out else output.add_reasoning
        return ThoughtDecoder(self.new_progress(), thoughts, answer, tell)

    def matchers(self, inner: Sequence[Matcher | None]) -> Sequence[Matcher | None]:
        """What the outputs keep to, given what their answers keep to.

        Raises:
            RequestError: INVALID_ARGUMENT; options contradict each other.
        """
        budget = BUDGETS[self.options.effort]
        if self.options.HasField("max_tokens"):
            budget = self.options.max_tokens
        has_budget = budget is not None
        if self.options.in_text and has_budget and any(inner):
            raise invalid_field(
                "reasoning.max_tokens",
                "cannot be set beside in_text and a constraint of the whole text; leave one out",
                mentions={"in_text": "reasoning.in_text", "constraint": "constraint"},
            )
        has_words = any(inner) and not self.has_language
        if has_budget and has_words:
            raise invalid_field(
                "reasoning.max_tokens",
                "cannot be set beside bad_words of several tokens; leave one out",
                mentions={"bad_words": "sampling.bad_words"},
            )
        keeps_to_answer = self.has_language and not self.options.in_text
        if not has_budget and not keeps_to_answer:
            return inner
        num_bytes = (self.vocab_size + 31) // 32 * 4
        return [self.matcher_of(each, budget, num_bytes) for each in inner]


def thought_plan(
    form: ThoughtForm, message: pb.ChatRequest, prompt_ids: Sequence[int], vocab_size: int
) -> ThoughtPlan | None:
    """The plan of a chat; None where its whole output is its answer.

    Raises:
        RequestError: INVALID_ARGUMENT; an option that the model's form of thoughts has not.
    """
    has_language = message.request.HasField("constraint")
    is_constrained = has_language and not message.request.constraint.trigger

    def plan(new_progress: Callable[[], Progress], matcher_of: MatcherOf) -> ThoughtPlan:
        return ThoughtPlan(new_progress, matcher_of, message.reasoning, has_language, vocab_size)

    if isinstance(form, Envelope):
        if message.reasoning.in_text:
            raise invalid_field(
                "reasoning.in_text",
                "cannot be set for this model, whose thoughts are messages of their own; leave it "
                "out",
            )
        opened = form.opened(prompt_ids)
        return plan(
            lambda: MessageProgress(form, opened),
            lambda inner, budget, num_bytes: MessageMatcher(
                MessageProgress(form, opened),
                inner,
                is_whole=is_constrained,
                budget=budget,
                num_bytes=num_bytes,
            ),
        )
    start = form.place_after(prompt_ids, continues=message.continue_final_message)
    if start is Place.ANSWERING:
        return None

    def followed() -> ThoughtProgress:
        return ThoughtProgress(form, start, is_constrained=is_constrained)

    return plan(
        followed,
        lambda inner, budget, num_bytes: ThoughtMatcher(
            followed(), inner, budget=budget, num_bytes=num_bytes
        ),
    )


def _drop(text: str) -> None:
    pass
