"""Chat templates of the usual shapes, and tokenizers that have them."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from frontend.processing.tokenizer import Tokenizer
from tests.frontend.processing import qwen_like

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3's: thoughts come apart or are found in an assistant's content, and are kept after the
# user's last turn.
QWEN = """
{%- set start, end = '<|im_start|>', '<|im_end|>\\n' %}
{%- if tools %}
    {{- start + 'system\\n' + '# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{% endfor %}
    {{- '\\n</tools>\\nCall one within <tool_call></tool_call>.' + end }}
{%- endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages %}
    {%- if m.role == 'user' and not (m.content.startswith('<tool_response>')
            and m.content.endswith('</tool_response>')) %}
        {%- set ns.last = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- set content, thoughts = m.content, '' %}
        {%- if m.reasoning_content is string %}
            {%- set thoughts = m.reasoning_content.strip('\\n') %}
        {%- elif '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- start + m.role + '\\n' }}
        {%- if loop.index0 > ns.last and thoughts %}
            {{- '<think>\\n' + thoughts + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in m.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- end }}
    {%- elif m.role == 'tool' %}
        {{- start + 'user\\n<tool_response>\\n' + m.content + '\\n</tool_response>' + end }}
    {%- else %}
        {{- start + m.role + '\\n' + m.content + (note or '') + end }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- start + 'assistant\\n' }}{% if thinks %}{{- '<think>\\n' }}{% endif %}
{%- endif %}
"""
# As Qwen3-Coder's: tools and calls are tags, and there are no thoughts.
CODER = """
{%- set start, end = '<|im_start|>', '<|im_end|>\\n' %}
{%- if tools %}
    {{- start + 'system\\n# Tools' }}
    {%- for tool in tools %}
        {%- for name, said in (tool.function or tool) | items %}
            {{- '\\n<' ~ name ~ '>' }}{{- said if said is string else said | tojson }}
            {{- '</' ~ name ~ '>' }}
        {%- endfor %}
    {%- endfor %}
    {{- '\\nCall as <tool_call>\\n<function=a>\\n</function>\\n</tool_call>.' + end }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- start + 'user\\n' }}
        {%- endif %}
        {{- '<tool_response>\\n' + m.content + '\\n</tool_response>\\n' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- end }}{%- endif %}
    {%- else %}
        {{- start + m.role + '\\n' + m.content }}
        {%- for call in m.tool_calls or [] %}
            {{- '\\n<tool_call>\\n<function=' + call.function.name + '>\\n' }}
            {%- for name, value in call.function.arguments | items %}
                {{- '<parameter=' + name + '>\\n' }}
                {{- value if value is string else value | tojson }}{{- '\\n</parameter>\\n' }}
            {%- endfor %}
            {{- '</function>\\n</tool_call>' }}
        {%- endfor %}
        {{- end }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- start + 'assistant\\n' }}{%- endif %}
"""
# As those of gpt-oss: messages of channels, thoughts as 'thinking', one call a turn.
HARMONY = """
{%- set ns = namespace(called='') %}
{{- '<|start|>system<|message|>Reasoning: ' ~ (reasoning_effort or 'medium') ~ '<|end|>' }}
{%- if tools %}
    {{- '<|start|>developer<|message|># Tools\\nnamespace functions {' }}
    {%- for tool in tools %}{{- '\\n' ~ ((tool.function or tool) | tojson) }}{% endfor %}
    {{- '\\n}<|end|>' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.tool_calls %}
        {%- set call = m.tool_calls[0].function %}
        {%- set ns.called = call.name %}
        {%- if m.content and m.thinking %}
            {{- raise_exception('content beside thinking') }}
        {%- endif %}
        {%- if m.content or m.thinking %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' ~ (m.content or m.thinking) }}
            {{- '<|end|>' }}
        {%- endif %}
        {{- '<|start|>assistant to=functions.' ~ call.name }}
        {{- '<|channel|>commentary json<|message|>' ~ (call.arguments | tojson) ~ '<|call|>' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|start|>assistant<|channel|>final<|message|>' ~ m.content }}
        {{- '<|return|>' if loop.last else '<|end|>' }}
    {%- elif m.role == 'tool' %}
        {{- '<|start|>functions.' ~ ns.called ~ ' to=assistant<|channel|>commentary<|message|>' }}
        {{- (m.content | tojson) ~ '<|end|>' }}
    {%- else %}
        {{- '<|start|>' ~ m.role ~ '<|message|>' ~ m.content ~ '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}
"""
HARMONY_TOKENS = (
    "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>",
)  # fmt: skip
# A token put together of pieces, and one from the tokenizer's own.
PIECES = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m.content }}{{ eos_token }}"
    "{% endfor %}{{ '<|' + 'assistant' + '|>' }}"
)
# What looks for a token in a text that holds the template's own.
SELF_SEEKING = (
    "{% for m in messages %}{% set text = '<think></think>' ~ m.content %}"
    "{% if '</think>' in text %}<|im_start|>{{ text }}{% endif %}{% endfor %}"
)


def wrapped(template: str, *more: str) -> PreTrainedTokenizerFast:
    """transformers' tokenizer, with more special tokens."""
    library = qwen_like.library_tokenizer()
    library.add_special_tokens(list(more))
    return PreTrainedTokenizerFast(
        tokenizer_object=library,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=template,
    )


def tokenizer_of(template: str, *more: str) -> Tokenizer:
    return Tokenizer(wrapped(template, *more))
