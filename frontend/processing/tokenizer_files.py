"""The files of a model folder's tokenizer: which they are, and that they can be read.

Knows nothing of what is in them.
"""

from __future__ import annotations

import os
from pathlib import Path

from switchyard.model_files import file_size, read_object

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tiktoken.model")
"""A folder with none of these has no tokenizer."""

CHAT_TEMPLATE = "chat_template.jinja"

_SMALL_OBJECTS = (
    "added_tokens.json",
    "chat_template.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)

FILES = (
    *VOCABULARIES,
    *_SMALL_OBJECTS,
    CHAT_TEMPLATE,
    "merges.txt",
)

_MAX_BYTES = 128 << 20


def check_files(folder: Path) -> None:
    """Refuse files that would block their reader, or take its memory, and small ones that are not
    the JSON that they should be.

    Raises:
        ValueError: one line naming the file, and what it is instead.
    """
    others = (folder / "additional_chat_templates").glob("*.jinja")
    for path in (*(folder / name for name in FILES), *others):
        if os.path.lexists(path) and (size := file_size(path)) > _MAX_BYTES:
            raise ValueError(
                f"{path}: {size} bytes, at most {_MAX_BYTES} are read; is it another file?"
            )
    for name in _SMALL_OBJECTS:
        if (folder / name).exists():
            read_object(folder / name)
