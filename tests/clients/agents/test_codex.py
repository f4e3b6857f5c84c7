"""OpenAI's Codex, whose model is played: it shall run a command and hear what came of it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from switchyard.v1 import inference_pb2 as pb
from tests.clients.cases import MODEL
from tests.frontend.http_fakes import ScriptedService, running_http, says

CODEX = Path(__file__).parent / "node_modules" / ".bin" / "codex"
# web_search is a tool that a server would have to run.
CONFIG = """
model = "{model}"
model_provider = "switchyard"
web_search = "disabled"

[model_providers.switchyard]
name = "Switchyard"
base_url = "http://127.0.0.1:{port}/v1"
wire_api = "responses"
"""
COMMAND = "echo hello > written.txt; echo all well"

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not CODEX.exists(), reason="codex is not installed (docs/responses.md)"),
]


class Coder(ScriptedService):
    """Runs a command, and ends when it has its result."""

    async def _events(self, request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateResponse]:
        if self.requests[-1].messages[-1].role == pb.ROLE_TOOL:
            self.deltas = [pb.Delta(reasoning="It worked."), says("The file is there.")]
        else:
            call = {"name": "exec_command", "arguments": {"cmd": COMMAND}}
            told = f"I write.<tool_call>{json.dumps(call)}</tool_call>"
            self.deltas = [pb.Delta(reasoning="A command will do."), says(told)]
        async for event in super()._events(request):
            yield event


async def codex(port: int, folder: Path) -> str:
    """What it prints."""
    home, work = folder / "home", folder / "work"
    for each in (home, work):
        each.mkdir()
    (home / "config.toml").write_text(CONFIG.format(model=MODEL, port=port))
    flags = ["--skip-git-repo-check", "--sandbox", "danger-full-access"]
    process = await asyncio.create_subprocess_exec(
        CODEX, "exec", *flags, "Write a file.",
        cwd=work, env=os.environ | {"CODEX_HOME": str(home)}, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    told, _ = await asyncio.wait_for(process.communicate(), 60)
    return told.decode()


async def test_it_runs_a_command_and_tells_its_result(tmp_path: Path) -> None:
    service = Coder([])
    async with running_http(service) as http:
        told = await codex(http.port, tmp_path)
    for text in ("A command will do.", "I write.", "all well", "The file is there."):
        assert text in told
    assert (tmp_path / "work" / "written.txt").read_text() == "hello\n"
    messages: list[Any] = service.requests[-1].messages
    assistant, result = messages[-2:]
    assert (assistant.reasoning, assistant.content) == ("A command will do.", "I write.")
    assert [call.name for call in assistant.tool_calls] == ["exec_command"]
    assert result.tool_call_id == assistant.tool_calls[0].id
    assert "all well" in result.content
    assert [message.role for message in messages].count(pb.ROLE_SYSTEM) == 1
