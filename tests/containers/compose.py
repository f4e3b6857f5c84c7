"""Compose files as Compose reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


class _Loader(yaml.SafeLoader):
    """YAML as Compose reads it: `!override` takes a list as it is."""


_Loader.add_constructor("!reset", lambda loader, node: None)
_Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))


def load_compose(name: str) -> dict[str, Any]:
    """A compose file where no variable is set: ``${NAME:-default}`` is its default."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / name).read_text())
    document: dict[str, Any] = yaml.load(text, _Loader)
    return document
