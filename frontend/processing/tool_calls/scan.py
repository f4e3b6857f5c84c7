"""Reads one call from text that comes in parts.

Owns waiting: each method is a generator that yields while it needs more text, so that a format's
parser reads like the format. Nothing is searched twice. Knows no format.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Generator
from typing import TypeVar

from frontend.processing.tool_calls.json_objects import ObjectScanner, is_json_object

_T = TypeVar("_T")
Parsing = Generator[None, None, _T]

_BLANKS = re.compile(r"\s*")


@dataclasses.dataclass(frozen=True, slots=True)
class ParsedCall:
    """A call that was found, of a function that may be called.

    Attributes:
        arguments: a JSON object.
        id: that the model gave it, or its template wants; empty: any will do.
    """

    name: str
    arguments: str
    id: str = ""


class NoCallError(Exception):
    """What was read is no call.

    Args:
        skip_to: it is content up to there, whatever it holds; None: what follows may be a call.
        is_word: the tag it began with is a word in a sentence: that alone is content.
    """

    def __init__(self, skip_to: str | None = None, *, is_word: bool = False) -> None:
        super().__init__()
        self.skip_to = skip_to
        self.is_word = is_word


class Scan:
    """The text from a call's first tag on, and how far it was read.

    Attributes:
        is_over: no more text comes.
        skip_to: see `NoCallError`; of those that the scan itself raises.
        partial: makes the calls as far as they came, where the output was held to calls and is cut
            off.
    """

    def __init__(self, text: str, place: int) -> None:
        self.text = text
        self.place = place
        self.is_over = False
        self.skip_to: str | None = None
        self.partial: Callable[[], list[ParsedCall]] = list

    def fail(self) -> NoCallError:
        """What is raised for a text that is no call."""
        return NoCallError(self.skip_to)

    def blanks(self) -> Parsing[None]:
        """Goes on to what is no blank, if anything is."""
        while True:
            found = _BLANKS.match(self.text, self.place)
            assert found is not None, "it matches the empty text"
            self.place = found.end()
            if self.place < len(self.text) or self.is_over:
                return
            yield

    def take(self, *marks: str) -> Parsing[str]:
        """The mark that stands here, behind which it goes on; empty where none does.

        Args:
            marks: none begins another.
        """
        while True:
            rest = self.text[self.place : self.place + max(map(len, marks))]
            for mark in marks:
                if rest.startswith(mark):
                    self.place += len(mark)
                    return mark
            if self.is_over or not any(mark.startswith(rest) for mark in marks):
                return ""
            yield

    def need(self, mark: str) -> Parsing[None]:
        """Goes on behind a mark that must stand here.

        Raises:
            NoCallError: it does not.
        """
        if not (yield from self.take(mark)):
            raise self.fail()

    def end(self, mark: str) -> Parsing[None]:
        """Goes on behind a mark that must stand here, or be cut off by the text's end."""
        yield from self.blanks()
        if (yield from self.take(mark)):
            return
        if not self.is_over or not mark.startswith(self.text[self.place :]):
            raise self.fail()
        self.place = len(self.text)

    def until(self, *marks: str, limit: int | None = None) -> Parsing[tuple[str, str]]:
        """The text before the first of some marks, and the mark, behind which it goes on.

        Args:
            limit: characters before which the mark must come, else the first tag was a word.

        Raises:
            NoCallError: there is none.
        """
        begin = searched = self.place
        longest = max(map(len, marks))
        while True:
            found = [
                (place, mark) for mark in marks if (place := self.text.find(mark, searched)) >= 0
            ]
            end = min(found)[0] if found else len(self.text) - longest
            if limit is not None and end - begin > limit:
                raise NoCallError(is_word=True)
            if found:
                place, mark = min(found)
                self.place = place + len(mark)
                return self.text[begin:place], mark
            if self.is_over:
                self.place = len(self.text)
                raise self.fail()
            searched = max(begin, len(self.text) - longest + 1)
            yield

    def value(self, end: str, *follows: str) -> Parsing[tuple[str, str]]:
        """A text up to its end mark, and what follows it, behind which it goes on.

        The end mark may stand in the text: what follows the last is one of some marks.
        """
        parts: list[str] = []
        while True:
            text, _ = yield from self.until(end)
            behind = self.place
            yield from self.blanks()
            mark = yield from self.take(*follows)
            if mark:
                return "".join([*parts, text]), mark
            parts.append(text + end + self.text[behind : self.place])

    def json_object(self) -> Parsing[str]:
        """The text of a JSON object that must stand here.

        Raises:
            NoCallError: none does.
        """
        text = yield from self.object_text()
        if not is_json_object(text):
            raise self.fail()
        return text

    def object_text(self) -> Parsing[str]:
        """`json_object`, but what stands in its strings is not checked."""
        begin, scanner = self.place, ObjectScanner()
        while True:
            self.place = scanner.feed(self.text, self.place)
            if scanner.is_done:
                return self.text[begin : self.place]
            if scanner.is_broken or self.is_over:
                raise self.fail()
            yield
