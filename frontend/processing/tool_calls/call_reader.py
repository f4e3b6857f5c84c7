"""Separates content from the calls inside it, for any format.

Owns what is content: what turns out to be no call is, and blanks beside calls are not.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence

from frontend.processing.stop_strings import num_begun
from frontend.processing.tool_calls.events import Event, content, whole_call
from frontend.processing.tool_calls.format import TurnReader
from frontend.processing.tool_calls.grammar import CallLanguage, HeldCalls, fits, held_calls
from frontend.processing.tool_calls.scan import NoCallError, ParsedCall, Parsing, Scan
from frontend.processing.tool_calls.tools import Tool

Tools = Mapping[str, Tool]
Found = Sequence[ParsedCall | str]
"""Calls, and texts between them that are none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaggedFormat:
    """A format whose calls begin with a tag.

    Attributes:
        name: as --tool-call-parser and GetModelInfo have it.
        begins: the tags.
        parse: reads calls from behind a tag, which it is given. Where it raises `NoCallError`, what
            it has read is content.
        closers: texts behind a call that belong to it, if they come.
        only_first: calls stand at the turn's beginning, and behind others.
        language: of calls of some tools, as the model writes them; None: there is no grammar of it.
        tags: texts that may be special tokens.
        token_ids: of the tags that are, in one model.
        begins_with_token: the first of `begins` is a token of its own, special or not.
    """

    name: str
    begins: tuple[str, ...]
    parse: Callable[[Scan, str, Tools], Parsing[Found]]
    closers: tuple[str, ...] = ()
    only_first: bool = False
    language: Callable[[Sequence[Tool], Collection[str]], CallLanguage] | None = None
    tags: tuple[str, ...] = ()
    token_ids: Mapping[str, int] = dataclasses.field(default_factory=dict)
    begins_with_token: bool = False

    @property
    def kept_tokens(self) -> tuple[str, ...]:
        """Special tokens that readers need to see in the text."""
        return tuple(self.token_ids)

    def with_tokens(self, special: Mapping[str, int], added: Collection[str]) -> TaggedFormat:
        """The format for one model.

        Args:
            special: ids of the tokenizer's special tokens by their text.
            added: texts of all its added tokens.
        """
        ids = {tag: special[tag] for tag in self.tags if tag in special}
        begins_with_token = self.begins[0] in added
        return dataclasses.replace(self, token_ids=ids, begins_with_token=begins_with_token)

    def reader(
        self, tools: Tools, max_calls: int | None = None, *, is_held: bool = False
    ) -> TurnReader:
        """A reader of one turn; see `ToolFormat`."""
        return CallReader(self, tools, max_calls, is_held=is_held)

    def held(self, tools: Sequence[Tool], *, parallel: bool = True) -> HeldCalls | None:
        """The language of calls; see `ToolFormat`."""
        if self.language is None:
            return None
        language = self.language(tools, self.token_ids)
        held = held_calls(language, self.token_ids, parallel=parallel)
        return held if fits(held.constraint) else None

    def held_where_begun(self, tools: Sequence[Tool], *, parallel: bool = True) -> HeldCalls | None:
        """The language of a call that was begun; see `ToolFormat`."""
        if self.language is None or not self.begins_with_token:
            return None
        language, begin = self.language(tools, self.token_ids), self.begins[0]
        # Several calls begin several times, unless they stand in a section that begins once.
        parallel = parallel and language.opening.startswith(begin)
        held = held_calls(language, self.token_ids, parallel=parallel, behind=begin)
        held.constraint.trigger = begin
        return held if fits(held.constraint) else None


