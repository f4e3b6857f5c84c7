"""Tells the text of thoughts from that of the answer, as tokens come.

Stop strings are looked for in the answer alone. Knows nothing of what the thoughts' text is for.
"""

from __future__ import annotations

from collections.abc import Callable

from frontend.processing.thoughts.progress import Part, ThoughtProgress
from frontend.processing.thoughts.tags import Place
from frontend.requests.request import TextDecoder


class ThoughtDecoder:
    """A decoder whose text is the answer's; that of the thoughts goes elsewhere.

    Left out are tags, line ends at both ends of the thoughts, and those that are tokens of their
    own between them and the answer.

    Args:
        progress: of this output, before its first token.
        thoughts: makes text of the thoughts.
        answer: makes the answer's decoder, for as many tokens before it.
        tell: takes new text of the thoughts.
    """

    __slots__ = ("_answer", "_answer_of", "_blanks", "_held", "_progress", "_tell", "_thoughts")

    def __init__(
        self,
        progress: ThoughtProgress,
        thoughts: TextDecoder,
        answer: Callable[[int], TextDecoder],
        tell: Callable[[str], None],
    ) -> None:
        self._progress = progress
        self._thoughts = thoughts
        self._answer_of = answer
        self._answer: TextDecoder | None = None
        self._tell = tell
        self._held: list[int] = []
        self._blanks: str | None = None  # line ends that may be the thoughts' last; None: none told

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
        if self._answer is not None:
            return self._answer.push(token_id)
        part = self._progress.push(token_id)
        if part is Part.ANSWER:
            return self._begin_answer() + self._begun().push(token_id)
        if part is Part.THOUGHT:
            self._tell_thought(self._thoughts.push(token_id))
        elif part is Part.HELD:
            self._held.append(token_id)
        else:
            self._held.clear()
            if self._progress.place is Place.BEHIND:
                self._tell_thought(self._thoughts.flush())
        return ""

    def flush(self) -> str:
        """Text of the answer that was held back; thoughts that did not end are told."""
        if self._progress.place is Place.THINKING:
            self._tell_thought(self._thoughts.flush())
            return ""
        return self._begin_answer() + self._begun().flush()

    def _begun(self) -> TextDecoder:
        """The answer's decoder, made for the number of tokens before."""
        if self._answer is None:
            self._answer = self._answer_of(self.num_thought_tokens)
        return self._answer

    def _begin_answer(self) -> str:
        """Text of the line ends before the answer's first token."""
        held, self._held = self._held, []
        return "".join([self._begun().push(token) for token in held])

    def _tell_thought(self, text: str) -> None:
        text = text.lstrip("\n") if self._blanks is None else self._blanks + text
        told = text.rstrip("\n")
        if told or self._blanks is not None:
            self._blanks = text[len(told) :]
        if told:
            self._tell(told)
