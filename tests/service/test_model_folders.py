"""Folders whose files disagree with each other, served."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from demo import CHECKPOINT
from switchyard.client import Client
from tests.server import Server

pytestmark = pytest.mark.processes

SUM: list[Any] = [{"role": "user", "content": "What is 17 + 25?"}]
END_OF_TURN = 2
OTHER = 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the demo model whose configs name another end token than its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "model"
    shutil.copytree(CHECKPOINT, folder)
    for name in ("config.json", "generation_config.json"):
        said = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**said, "eos_token_id": OTHER}))
    flags = [str(folder), "--device", "cpu", "--max-batch-size", "8", "--http-port", "0"]
    with Server(tmp_path_factory.mktemp("server"), *flags) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    base = f"http://{server.http_address}/v1"
    with openai.OpenAI(base_url=base, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_a_chat_ends_at_the_tokenizer_s_end_token(server: Server, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="model", messages=SUM, max_tokens=40)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("42", "stop")
    with Client(server.address) as other:
        assert list(other.model_info().eos_token_ids) == [OTHER, END_OF_TURN]


def test_options_about_the_end_mean_both_end_tokens(client: openai.OpenAI) -> None:
    """What is suppressed, allowed and ignored; no worker is lost over it."""

    def ended(**options: Any) -> tuple[int, str | None]:
        answer = client.chat.completions.create(
            model="model", messages=SUM, max_tokens=20, extra_body=options
        )
        assert answer.usage is not None
        return answer.usage.completion_tokens, answer.choices[0].finish_reason

    assert ended() == (3, "stop")
    tokens, _ = ended(min_tokens=10)
    assert tokens >= 10
    assert ended(ignore_eos=True) == (20, "length")
    assert ended(allowed_token_ids=[END_OF_TURN]) == (1, "stop")
