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


def _row(name: str, *neutral: Any, only: Api | None = None, remedy: str = "") -> Unsupported:
    return Unsupported(name=name, neutral=neutral, only=only, remedy=remedy)


# A value that must be that of n.
SAME_AS_N = "n"
TABLE = (
    # OpenAI's
    _row("audio", only="chat"),
    _row("best_of", SAME_AS_N),
    _row("modalities", ["text"], only="chat"),
    _row("suffix", "", only="completions"),
    _row("verbosity", "medium", only="chat"),
    _row("web_search_options", only="chat"),
    # vLLM's
    _row("add_special_tokens", False, only="chat"),
    _row("add_special_tokens", True, only="completions", remedy="send token ids"),
    _row("cache_salt", remedy="--no-prefix-cache keeps prompts apart"),
    _row("chat_template", only="chat", remedy="the server has its own, or --chat-template's"),
    _row("documents", [], only="chat", remedy="send them in chat_template_kwargs"),
    _row("early_stopping", False),
    _row("echo", False, only="chat"),
    _row("guided_whitespace_pattern"),
    _row("kv_transfer_params", {}),
    _row("length_penalty", 1),
    _row("logits_processors", []),
    _row("media_io_kwargs", {}, only="chat"),
    _row("mm_processor_kwargs", {}, only="chat"),
    _row("prompt_embeds", only="completions"),
    _row("repetition_detection"),
    _row("return_token_ids", False),
    _row("return_tokens_as_token_ids", False),
    _row("structural_tag"),
    _row("structured_outputs.disable_additional_properties", False),
    _row("structured_outputs.disable_any_whitespace", False),
    _row("structured_outputs.structural_tag"),
    _row("structured_outputs.whitespace_pattern"),
    _row("thinking_token_budget", only="completions"),
    _row("truncate_prompt_tokens"),
    _row("use_beam_search", False),
    _row("vllm_xargs", {}),
    # SGLang's
    _row("custom_logit_processor"),
    _row("ebnf", remedy="send guided_grammar, in Lark's notation"),
    _row("json_schema", remedy="send response_format"),
    _row("lora_path"),
    _row("no_stop_trim", False, remedy="send include_stop_str_in_output"),
    _row("regex", remedy="send guided_regex"),
    _row("return_hidden_states", False),
    _row("stop_regex", []),
)
