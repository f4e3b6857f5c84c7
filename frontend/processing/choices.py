"""A choice among texts as a grammar. Knows nothing of who asks."""

from __future__ import annotations

import json
from collections.abc import Sequence


def choice_grammar(choices: Sequence[str]) -> str:
    """A grammar in Lark's notation whose language is exactly these texts."""
    return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
