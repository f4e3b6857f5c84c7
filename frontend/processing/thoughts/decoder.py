"""Tells the text of thoughts from that of the answer, as tokens come.

Stop strings are looked for in the answer alone. Knows nothing of what the thoughts' text is for.
"""

from __future__ import annotations

from collections.abc import Callable

from frontend.processing.thoughts.progress import Part, Progress
from frontend.processing.thoughts.tags import Place
from frontend.requests.request import TextDecoder


class ThoughtDecoder:
    """A decoder whose text is the answer's; that of the thoughts goes elsewhere.

    Left out are tags, line ends at both ends of the thoughts, and those that are tokens of their
    own between them and the answer. Where either comes in several messages, a line end stands
    between two.

    Args:
        progress: of this output, before its first token.
        thoughts: makes decoders of the thoughts.
        answer: makes the answer's decoders, for as many tokens before it.
        tell: takes new text of the thoughts.
    """

    __slots__ = (
        "_answer", "_answer_of", "_blanks", "_gap", "_has_said", "_last", "_num_pushed",
        "_progress", "_tell", "_thoughts", "_thoughts_of",
    )  # fmt: skip

    def __init__(
        self,
        progress: Progress,
        thoughts: Callable[[], TextDecoder],
        answer: Callable[[int], TextDecoder],
        tell: Callable[[str], None],
    ) -> None:
        self._progress = progress
        self._thoughts_of = thoughts
        self._thoughts = thoughts()
        self._answer_of = answer
        self._answer: TextDecoder | None = None
        self._last: TextDecoder | None = None  # the answer's, to the output's end
        self._tell = tell
        self._blanks: str | None = None  # line ends that may be the thoughts' last; None: none told
        self._gap = ""  # before the answer's next text
        self._has_said = False
        self._num_pushed = 0

    @property
    def matched(self) -> str | None:
        """The stop string that ended the answer."""
        return None if self._answer is None else self._answer.matched

    @property
    def num_thought_tokens(self) -> int:
        """Tokens of the thoughts and their tags."""
        return self._progress.num_tokens + self._progress.num_tags

    def push(self, token_id: int) -> str:
        """Text of the answer that is certain after this token."""
        if self._last is not None:  # as for most tokens
            return self._last.push(token_id)
        progress = self._progress
        before = progress.place
        part = progress.push(token_id)
        self._num_pushed += 1
        if part is Part.ANSWER:
            text = self._said(self._answer_text(token_id))
            self._last = self._answer if progress.ends_with_answer else None
            return text
        if part is Part.THOUGHT:
            self._tell_thought(self._thoughts.push(token_id))
        elif part is Part.TAG:
            return self._pass_tag(before)
        return ""

    def flush(self) -> str:
        """Text of the answer that was held back; thoughts that did not end are told."""
        place = self._progress.place
        if place is Place.THINKING:
            self._tell_thought(self._thoughts.flush())
            return ""
        if place is Place.HEADER:
            self._progress.held.clear()
        return self._said(self._held_text() + self._begun().flush())

    def _pass_tag(self, before: Place) -> str:
        """Ends and begins what a tag does; returns text of the answer that was held back.

        Args:
            before: where the output was before the tag.
        """
        text = ""
        if before is Place.THINKING:
            self._tell_thought(self._thoughts.flush())
            self._thoughts = self._thoughts_of()
        elif before is Place.ANSWERING:
            text = self._said(self._begun().flush())
            if self.matched is None:
                self._answer = None
        if self._progress.place is Place.THINKING:
            self._tell_thought("\n")
        elif self._progress.place is Place.ANSWERING and self._has_said:
            self._gap = "\n"
        return text

    def _answer_text(self, token_id: int) -> str:
        """Text that a token adds, and what was held before it."""
        if self._answer is not None and not self._progress.held:
            return self._answer.push(token_id)
        return self._held_text() + self._begun().push(token_id)

    def _begun(self) -> TextDecoder:
        """The answer's decoder, made for the number of tokens before."""
        if self._answer is None:
            num_before = self._num_pushed - len(self._progress.held) - 1
            self._answer = self._answer_of(max(0, num_before))
        return self._answer

    def _held_text(self) -> str:
        """Text of the held tokens, which are the answer's."""
        if not self._progress.held:
            return ""
        answer, held = self._begun(), self._progress.held
        self._progress.held = []
        return "".join([answer.push(token) for token in held])

    def _said(self, text: str) -> str:
        """What is told of the answer's next text."""
        if not text:
            return text
        text, self._gap, self._has_said = self._gap + text, "", True
        return text

    def _tell_thought(self, text: str) -> None:
        text = text.lstrip("\n") if self._blanks is None else self._blanks + text
        told = text.rstrip("\n")
        if told or self._blanks is not None:
            self._blanks = text[len(told) :]
        if told:
            self._tell(told)
