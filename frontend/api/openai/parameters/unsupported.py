"""Parameters of OpenAI, vLLM and SGLang that change the answer and are not built: refused by name.

This is a table and nothing else, which `common.refuse_unsupported` reads. A value that changes
nothing is taken.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Api = Literal["chat", "completions"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unsupported:
    """One parameter.

    Attributes:
        neutral: values that ask for what is done anyway; null is one of any parameter.
        only: the API that has it; None: both.
        remedy: what to do instead, if not to leave it out.
    """

    name: str
    neutral: tuple[Any, ...] = ()
    only: Api | None = None
    remedy: str = ""


def row(name: str, *neutral: Any, only: Api | None = None, remedy: str = "") -> Unsupported:
    """A row of a table."""
    return Unsupported(name=name, neutral=neutral, only=only, remedy=remedy)


# A value that must be that of n.
SAME_AS_N = "n"
TABLE = (
    # OpenAI's
    row("audio", only="chat"),
    row("best_of", SAME_AS_N),
    row("modalities", ["text"], only="chat"),
    row("suffix", "", only="completions"),
    row("verbosity", "medium", only="chat"),
    row("web_search_options", only="chat"),
    # vLLM's
    row("add_special_tokens", False, only="chat"),
    row("add_special_tokens", True, only="completions", remedy="send token ids"),
    row("cache_salt", remedy="--no-prefix-cache keeps prompts apart"),
    row("chat_template", only="chat", remedy="the server has its own, or --chat-template's"),
    row("documents", [], only="chat", remedy="send them in chat_template_kwargs"),
    row("early_stopping", False),
    row("echo", False, only="chat"),
    row("guided_whitespace_pattern"),
    row("kv_transfer_params", {}),
    row("length_penalty", 1),
    row("logits_processors", []),
    row("media_io_kwargs", {}, only="chat"),
    row("mm_processor_kwargs", {}, only="chat"),
    row("prompt_embeds", only="completions"),
    row("repetition_detection"),
    row("return_token_ids", False),
    row("return_tokens_as_token_ids", False),
    row("structural_tag"),
    row("structured_outputs.disable_additional_properties", False),
    row("structured_outputs.disable_any_whitespace", False),
    row("structured_outputs.structural_tag"),
    row("structured_outputs.whitespace_pattern"),
    row("thinking_token_budget", only="completions"),
    row("truncate_prompt_tokens"),
    row("use_beam_search", False),
    row("vllm_xargs", {}),
    # SGLang's
    row("custom_logit_processor"),
    row("ebnf", remedy="send guided_grammar, in Lark's notation"),
    row("json_schema", remedy="send response_format"),
    row("lora_path"),
    row("no_stop_trim", False, remedy="send include_stop_str_in_output"),
    row("regex", remedy="send guided_regex"),
    row("return_hidden_states", False),
    row("stop_regex", []),
)
