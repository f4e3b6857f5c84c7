"""Which format a chat template teaches, and what a flag says instead."""

from __future__ import annotations

import pytest

from frontend.processing.tool_calls.format import NO_FORMAT
from frontend.processing.tool_calls.names import ALIASES, CHOICES, NAMES
from frontend.processing.tool_calls.table import FORMATS, find_format

# What templates write for a call, in the words of their source.
TEMPLATES = {
    "hermes": """{{ '<tool_call>\\n{"name": "' ~ c.name ~ '", "arguments": ' ~ c.arguments }}""",
    "qwen3_coder": "{{ '<tool_call>\\n<function=' + c.name + '>\\n' }}{{ '<parameter=' + k }}",
    "deepseek_v3": "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + t['type'] + '```json' }}",
    "deepseek_v31": "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + c['name'] }}",
    "glm45": "{{ '\\n<tool_call>' + c.name }}<arg_key>{{ k }}</arg_key><arg_value>",
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>{{ c['id'] }}",
    "mistral": "{{- '[TOOL_CALLS][' }}",
    "llama3_json": """{{ '{"name": "' + c.name + '", ' }}{{ '"parameters": ' }}<|python_tag|>""",
    "pythonic": "Use exact format: [func_name1(param1=value1), func_name2(...)]",
    "harmony": "{{ '<|start|>assistant<|channel|>commentary<|message|>' }}",
    "minimax_m2": "{{ '<minimax:tool_call>' }}{{ '<invoke name=' + quoted }}",
}


def test_every_format_has_its_names() -> None:
    assert set(FORMATS) == set(NAMES) == set(TEMPLATES)
    assert set(ALIASES.values()) <= set(NAMES)
    for name in CHOICES[2:]:
        assert find_format(name, "", {}, []).name == ALIASES.get(name, name)


@pytest.mark.parametrize("name", FORMATS)
def test_a_template_tells_its_format(name: str, caplog: pytest.LogCaptureFixture) -> None:
    source = f"{{% for tool in tools %}}{{% endfor %}}{TEMPLATES[name]}"
    assert find_format("auto", source, {}, []).name == name
    assert find_format("none", source, {}, []) is NO_FORMAT
    assert not caplog.records


@pytest.mark.parametrize(("source", "warns"), [("{{ tools | tojson }}", True), ("a stool", False)])
def test_a_format_that_is_not_known_is_warned_of(
    source: str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_format("auto", source, {}, []) is NO_FORMAT
    assert ["--tool-call-parser" in each.message for each in caplog.records] == [True] * warns


def test_tags_that_are_special_tokens_are_kept() -> None:
    special = {"[TOOL_CALLS]": 5, "[ARGS]": 9, "</s>": 2}
    assert find_format("mistral", "", special, special).kept_tokens == ("[TOOL_CALLS]", "[ARGS]")
    assert find_format("hermes", "", special, special).kept_tokens == ()


def test_without_a_format_all_is_content() -> None:
    reader = NO_FORMAT.reader({})
    assert reader.push("") == []
    assert reader.num_calls == 0
