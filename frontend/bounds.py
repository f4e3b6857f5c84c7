"""How much one request may hold: a bound for everything that a caller can repeat or make long.

A table to read, and nothing else: the checks are where the fields are read, and the bounds that
follow from the model (the context, the vocabulary) are its own. What is not here is bounded by
the size of a message.
"""

from __future__ import annotations

MAX_MESSAGE_BYTES = 8 << 20
"""Of any message, in and out; the transports enforce it for what comes in."""
MAX_BODY_BYTES = MAX_MESSAGE_BYTES
"""Of an HTTP request's body."""

# ---- the prompt ----
MAX_CHARS_PER_TOKEN = 256
"""No vocabulary has longer tokens, so a text of more than the context times this cannot fit."""
MAX_PROMPTS = 256
"""Of one request to /v1/completions."""
MAX_MESSAGES = 1024
MAX_TOOL_CALLS = 128
"""Of one assistant's turn."""
MAX_NAME_CHARS = 256
"""Of a tool call's id or name."""
MAX_TOOLS = 128
MAX_TOOLS_CHARS = 262_144
MAX_TEMPLATE_KWARGS_CHARS = 16_384

# ---- sampling ----
REPETITION_PENALTY_RANGE = (1e-3, 1e3)
"""Beyond it penalised logits could leave the range of fp32."""
MAX_LOGIT_BIASES = 1024
MAX_LOGIT_BIAS = 100.0
MAX_LISTED_TOKEN_IDS = 4096
"""Of allowed_token_ids and bad_token_ids each; every worker gets them and keeps them."""
MAX_SAMPLES = 64

# ---- stops ----
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 256

# ---- output ----
MAX_TOP_LOGPROBS = 20
MAX_PROMPT_LOGPROBS_BYTES = 7 << 20
"""They travel in one message, which holds little else."""
MAX_TOKENS_PER_MESSAGE = 2048
"""Of a stream: with all alternatives, and each of MAX_CHARS_PER_TOKEN, they stay below the 4 MiB
that clients take unless told otherwise."""

# ---- structured output ----
# What takes a grammar's compiler long is the number of its rules and of its intersections, and a
# literal's length; its own limits do not cover these.
MAX_SCHEMA_CHARS = 65_536
MAX_SCHEMA_STRING_CHARS = 4096
MAX_REGEX_CHARS = 8192
MAX_GRAMMAR_CHARS = 16_384
MAX_GRAMMAR_COLONS = 512
"""Each rule has one."""
MAX_GRAMMAR_INTERSECTIONS = 1
"""Signs of it, wherever they stand. Five expressions at once took the compiler hours."""
MAX_MERGED_PATTERNS = 4
"""Patterns and formats of a schema that puts subschemas together; 32 stopped the event loop."""
COMPILE_SECONDS = 5.0
COMPILE_STACK_BYTES = 256 << 20
"""The compiler recurses through references: the deepest that these bounds let in needs more than
the usual 8 MiB, whose end would be the process's, and less than 32."""
MAX_COMPILES = 4
"""At once; one that takes too long goes on behind its request's back until it is done."""

# ---- errors ----
MAX_LIBRARY_ERROR_CHARS = 200
"""Of what a library says of a request: it may repeat parts of it."""

# ---- other methods ----
MAX_TOKENIZE_CHARS = 1 << 20
MAX_DETOKENIZE_IDS = 1 << 18
MAX_ABORTED_IDS = 1024
