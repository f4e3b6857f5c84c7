"""The envelope of Harmony, in which gpt-oss models write: messages, each with a header that names a
channel, and a recipient where it is a call.

Owns its tokens, and what a header says. Knows nothing of outputs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
ROLE = "assistant"
THOUGHTS, PREAMBLE, FINAL = "analysis", "commentary", "final"
SIGNS = (CHANNEL, MESSAGE)
"""What templates of such models have."""

# The header of a message that is no call, up to its <|message|>. It may name a type of content.
_HEADER = re.compile(
    r"(?:<\|start\|>assistant)?<\|channel\|>\s*(analysis|commentary|final)"
    r"(?:\s*<\|constrain\|>\s*\w+|\s+(?:json|code))?\s*"
)
_LEADS = (START, f"{START}{ROLE}")
_TO = f"{ROLE} to="
MAX_HEADER_TOKENS = 64
"""More of them are a call's, or none: what is longer is text."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """The envelope as one model's tokenizer has it.

    Attributes:
        start_id, channel_id, message_id: tokens within headers.
        end_id: the token behind a message that another may follow.
        end_ids: all tokens behind messages.
        role_ids, thoughts_ids, final_ids: tokens that write the role and two of the channels.
        text_of: text of tokens, with special ones.
    """

    start_id: int
    channel_id: int
    message_id: int
    end_id: int
    end_ids: frozenset[int]
    role_ids: tuple[int, ...]
    thoughts_ids: tuple[int, ...]
    final_ids: tuple[int, ...]
    text_of: Callable[[list[int]], str]

    @property
    def begin(self) -> str:
        """What thoughts begin with."""
        return f"{CHANNEL}{THOUGHTS}{MESSAGE}"

    def opened(self, prompt_ids: Sequence[int]) -> Sequence[int]:
        """The tokens of the prompt's last message, which may go on in the output."""
        for place in range(len(prompt_ids) - 1, -1, -1):
            if prompt_ids[place] == self.start_id:
                return prompt_ids[place:]
        return ()

    def channel_of(self, header: Sequence[int]) -> str | None:
        """The channel of a message that is no call; None for another header.

        Args:
            header: the tokens before its <|message|>.
        """
        found = _HEADER.fullmatch(self.text_of([*header]))
        return None if found is None else found[1]

    def is_lead(self, header: Sequence[int]) -> bool:
        """Whether tokens are what a header begins with, whoever the message is to."""
        return self.channel_id not in header and self.text_of([*header]) in _LEADS

    def may_go_on(self, header: Sequence[int]) -> bool:
        """Whether tokens can begin a header, as far as its channel is not named yet."""
        if self.channel_id in header:
            return len(header) < MAX_HEADER_TOKENS
        text = self.text_of([*header]).removeprefix(START)
        return _TO.startswith(text) or (text.startswith(_TO) and len(header) < MAX_HEADER_TOKENS)


def find_envelope(
    added: Mapping[str, int],
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
) -> Envelope | None:
    """The envelope of a model; None where its tokenizer lacks a token of it.

    Args:
        added: ids of the tokenizer's added tokens by their text.
        encode: ids of a text.
        decode: text of ids, with special tokens.
    """
    if any(token not in added for token in (START, CHANNEL, MESSAGE, END)):
        return None
    return Envelope(
        start_id=added[START],
        channel_id=added[CHANNEL],
        message_id=added[MESSAGE],
        end_id=added[END],
        end_ids=frozenset(added[token] for token in (END, CALL, RETURN) if token in added),
        role_ids=tuple(encode(ROLE)),
        thoughts_ids=tuple(encode(THOUGHTS)),
        final_ids=tuple(encode(FINAL)),
        text_of=decode,
    )