class CallReader:
    """A `TurnReader` of any format. A call is told when it is complete.

    Args:
        tools: that may be called, by name.
        max_calls: what comes behind as many is content.
        is_held: the output was held to calls: the last is told as far as it came.
    """

    def __init__(
        self,
        form: TaggedFormat,
        tools: Tools,
        max_calls: int | None = None,
        *,
        is_held: bool = False,
    ) -> None:
        self._is_held = is_held
        self.num_calls = 0
        self._form, self._tools, self._max_calls = form, tools, max_calls
        self._firsts = {tag[0] for tag in form.begins}
        self._held = ""  # not told yet; in a call from its first tag on
        self._scan: Scan | None = None  # of the call that is being read
        self._parsing: Parsing[Found] | None = None
        self._tag = ""
        self._skip_to: str | None = None  # content up to there
        self._blanks = ""  # content, unless a call comes next
        self._behind_call = False
        self._has_content = False  # since the beginning, or the last call
        self._is_over = False

    def push(self, text: str) -> list[Event]:
        """Content up to what may be a call, and complete calls."""
        if not self._held and self._is_plain(text):
            return self._content(text)
        held, self._held = self._held, ""  # a string that one variable alone has grows in place
        if self._scan is not None:
            self._scan.text = ""
        held += text
        self._held = held
        del held
        events: list[Event] = []
        while self._held and self._read(events):
            pass
        return events

    def flush(self) -> list[Event]:
        """A call that lacks nothing but its end tag is one; what else was held back is content."""
        self._is_over = True
        events: list[Event] = []
        if self._is_held and (self._scan is not None or self._is_in_tag()):
            return self._cut()
        while self._held and self._read(events):
            pass
        events += self._content(self._held)
        self._held = ""
        return events

    def _is_plain(self, text: str) -> bool:
        """Whether a text is content whatever follows, which most are; nothing is held back."""
        if self._skip_to is not None or self._behind_call or self.num_calls:
            return False
        if self._form.only_first:
            return self._has_content
        for first in self._firsts:  # noqa: SIM110  # any() would make a generator for each token
            if first in text:
                return False
        return True

    def _is_in_tag(self) -> bool:
        """Whether what was held back can only be the beginning of a call."""
        held = self._held.lstrip()
        return any(tag.startswith(held) for tag in (*self._form.begins, *self._form.closers))

    def _cut(self) -> list[Event]:
        """The call that the end of a held output cuts off, if it has begun to have arguments."""
        if self._scan is None:
            return []
        events: list[Event] = []
        try:
            self._scan.text, self._scan.is_over = self._held, True
            assert self._parsing is not None
            next(self._parsing)
        except StopIteration as stopped:
            for each in stopped.value:
                events += self._content(each) if isinstance(each, str) else self._call(each)
        except NoCallError:
            for call in self._scan.partial():
                events += self._call(call)
        return events

    def _read(self, events: list[Event]) -> bool:
        """Reads on; false where more text is needed."""
        if self._parsing is not None:
            return self._read_call(events)
        if self._skip_to is not None:
            return self._skip(events, self._skip_to)
        if self.num_calls == self._max_calls:
            events += self._told(len(self._held))
            return False
        if self._behind_call and self._form.closers and self._wait_for_closers():
            return False
        return self._begin(events)

    def _wait_for_closers(self) -> bool:
        """Drops what closes a call, or the beginning of that at the end; whether it may come."""
        closers = self._form.closers
        self._held = self._held.lstrip()
        while closer := next((each for each in closers if self._held.startswith(each)), ""):
            self._held = self._held[len(closer) :].lstrip()
        if not any(each.startswith(self._held) for each in closers):
            return False
        if self._is_over:
            self._held = ""  # the beginning of one
        return True

    def _begin(self, events: list[Event]) -> bool:
        """Looks for the next call."""
        place, tag = self._next_tag()
        events += self._told(place)
        if not tag:
            return False
        self._tag = tag
        self._scan = Scan(self._held, len(tag))
        self._parsing = self._form.parse(self._scan, tag, self._tools)
        return True

    def _next_tag(self) -> tuple[int, str]:
        """Where the next tag stands; without one, up to where no tag can begin."""
        held, begins = self._held, self._form.begins
        if self._form.only_first:
            rest = held.lstrip()
            if self._has_content or not any(
                rest.startswith(tag) or (tag.startswith(rest) and not self._is_over)
                for tag in begins
            ):
                return len(held), ""
            tag = next((tag for tag in begins if rest.startswith(tag)), "")
            return len(held) - len(rest), tag
        found = [(place, tag) for tag in begins if (place := held.find(tag)) >= 0]
        if found:
            return min(found)
        num_held = 0 if self._is_over else max(num_begun(held, tag) for tag in begins)
        return len(held) - num_held, ""

    def _read_call(self, events: list[Event]) -> bool:
        assert self._scan is not None
        assert self._parsing is not None
        self._scan.text, self._scan.is_over = self._held, self._is_over
        try:
            next(self._parsing)
        except StopIteration as stopped:
            place = self._end_call()
            if any(isinstance(each, ParsedCall) for each in stopped.value):
                self._held = self._held[place:]
                for each in stopped.value:
                    events += self._content(each) if isinstance(each, str) else self._call(each)
            else:
                events += self._told(place)
        except NoCallError as none:
            place = self._end_call()
            self._skip_to = none.skip_to
            events += self._told(len(self._tag) if none.is_word else place)
        else:
            return False
        return True

    def _end_call(self) -> int:
        """Forgets the call; returns the place up to which it was read."""
        assert self._scan is not None
        place = self._scan.place
        self._scan = self._parsing = None
        return place

    def _skip(self, events: list[Event], end: str) -> bool:
        found = self._held.find(end)
        if found >= 0:
            self._skip_to = None
            events += self._told(found + len(end))
            return True
        events += self._told(len(self._held) - num_begun(self._held, end))
        return False

    def _told(self, end: int) -> list[Event]:
        """What is held up to ``end``, as content."""
        text, self._held = self._held[:end], self._held[end:]
        return self._content(text)

    def _content(self, text: str) -> list[Event]:
        """Content. Blanks behind a call, and later ones before a call, are dropped."""
        self._has_content |= not text.isspace() and bool(text)
        if not self.num_calls:
            return content(text)
        text = self._blanks + text
        if self._behind_call:
            text = text.lstrip()
        said = text.rstrip()
        self._blanks = text[len(said) :]
        self._behind_call = self._behind_call and not said
        return content(said)

    def _call(self, call: ParsedCall) -> list[Event]:
        if self.num_calls == self._max_calls:
            name = json.dumps(call.name, ensure_ascii=False)
            return self._content(f'{{"name": {name}, "arguments": {call.arguments}}}')
        self.num_calls += 1
        self._blanks, self._behind_call, self._has_content = "", True, False
        return whole_call(self.num_calls - 1, call.name, call.arguments, call.id)
