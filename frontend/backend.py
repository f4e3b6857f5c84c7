"""What the service works with once the workers are there.

Defines EngineClient and TokenizerLike, so that the service does not import engine or tokenizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Protocol

import tokenizers

from frontend.engine.kv_events import KvEvents
from frontend.engine.load import EngineLoad
from frontend.group_info import GroupInfo
from frontend.model_folder import SamplingDefaults
from frontend.processing.chat.conversation import Conversation
from frontend.processing.thoughts.tags import ThoughtForm
from frontend.processing.tool_calls.format import NO_FORMAT, ToolFormat
from frontend.requests.request import Request, TextDecoder
from switchyard.v1 import inference_pb2 as pb


class EngineClient(Protocol):
    """What the service needs of the engine."""

    def submit(self, *requests: Request, first_alone: bool = False) -> None:
        """Queue a call's samples, whose outputs then fill; RequestError when they are refused."""
        ...

    def abort(self, request_id: str) -> bool:
        """End a request; whether it was running or queued."""
        ...

    def load(self) -> EngineLoad:
        """A snapshot."""
        ...


class TokenizerLike(Protocol):
    """What the service needs of the tokenizer."""

    @property
    def has_chat_template(self) -> bool: ...

    @property
    def library_tokenizer(self) -> tokenizers.Tokenizer | None: ...

    @property
    def eos_token_id(self) -> int | None: ...

    @property
    def thought_tags(self) -> ThoughtForm | None: ...

    @property
    def tool_format(self) -> ToolFormat: ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: list[int], keep_special_tokens: bool) -> str: ...

    def render_chat(self, conversation: Conversation) -> list[int]: ...

    def decoder(
        self,
        stops: tuple[str, ...],
        include_stop: bool,
        keep_special: bool,
        min_tokens: int = 0,
        kept: Collection[str] = (),
    ) -> TextDecoder: ...


class Experts(Protocol):
    """The source of each expert's token count."""

    async def get(self) -> pb.GetExpertLoadResponse:
        """Counts of every sparse layer; RequestError while there are no workers."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Everything a request needs.

    Attributes:
        tokenizer: None for a model folder without one; token ids only, then.
        info: what the workers are and can hold.
        defaults: what unset sampling fields mean for this model.
        max_queued_requests: the engine's bound, for GetServerInfo.
        experts: None for a model without them.
        kv_events: readers of the prefix cache's changes; None: it has none.
        prefix_cache: prompts that begin the same way share their work.
        end_token_ids: what ends a sequence: the model's end tokens, and the tokenizer's own if the
            model has it. A folder's configs and its tokenizer may disagree, and a chat ends by the
            latter's.
        thought_tags: between which the model's thoughts stand, or their envelope; None: they are
            not told from its answers.
        tool_format: of the model's calls.
    """

    engine: EngineClient
    tokenizer: TokenizerLike | None
    info: GroupInfo
    defaults: SamplingDefaults
    max_queued_requests: int
    experts: Experts | None = None
    kv_events: KvEvents | None = None
    prefix_cache: bool = True
    end_token_ids: tuple[int, ...] = dataclasses.field(init=False)
    thought_tags: ThoughtForm | None = dataclasses.field(init=False, default=None)
    tool_format: ToolFormat = dataclasses.field(init=False, default=NO_FORMAT)

    def __post_init__(self) -> None:
        own = None
        if self.tokenizer is not None:
            own = self.tokenizer.eos_token_id
            object.__setattr__(self, "thought_tags", self.tokenizer.thought_tags)
            object.__setattr__(self, "tool_format", self.tokenizer.tool_format)
        ids = self.info.eos_token_ids
        is_new = own is not None and own not in ids and own < self.info.vocab_size
        object.__setattr__(self, "end_token_ids", (*ids, own) if is_new else ids)
