"""Bounds of what one request may hold: of everything that a caller can repeat or make long.

This is a table and nothing else. The checks are where the fields are read, and bounds that follow
from the model (the context, the vocabulary) come from there. What is not listed is bounded by the
size of a message.
"""

from __future__ import annotations

import os

MAX_MESSAGE_BYTES = 8 << 20
"""Size of any message, in and out; the transports enforce it for incoming ones."""
MAX_BODY_BYTES = MAX_MESSAGE_BYTES
"""Size of an HTTP request's body, as it is sent and decoded."""
MAX_BODIES_BYTES = 256 << 20
"""Size of all HTTP bodies that are not complete yet, but for the first bytes of each:"""
UNCOUNTED_BODY_BYTES = 64 << 10
"""enough for most requests, so that large bodies keep no small one out."""

MAX_JSON_CONTAINERS = 20_000
"""Lists and objects of an HTTP body."""
MAX_JSON_VALUES = 300_000
"""Values of an HTTP body; most are token ids, and MAX_DETOKENIZE_IDS of them fit."""
MAX_NUMBER_CHARS = 250
"""Digits of a number in an HTTP body: to convert them takes a time that grows with their square."""

MAX_MESSAGE_FIELDS = 20_000
"""Fields of a gRPC message and of those inside it; a packed list of numbers is one field."""
UNCOUNTED_MESSAGE_BYTES = 32 << 10
"""A message up to this size is parsed whatever it holds: it takes 2 ms at most."""

# ---- the prompt ----
MAX_CHARS_PER_TOKEN = 256
"""Length that no token exceeds: a text of more than the context times this cannot fit."""
MAX_PROMPTS = 256
"""Prompts of one request to /v1/completions."""
MAX_MESSAGES = 1024
MAX_TOOL_CALLS = 128
"""Tool calls of one assistant's turn."""
MAX_NAME_CHARS = 256
"""Length of a tool call's id or name."""
MAX_TOOLS = 128
MAX_TOOLS_CHARS = 262_144
MAX_TEMPLATE_KWARGS_CHARS = 16_384

# ---- sampling ----
REPETITION_PENALTY_RANGE = (1e-3, 1e3)
"""Outside it penalised logits could leave the range of fp32."""
MAX_LOGIT_BIASES = 1024
MAX_LOGIT_BIAS = 100.0
MAX_LISTED_TOKEN_IDS = 4096
"""Length of allowed_token_ids and of bad_token_ids; every worker keeps both lists."""
MAX_BAD_WORDS = 1024
MAX_BAD_WORD_CHARS = 256
MAX_SAMPLES = 64

# ---- stops ----
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 256

# ---- output ----
MAX_TOP_LOGPROBS = 20
MAX_PROMPT_LOGPROBS_BYTES = 7 << 20
"""Size of a prompt's log-probabilities, which share one message with little else."""
MAX_TOKENS_PER_MESSAGE = 2048
"""Tokens in one message of a stream: each of MAX_CHARS_PER_TOKEN, they stay below the 4 MiB that
clients accept by default."""
MAX_LOGPROBS_PER_MESSAGE = 1024
"""Log-probabilities, with alternatives, in one message of a stream: others wait for 5 ms."""
MAX_ANSWER_BYTES = 64 << 20
"""Text and log-probabilities of an HTTP answer that is no stream."""

MAX_KEPT_TOKENS = 64
"""Special tokens that a text keeps by name."""

# ---- structured output ----
# A grammar takes long to compile where it has many rules, intersections or long literals; the
# compiler's own limits do not cover these.
MAX_SCHEMA_CHARS = 65_536
MAX_SCHEMA_STRING_CHARS = 4096
MAX_REGEX_CHARS = 8192
MAX_GRAMMAR_CHARS = 16_384
MAX_GRAMMAR_COLONS = 512
"""Colons in a grammar; each rule has one."""
MAX_GRAMMAR_SCHEMAS = 256
"""JSON schemas that a grammar uses by name; together they have MAX_SCHEMA_CHARS at most."""
MAX_GRAMMAR_INTERSECTIONS = 1
"""Signs & in a grammar, wherever they stand. Five expressions at once took the compiler hours."""
MAX_MERGED_PATTERNS = 4
"""Patterns and formats of a schema that puts subschemas together; 32 stopped the event loop."""
COMPILE_SECONDS = 5.0
COMPILE_STACK_BYTES = 256 << 20
"""Stack of the compiler, which recurses through references: the deepest schema within these bounds
needs more than the usual 8 MiB, beyond which the process would crash, and less than 32."""
MAX_COMPILES = max(2, min(4, (os.cpu_count() or 1) // 2))
"""Compilations at once, each on a core; one that takes too long goes on after its request was
refused."""
MAX_WAITING_COMPILES = 256
COMPILE_WAIT_SECONDS = 30.0
"""How many wait for these, and how long."""
MASK_SECONDS = 0.01
"""CPU time of the masks of one step for all samples of a request, on average;"""
MASK_BURST_SECONDS = 0.1
"""and what they may take beyond it: masks are made while every stream waits."""

# ---- errors ----
MAX_LIBRARY_ERROR_CHARS = 200
"""Length of a library's message that an error quotes: it may repeat parts of the request."""

# ---- other methods ----
MAX_TOKENIZE_CHARS = 1 << 20
MAX_DETOKENIZE_IDS = 1 << 18
MAX_ABORTED_IDS = 1024
MAX_KV_EVENT_READERS = 16
"""Readers of the prefix cache's changes; each may hold a snapshot of it while it reads that."""
