"""Names of the forms in which models write calls, and other servers' names for them."""

from __future__ import annotations

from collections.abc import Mapping

NAMES = (
    "hermes",
    "qwen3_coder",
    "deepseek_v3",
    "deepseek_v31",
    "glm45",
    "kimi_k2",
    "mistral",
    "llama3_json",
    "pythonic",
    "minimax_m2",
    "harmony",
)
ALIASES: Mapping[str, str] = {
    "qwen3_xml": "qwen3_coder",
    "qwen25": "hermes",
    "glm47": "glm45",
    "llama4_json": "llama3_json",
    "llama4_pythonic": "pythonic",
    "openai": "harmony",
    "gpt-oss": "harmony",
    "gpt_oss": "harmony",
}
AUTO, NONE = "auto", "none"
CHOICES = (AUTO, NONE, *NAMES, *ALIASES)
