"""All formats by name, and which one a chat template teaches.

Knows a template by what it writes for a call.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping

from frontend.processing.tool_calls.call_reader import TaggedFormat
from frontend.processing.tool_calls.format import NO_FORMAT, ToolFormat
from frontend.processing.tool_calls.formats.deepseek import DEEPSEEK_V3, DEEPSEEK_V31
from frontend.processing.tool_calls.formats.glm45 import GLM45
from frontend.processing.tool_calls.formats.harmony import HARMONY
from frontend.processing.tool_calls.formats.hermes import HERMES
from frontend.processing.tool_calls.formats.kimi_k2 import KIMI_K2
from frontend.processing.tool_calls.formats.llama_json import LLAMA_JSON
from frontend.processing.tool_calls.formats.minimax_m2 import MINIMAX_M2
from frontend.processing.tool_calls.formats.mistral import MISTRAL
from frontend.processing.tool_calls.formats.pythonic import PYTHONIC
from frontend.processing.tool_calls.formats.qwen3_coder import QWEN3_CODER
from frontend.processing.tool_calls.names import ALIASES, AUTO, NONE

logger = logging.getLogger(__name__)

FORMATS: Mapping[str, TaggedFormat] = {
    each.name: each
    for each in (
        HERMES,
        QWEN3_CODER,
        DEEPSEEK_V3,
        DEEPSEEK_V31,
        GLM45,
        KIMI_K2,
        MISTRAL,
        LLAMA_JSON,
        PYTHONIC,
        MINIMAX_M2,
        HARMONY,
    )
}

# What templates of a format have, all of it; the first format counts that a template fits.
_SIGNS: tuple[tuple[TaggedFormat, tuple[str, ...]], ...] = (
    (HARMONY, ("<|channel|>", "<|message|>")),
    (KIMI_K2, ("<|tool_calls_section_begin|>",)),
    (MINIMAX_M2, ("<minimax:tool_call>", "<invoke name=")),
    (DEEPSEEK_V3, ("<｜tool▁call▁begin｜>", "```json")),
    (DEEPSEEK_V31, ("<｜tool▁call▁begin｜>",)),
    (GLM45, ("<tool_call>", "<arg_key>")),
    (QWEN3_CODER, ("<tool_call>", "<function=")),
    (HERMES, ("<tool_call>", "arguments")),
    (MISTRAL, ("[TOOL_CALLS]",)),
    (LLAMA_JSON, ('"parameters": ', '{"name": ')),
    (PYTHONIC, ("func_name1(",)),
)
_TOOLS = re.compile(r"\btools\b")


def find_format(
    parser: str, template: str, special: Mapping[str, int], added: Collection[str]
) -> ToolFormat:
    """The format of a model's calls; warns where a template shows tools, and it is not known.

    Args:
        parser: one of `names.CHOICES`.
        template: the chat template's source.
        special: ids of the tokenizer's special tokens by their text.
        added: texts of all its added tokens.
    """
    if parser == NONE:
        return NO_FORMAT
    if parser != AUTO:
        return FORMATS[ALIASES.get(parser, parser)].with_tokens(special, added)
    for each, signs in _SIGNS:
        if all(sign in template for sign in signs):
            return each.with_tokens(special, added)
    if _TOOLS.search(template):
        logger.warning(
            "the chat template shows tools, and the form of the calls that it teaches is not "
            "known: calls will be content; pass --tool-call-parser NAME"
        )
    return NO_FORMAT
