"""A tokenizer with other added tokens than its own: some left out, some spelled otherwise.

Knows nothing of who wants them.
"""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers


class RespelledTokenizer:
    """Encodes as a tokenizer does, but for its added tokens. Shares the model, so it costs little.

    Args:
        library: the tokenizer.
        added: its added tokens as they are spelled here, each with its id; an id may be there more
            than once, and a token that is not is plain text.
        layout: whose normalizer and pre-tokenizer are used; by default the tokenizer's own.
    """

    def __init__(
        self,
        library: tokenizers.Tokenizer,
        added: Sequence[tuple[int, tokenizers.AddedToken]],
        layout: tokenizers.Tokenizer | None = None,
    ) -> None:
        layout = layout or library
        self._inner = tokenizers.Tokenizer(library.model)
        if layout.normalizer is not None:
            self._inner.normalizer = layout.normalizer
        if layout.pre_tokenizer is not None:
            self._inner.pre_tokenizer = layout.pre_tokenizer
        self._inner.add_tokens([token for _, token in added])
        self._ids = {self._inner.token_to_id(token.content): token_id for token_id, token in added}

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without what the tokenizer adds to one. Other threads run meanwhile."""
        [encoding] = self._inner.encode_batch_fast([text], add_special_tokens=False)
        ids = self._ids
        return [ids.get(token_id, token_id) for token_id in encoding.ids]
