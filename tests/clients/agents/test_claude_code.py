"""Claude Code, whose model is played: it shall run a command and hear what came of it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import MODEL
from tests.frontend.http_fakes import ScriptedService, running_http, says

CLAUDE = Path(__file__).parent / "node_modules" / ".bin" / "claude"
COMMAND = "echo all well"

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not CLAUDE.exists(), reason="claude is not installed (docs/messages.md)"),
]


class Coder(ScriptedService):
    """Runs a command, and ends when it has its result."""

    async def _events(self, request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateResponse]:
        if any(message.role == pb.ROLE_TOOL for message in self.requests[-1].messages):
            self.deltas = [pb.Delta(reasoning="It worked."), says("It said so.")]
        else:
            arguments = {"command": COMMAND, "description": "Say it"}
            call = json.dumps({"name": "Bash", "arguments": arguments})
            told = f"I ask.<tool_call>{call}</tool_call>"
            self.deltas = [pb.Delta(reasoning="A command will do."), says(told)]
        async for event in super()._events(request):
            yield event


async def claude(port: int, folder: Path) -> dict[str, Any]:
    """The result that it prints."""
    home, work = folder / "home", folder / "work"
    for each in (home, work):
        each.mkdir()
    settings = {
        "HOME": str(home),
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
        "ANTHROPIC_AUTH_TOKEN": "none",
        "ANTHROPIC_MODEL": MODEL,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    own = {name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC_")}
    process = await asyncio.create_subprocess_exec(
        CLAUDE, "-p", "Is all well?", "--allowedTools", "Bash(echo:*)", "--output-format", "json",
        cwd=work, env=own | settings, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    told, _ = await asyncio.wait_for(process.communicate(), 60)
    result: dict[str, Any] = json.loads(told)
    return result


async def test_it_runs_a_command_and_tells_its_result(tmp_path: Path) -> None:
    service = Coder([])
    async with running_http(service) as http:
        result = await claude(http.port, tmp_path)
    assert (result["is_error"], result["result"]) == (False, "It said so.")
    assert result["num_turns"] == 2
    messages: list[Any] = service.requests[-1].messages
    (assistant,) = (each for each in messages if each.role == pb.ROLE_ASSISTANT)
    (tool,) = (each for each in messages if each.role == pb.ROLE_TOOL)
    assert (assistant.reasoning, assistant.content) == ("A command will do.", "I ask.")
    assert [call.name for call in assistant.tool_calls] == ["Bash"]
    assert tool.tool_call_id == assistant.tool_calls[0].id
    assert tool.content == "all well"
