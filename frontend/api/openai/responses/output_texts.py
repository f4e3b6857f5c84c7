"""Messages and thoughts of a response's output as they grow, and the events that tell of them."""

from __future__ import annotations

from typing import Any, cast

from frontend.api.http.long_json import JsonArray
from frontend.api.openai.response_models import TokenLogprob
from frontend.api.openai.responses.item_events import Events, added, done, event, new_id
from frontend.api.openai.responses.objects import (
    ItemStatus,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
    ResponseEvent,
    SummaryText,
)
from frontend.api.openai.responses.thoughts import sealed


class Message:
    """What the model says: one part of text.

    Args:
        logprobs: keeps those of its tokens, until the item's end.
    """

    def __init__(self, index: int, logprobs: JsonArray | None) -> None:
        self.index = index
        self._id = new_id("msg")
        self._texts: list[str] = []
        self._logprobs = logprobs

    def begin(self) -> Events:
        """The item without parts, and its empty part."""
        empty = {**self.item("in_progress"), "content": []}
        return [added(self.index, empty), self._part("added")]

    def add(self, text: str, logprobs: list[TokenLogprob]) -> Events:
        """New text, with what is known of its tokens."""
        self._texts.append(text)
        if self._logprobs is not None:
            self._logprobs.extend(logprobs)
        return [self._event("response.output_text.delta", delta=text, logprobs=logprobs)]

    def end(self, is_cut: bool) -> Events:
        """The whole text, the part and the item."""
        part = self._text()
        text = self._event(
            "response.output_text.done", text=part["text"], logprobs=part["logprobs"]
        )
        return [text, self._part("done"), done(self, is_cut)]

    def item(self, status: ItemStatus) -> OutputMessage:
        """The item as it is."""
        return {
            "id": self._id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [self._text()],
        }

    def _part(self, verb: str) -> ResponseEvent:
        return self._event(f"response.content_part.{verb}", part=self._text())

    def _text(self) -> OutputText:
        logprobs: Any = self._logprobs if self._logprobs is not None and self._texts else []
        text = "".join(self._texts)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _event(self, kind: str, **more: Any) -> ResponseEvent:
        return event(kind, self.index, self._id, content_index=0, **more)


class Reasoning:
    """What the model thinks.

    Args:
        in_summary: it is told as the summary, else as content.
        is_sealed: the item also has it as ``encrypted_content``.
    """

    def __init__(self, index: int, *, in_summary: bool, is_sealed: bool) -> None:
        self.index = index
        self._id = new_id("rs")
        self._texts: list[str] = []
        self._in_summary = in_summary
        self._is_sealed = is_sealed

    def begin(self) -> Events:
        """The item without parts, and its empty part."""
        empty: OutputReasoning = {
            "id": self._id, "type": "reasoning", "status": "in_progress", "summary": [],
        }  # fmt: skip
        return [added(self.index, empty), self._part("added")]

    def add(self, text: str) -> Events:
        """New text."""
        self._texts.append(text)
        kind = "response.reasoning_summary_text" if self._in_summary else "response.reasoning_text"
        return [self._event(f"{kind}.delta", delta=text)]

    def end(self, is_cut: bool) -> Events:
        """The whole text, the part and the item."""
        kind = "response.reasoning_summary_text" if self._in_summary else "response.reasoning_text"
        text = self._event(f"{kind}.done", text="".join(self._texts))
        return [text, self._part("done"), done(self, is_cut)]

    def item(self, status: ItemStatus) -> OutputReasoning:
        """The item as it is."""
        part = self._text()
        item: OutputReasoning = {
            "id": self._id,
            "type": "reasoning",
            "status": status,
            "summary": [cast(SummaryText, part)] if self._in_summary else [],
        }
        if not self._in_summary:
            item["content"] = [cast(ReasoningText, part)]
        if self._is_sealed:
            item["encrypted_content"] = sealed(part["text"])
        return item

    def _part(self, verb: str) -> ResponseEvent:
        kind = "reasoning_summary_part" if self._in_summary else "content_part"
        return self._event(f"response.{kind}.{verb}", part=self._text())

    def _text(self) -> ReasoningText | SummaryText:
        text = "".join(self._texts)
        if self._in_summary:
            return {"type": "summary_text", "text": text}
        return {"type": "reasoning_text", "text": text}

    def _event(self, kind: str, **more: Any) -> ResponseEvent:
        place = {"summary_index" if self._in_summary else "content_index": 0}
        return event(kind, self.index, self._id, **place, **more)
