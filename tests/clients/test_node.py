"""Clients of JavaScript: node's tests beside this file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.cases import ANSWER, KEY, MODEL, NO_TOP_P, PAINT, SUM, terse

FOLDER = Path(__file__).parent / "node"
NODE = shutil.which("node")
INSTALLED = NODE is not None and (FOLDER / "node_modules").is_dir()

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not INSTALLED, reason="node's clients are not installed (docs/http.md)"),
]


@pytest.mark.parametrize("name", ["openai", "ai_sdk", "anthropic"])
def test_what_node_is_asked_it_gets(url: str, name: str) -> None:
    asked = {"url": url, "key": KEY, "model": MODEL, "sum": SUM, "answer": ANSWER, "paint": PAINT}
    asked |= {"noTopP": NO_TOP_P, "bias": terse()}
    ran = subprocess.run(
        [str(NODE), "--test", f"{name}.test.mjs"],
        cwd=FOLDER, env=os.environ | {"ASKED": json.dumps(asked)},
        text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
