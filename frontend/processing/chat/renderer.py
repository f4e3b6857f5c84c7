"""From a conversation to token ids, by the model's chat template.

Owns that no text of a caller becomes a control token. A conversation that could spell one is
rendered as it is, and by a template that marks its own (`control_tokens.py`): where both say the
same but for the marks, these tell which control tokens the template wrote. Knows nothing of
requests.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tokenizers

from frontend.processing.chat.control_tokens import MARK, ControlTokenError, ControlTokens
from frontend.processing.chat.conversation import Conversation, Turn
from frontend.processing.chat.later_system import with_reminders
from frontend.processing.chat.thinking_turns import THINKING, THOUGHTS, as_thinking
from frontend.processing.respelled import RespelledTokenizer

logger = logging.getLogger(__name__)

_USER: Turn = {"role": "user", "content": "a"}
_SYSTEM: Turn = {"role": "system", "content": "b"}
_FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
_SAID = ("content", THOUGHTS, THINKING)  # an assistant's own texts
_CALLS: Turn = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
_RESULT: Turn = {"role": "tool", "content": "c", "tool_call_id": "1"}
_ANSWER: Turn = {"role": "assistant", "content": "d"}
_WORD = Conversation(turns=[_USER])
_LATER = "later instructions"
_LATER_SYSTEM = Conversation(turns=[_SYSTEM, _USER, {"role": "system", "content": _LATER}])
# With all that most templates know.
_SAMPLES = (
    Conversation(turns=[_SYSTEM, _USER, _ANSWER, _USER]),
    Conversation(
        turns=[_SYSTEM, _USER, _CALLS, _RESULT, _RESULT, _ANSWER, _USER],
        tools=[{"type": "function", "function": _FUNCTION}],
    ),
)


class _Marking:
    """What is made of one template, once.

    Attributes:
        control: its control tokens.
        tokenizer: has them spelled with the mark; None where marks are of no use: there is no
            tokenizer of the tokenizers library, or the template does not write them as it should.
        openers: what control tokens begin with; None: a caller's text may become one by
            normalization.
    """

    def __init__(self, library: tokenizers.Tokenizer | None, control: ControlTokens) -> None:
        self.control = control
        self.tokenizer = None if library is None else RespelledTokenizer(library, control.spelled)
        normalized = any(token.normalized for _, token in control.spelled)
        is_normalized = library is not None and library.normalizer is not None and normalized
        self.openers = None if is_normalized else {text[0] for text in control.ids}


class ChatRenderer:
    """Renders conversations for one tokenizer.

    Args:
        wrapped: transformers' tokenizer.
        library: the same as the tokenizers library has it, or None.
        encode: ids of a text, control tokens as such.
    """

    def __init__(
        self,
        wrapped: Any,
        library: tokenizers.Tokenizer | None,
        encode: Callable[[str], list[int]],
    ) -> None:
        self._wrapped = wrapped
        self._library = library
        self._encode = encode
        self._markings: dict[str, _Marking] = {}
        self._shows_later: dict[str, bool] = {}

    def ids(self, conversation: Conversation) -> list[int]:
        """Token ids of a conversation's prompt.

        Raises:
            jinja2.TemplateError: the template refuses the messages.
            ControlTokenError: they spell control tokens that marks do not tell apart.
            ValueError: there is no template.
            TypeError: an argument of the template may not be set.
        """
        if conversation.has_later_system and not self._shows_later_system(conversation):
            conversation = with_reminders(conversation)
        source = self._wrapped.get_chat_template(None, conversation.tools)
        conversation = as_thinking(conversation, source)
        text = self._text(conversation, conversation.turns)
        if conversation.parses_special_tokens:
            return self._encode(text)
        marking = self._marking(conversation)
        if marking.openers is not None and not _hold(conversation, marking.openers):
            return self._encode(text)
        if marking.tokenizer is None:
            if _spells(conversation, marking.control):
                raise ControlTokenError
            return self._encode(text)
        marked = self._marked_text(conversation, marking.control)
        if MARK in text or marked.replace(MARK, "") != text:
            raise ControlTokenError
        return marking.tokenizer.encode(marked)

    def prepare(self) -> None:
        """Renders a word; warns where control tokens cannot be marked.

        Raises:
            Exception: whatever the template raises for a word.
        """
        if self._marking(_WORD).tokenizer is None:
            logger.warning(
                "control tokens of the chat template cannot be told from those in a caller's text: "
                "conversations that spell one are refused"
            )
        self.ids(_WORD)

    def _shows_later_system(self, conversation: Conversation) -> bool:
        """Whether the conversation's template writes system turns behind others."""
        source = self._wrapped.get_chat_template(None, conversation.tools)
        if source not in self._shows_later:
            try:
                text = self._text(_LATER_SYSTEM, _LATER_SYSTEM.turns, chat_template=source)
            except Exception:  # a template may refuse anything
                text = ""
            self._shows_later[source] = _LATER in text
        return self._shows_later[source]

    def _marking(self, conversation: Conversation) -> _Marking:
        source = self._wrapped.get_chat_template(None, conversation.tools)
        if source not in self._markings:
            control = ControlTokens(self._wrapped.added_tokens_decoder, source)
            marking = _Marking(self._library, control)
            if marking.tokenizer is not None and not self._holds(marking.tokenizer, control):
                marking.tokenizer = None
            self._markings[source] = marking
        return self._markings[source]

    def _holds(self, tokenizer: RespelledTokenizer, control: ControlTokens) -> bool:
        """Whether what is marked is a control token and nothing else is, and the template marks all
        that it writes: some conversations have the same ids both ways.
        """
        texts, ids = "\n".join(control.ids), set(control.ids.values())
        if not ids.isdisjoint(tokenizer.encode(texts)):
            return False
        if not ids.issubset(tokenizer.encode(control.marked(texts))):
            return False
        return all(self._is_same(sample, tokenizer, control) for sample in (_WORD, *_SAMPLES))

    def _is_same(
        self, sample: Conversation, tokenizer: RespelledTokenizer, control: ControlTokens
    ) -> bool:
        try:
            text = self._text(sample, sample.turns)
        except Exception:  # a template may refuse anything
            return True
        return tokenizer.encode(self._marked_text(sample, control)) == self._encode(text)

    def _marked_text(self, conversation: Conversation, control: ControlTokens) -> str:
        turns = [
            {**turn, **{key: control.marked_ordinary(turn[key]) for key in _SAID if key in turn}}
            if turn["role"] == "assistant"
            else turn
            for turn in conversation.turns
        ]
        given = conversation.template_kwargs
        own = {
            name: control.marked(value)
            for name, value in self._wrapped.special_tokens_map.items()
            if isinstance(value, str) and name not in given
        }
        text = self._text(conversation, turns, chat_template=control.marked_source, **own)
        return control.without_vain_marks(text)

    def _text(self, conversation: Conversation, turns: list[Turn], **more: Any) -> str:
        return str(
            self._wrapped.apply_chat_template(
                turns,
                tools=conversation.tools,
                tokenize=False,
                add_generation_prompt=conversation.asks,
                continue_final_message=conversation.continues,
                **more,
                **conversation.template_kwargs,
            )
        )


def _hold(conversation: Conversation, openers: Iterable[str]) -> bool:
    """Whether a string of a conversation has one of these characters."""
    return any(opener in text for text in _strings(conversation) for opener in openers)


def _spells(conversation: Conversation, control: ControlTokens) -> bool:
    """Whether a string of a conversation holds a control token that it may not."""
    own = [turn for turn in conversation.turns if turn["role"] == "assistant"]
    said = [turn[key] for turn in own for key in _SAID if key in turn]
    turns = [
        {**turn, **dict.fromkeys(_SAID, "")} if turn["role"] == "assistant" else turn
        for turn in conversation.turns
    ]
    others = list(_strings(dataclasses.replace(conversation, turns=turns)))
    return any(token in text for text in said for token in control.special) or any(
        token in text for text in others for token in control.ids
    )


def _strings(conversation: Conversation) -> Iterator[str]:
    """All that a caller sent: values and keys at any depth."""
    waiting: list[Any] = [conversation.template_kwargs, conversation.tools, conversation.turns]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
