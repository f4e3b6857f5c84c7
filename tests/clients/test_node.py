"""Clients of JavaScript: node's tests beside this file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.cases import (
    ANSWER,
    CHAIN,
    CHAIN_ANSWER,
    CHAIN_THOUGHT,
    KEY,
    MIA,
    MIA_PERSON,
    MODEL,
    NO_TOP_P,
    PAINT,
    SUM,
    terse,
)
from tests.clients.loops import LOOPS, THINKING_BLOCKS, Loop

FOLDER = Path(__file__).parent / "node"
NODE = shutil.which("node")
INSTALLED = NODE is not None and (FOLDER / "node_modules").is_dir()

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not INSTALLED, reason="node's clients are not installed (docs/http.md)"),
]


@pytest.mark.parametrize("name", ["openai", "ai_sdk", "anthropic"])
def test_what_node_is_asked_it_gets(url: str, name: str) -> None:
    asked: dict[str, Any] = {"url": url, "key": KEY, "model": MODEL, "noTopP": NO_TOP_P}
    asked |= {"sum": SUM, "answer": ANSWER, "paint": PAINT, "bias": terse(), "mia": MIA}
    asked |= {"person": MIA_PERSON.model_dump(), "thinkingBlocks": THINKING_BLOCKS}
    asked |= {"chain": {"question": CHAIN, "thought": CHAIN_THOUGHT, "answer": CHAIN_ANSWER}}
    asked["loops"] = {name: as_json(loop) for name, loop in LOOPS.items()}
    ran = subprocess.run(
        [str(NODE), "--test", f"{name}.test.mjs"],
        cwd=FOLDER, env=os.environ | {"ASKED": json.dumps(asked)},
        text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout


def as_json(loop: Loop) -> dict[str, Any]:
    """What node has to know of it."""
    calls = [[call.name, call.arguments] for calls in loop.exchange.rounds for call in calls]
    return {
        "question": loop.question,
        "answer": loop.answer,
        "streams": loop.streams,
        "thinks": loop.thinks,
        "body": loop.body,
        "functions": loop.functions(),
        "calls": calls,
        "thoughts": loop.thoughts,
        "promptTokens": loop.prompt_tokens(),
    }
