"""What all items of a response's output share: their ids, and the events that begin and end them.

Knows no type of item, and no numbers of events.
"""

from __future__ import annotations

import uuid
from typing import Any, Protocol, cast

from frontend.api.openai.responses.objects import ItemStatus, OutputItem, ResponseEvent

Events = list[ResponseEvent]


class GrowingItem(Protocol):
    """An item.

    Attributes:
        index: its place in the output.
    """

    @property
    def index(self) -> int: ...

    def begin(self) -> Events:
        """Its first events."""
        ...

    def end(self, is_cut: bool) -> Events:
        """Its last events; cut: the output ended in it, and not by itself."""
        ...

    def item(self, status: ItemStatus) -> OutputItem:
        """The item as it is."""
        ...


def new_id(prefix: str) -> str:
    """An item's id."""
    return f"{prefix}_{uuid.uuid4().hex}"


def event(kind: str, index: int, item_id: str, **more: Any) -> ResponseEvent:
    """An event of one item."""
    told = {"type": kind, "item_id": item_id, "output_index": index, **more}
    return cast(ResponseEvent, told)


def added(index: int, item: Any) -> ResponseEvent:
    """The first event of an item."""
    return {"type": "response.output_item.added", "output_index": index, "item": item}


def done(item: GrowingItem, is_cut: bool) -> ResponseEvent:
    """The last event of an item."""
    status: ItemStatus = "incomplete" if is_cut else "completed"
    return {
        "type": "response.output_item.done",
        "output_index": item.index,
        "item": item.item(status),
    }
