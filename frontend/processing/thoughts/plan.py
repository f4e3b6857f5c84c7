"""What becomes of the thoughts of one request: its decoders and matchers.

Owns `switchyard.v1.ReasoningOptions`. Knows nothing of how tokens are followed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from frontend.errors import invalid_field
from frontend.processing.thoughts.decoder import ThoughtDecoder
from frontend.processing.thoughts.matcher import ThoughtMatcher
from frontend.processing.thoughts.progress import ThoughtProgress
from frontend.processing.thoughts.tags import BUDGETS, Place, ThoughtTags
from frontend.requests.output import Output
from frontend.requests.request import Matcher, TextDecoder
from switchyard.v1 import inference_pb2 as pb

DecoderOf = Callable[[int], TextDecoder]
"""Makes a decoder of an answer before which there are as many tokens."""


@dataclasses.dataclass(frozen=True, slots=True)
class ThoughtPlan:
    """How the outputs of one chat are followed.

    Attributes:
        start: where the prompt ends; not in the answer.
        has_language: the answer keeps to a language, or parts of it do.
        is_constrained: all of it does.
        vocab_size: of masks.
    """

    tags: ThoughtTags
    start: Place
    options: pb.ReasoningOptions
    has_language: bool
    is_constrained: bool
    vocab_size: int

    def decoder(self, answer: DecoderOf, thoughts: TextDecoder, output: Output) -> TextDecoder:
        """The decoder of one output.

        Args:
            answer: makes the answer's.
            thoughts: the thoughts' own.
            output: takes their text.
        """
        if self.options.in_text:
            return answer(0)
        tell = _drop if self.options.leave_out else output.add_reasoning
        return ThoughtDecoder(self._progress(), thoughts, answer, tell)

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
        return [
            ThoughtMatcher(
                self._progress(),
                each,
                budget=budget,
                num_bytes=(self.vocab_size + 31) // 32 * 4,
            )
            for each in inner
        ]

    def _progress(self) -> ThoughtProgress:
        return ThoughtProgress(self.tags, self.start, is_constrained=self.is_constrained)


def thought_plan(
    tags: ThoughtTags, message: pb.ChatRequest, prompt_ids: Sequence[int], vocab_size: int
) -> ThoughtPlan | None:
    """The plan of a chat; None where its whole output is its answer."""
    start = tags.place_after(prompt_ids, continues=message.continue_final_message)
    if start is Place.ANSWERING:
        return None
    has_language = message.request.HasField("constraint")
    return ThoughtPlan(
        tags=tags,
        start=start,
        options=message.reasoning,
        has_language=has_language,
        is_constrained=has_language and not message.request.constraint.trigger,
        vocab_size=vocab_size,
    )


def _drop(text: str) -> None:
    pass
