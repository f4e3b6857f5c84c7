"""Parameters that /v1/responses refuses by name: OpenAI's that are not built and change the answer,
and those of the other paths that have another name here.

This is a table and nothing else, which `common.refuse_rows` reads.
"""

from __future__ import annotations

from frontend.api.openai.parameters.unsupported import row

_NOTHING_STORED = "nothing is stored; send the whole conversation as input"

RESPONSES_TABLE = (
    row("background", False, remedy="nothing is stored; read the answer, or its stream"),
    row("context_management", [], remedy="leave it out, and send less as input"),
    row("conversation", remedy=_NOTHING_STORED),
    row("moderation"),
    row("previous_response_id", remedy=_NOTHING_STORED),
    row("prompt", remedy="no templates are stored; send instructions and input"),
    row("text.verbosity", "medium"),
    row("truncation", "disabled", remedy="leave it out, and send less as input"),
    # of chat completions
    row("logprobs", False, remedy="send include: [message.output_text.logprobs]"),
    row("max_completion_tokens", remedy="send max_output_tokens"),
    row("max_tokens", remedy="send max_output_tokens"),
    row("messages", remedy="send input"),
    row("n", 1),
    row("reasoning_effort", remedy="send reasoning: {effort}"),
    row("response_format", remedy="send text: {format}"),
)
