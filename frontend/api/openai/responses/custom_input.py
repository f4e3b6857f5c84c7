"""The input of a custom tool, which is text: the one string of a function's arguments.

Owns how a model is shown such a tool, and how its text is read from JSON as it comes.
"""

from __future__ import annotations

import json
import re
from typing import Any

INPUT = "input"
"""The argument."""
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {INPUT: {"type": "string", "description": "The tool's whole input, as text."}},
    "required": [INPUT],
    "additionalProperties": False,
}

_BEFORE = re.compile(r'\s*\{\s*"input"\s*:\s*"')
# A string's characters as far as they are whole: an escape, or a pair of them, may be cut.
_WHOLE = re.compile(
    r'(?:[^"\\]|\\["\\/bfnrt]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}'
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*"
)
_PAIR_CHARS = len(r"\ud83d\ude00")
_DECODER = json.JSONDecoder(strict=False)  # takes line ends within strings


class CustomInput:
    """Reads a custom tool's input from the JSON of its arguments.

    Arguments of another form are the input as they are, and so is what follows an escape that JSON
    does not have.

    Attributes:
        is_done: all of it was read.
    """

    def __init__(self) -> None:
        self.is_done = False
        self._held = ""
        self._is_inside = False

    def push(self, arguments: str) -> str:
        """The new text of the input."""
        if self.is_done:
            return ""
        self._held += arguments
        if not self._is_inside:
            begun = _BEFORE.match(self._held)
            if begun is None:
                return ""
            self._is_inside, self._held = True, self._held[begun.end() :]
        whole = _WHOLE.match(self._held)
        assert whole is not None, "it matches the empty text"
        text, self._held = whole.group(), self._held[whole.end() :]
        self.is_done = self._held.startswith('"')
        return str(_DECODER.decode(f'"{text}"'))

    def flush(self) -> str:
        """What was held back: text of another form; an escape that was cut off is dropped."""
        is_cut = self._is_inside and len(self._held) < _PAIR_CHARS and '"' not in self._held
        return "" if self.is_done or is_cut else self._held
