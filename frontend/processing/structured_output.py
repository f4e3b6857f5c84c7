"""Structured output: compiles a constraint to a matcher, which masks the tokens of each draw.

Owns the use of llguidance, its limits, and the checks of `switchyard.v1.Constraint`. Knows nothing
of requests, queues or steps. V is the model's vocabulary, which may be larger than its tokenizer's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from frontend.bounds import (
    COMPILE_SECONDS,
    COMPILE_STACK_BYTES,
    MAX_COMPILES,
    MAX_GRAMMAR_CHARS,
    MAX_GRAMMAR_COLONS,
    MAX_GRAMMAR_INTERSECTIONS,
    MAX_LIBRARY_ERROR_CHARS,
    MAX_REGEX_CHARS,
    MAX_SCHEMA_CHARS,
)
from frontend.errors import Code, RequestError, invalid_field, too_many
from frontend.processing.schema_bounds import check_schema
from frontend.processing.schema_edit import without_unknown_formats
from switchyard.v1 import inference_pb2 as pb

RETRY_AFTER_SECONDS = 1.0
JSON_OBJECT_SCHEMA = '{"type": "object"}'
# What may stand between the parts of a JSON text: with as much as JSON allows, small models never
# get to the end. A space, or a line's end and its indentation, is how people and models write it.
JSON_WHITESPACE = r"\x20|\r?\n[\x20\x09]{0,32}"
# A mask is computed on the event loop: rows of 500 items, as 120 optional properties of one object
# need them, took it 4.5 ms at most, rows of 2,000 took 245 ms. The limits of a step's lexer and
# items are some milliseconds, too. The others bound compiling, which has a thread of its own.
_LIMITS = LLParserLimits(
    max_items_in_row=500,
    step_lexer_fuel=70_000,
    step_max_items=20_000,
    initial_lexer_fuel=500_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)

# llguidance's names of why it stopped, in words.
_NOTHING_FOLLOWS = "no text can follow that it allows; name a language with finite texts"
_WORDS: Mapping[str, str] = {
    "": _NOTHING_FOLLOWS,
    "NoExtension": _NOTHING_FOLLOWS,
    "NoExtensionBias": _NOTHING_FOLLOWS,
    "LexerTooComplex": "its expressions are too much work; simplify it",
    "ParserTooComplex": "its rules are too much work; simplify it",
}

_T = TypeVar("_T")


class GrammarMatcher:
    """Follows one sequence through a language; a `frontend.requests.request.Matcher`.

    The mask is computed when the token before it is known, so that a dead end in the grammar
    fails one request and not the step.

    Args:
        inner: where the sequence stands.
        num_bytes: size of a mask: four bytes for each 32 tokens of V, rounded up.

    Raises:
        RequestError: INVALID_ARGUMENT, nothing fits the language.
    """

    __slots__ = ("_inner", "_mask", "_num_bytes")

    def __init__(self, inner: LLMatcher, num_bytes: int) -> None:
        self._inner = inner
        self._num_bytes = num_bytes
        self._mask = self._next_mask()

    def copy(self) -> GrammarMatcher:
        """Another matcher at the same place."""
        return GrammarMatcher(self._inner.deep_copy(), self._num_bytes)

    def mask(self) -> bytes:
        """Tokens that may come next: bit t % 32 of little-endian word t / 32 allows token t."""
        return self._mask

    def accept(self, token_id: int) -> None:
        """Goes on past a token that the last mask allowed, and that is no end token.

        Raises:
            RequestError: INVALID_ARGUMENT: nothing can follow, or what can is too much work to
                find out; INTERNAL: the token was not allowed.
        """
        if not self._mask[token_id >> 3] >> (token_id & 7) & 1:
            raise RequestError(
                Code.INTERNAL, f"token {token_id} was drawn outside the mask", reason="INTERNAL"
            )
        self._inner.consume_token(token_id)  # a failure stays, and the next mask meets it
        self._mask = self._next_mask()

    @property
    def is_stopped(self) -> bool:
        """Whether the language has ended: only an end token may come next."""
        return bool(self._inner.is_stopped())

    def _next_mask(self) -> bytes:
        mask: bytes = self._inner.compute_bitmask()[: self._num_bytes]
        if self._inner.is_error() or not mask.strip(b"\0"):
            complaint = _brief(self._inner.get_error() or "")
            raise invalid_field(
                "constraint",
                f"cannot be kept to here: {_WORDS.get(complaint, complaint)}",
                reason="CONSTRAINT_FAILED",
            )
        return mask


class Compiler:
    """Makes matchers for one model. The first call also reads its vocabulary: 2 s for 130,000
    tokens.

    Args:
        tokenizer_json: gives the tokenizer in the form of the tokenizers library, or None where it
            has none.
        vocab_size: V.
        eos_token_ids: the model's end tokens, which a mask allows where the language may end.
    """

    def __init__(
        self,
        tokenizer_json: Callable[[], str | None],
        *,
        vocab_size: int,
        eos_token_ids: Sequence[int],
    ) -> None:
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._num_bytes = (vocab_size + 31) // 32 * 4
        self._vocabulary: LLTokenizer | None = None
        self._vocabulary_lock = threading.Lock()
        self._num_compiling = 0

    async def matchers(self, constraint: pb.Constraint, count: int) -> list[GrammarMatcher]:
        """``count`` matchers of one language, each at its beginning.

        Raises:
            RequestError: INVALID_ARGUMENT with the field's path, FAILED_PRECONDITION where the
                model cannot be constrained, RESOURCE_EXHAUSTED while too many are compiled.
        """
        field = f"constraint.{constraint.WhichOneof('language')}"
        grammar = _grammar(constraint, field)
        if not self._eos_token_ids:
            raise _unconstrainable("has no end token")
        if self._num_compiling >= MAX_COMPILES:
            raise RequestError(
                Code.RESOURCE_EXHAUSTED,
                f"{self._num_compiling} constraints are being compiled; try again in a moment",
                reason="TOO_MANY_CONSTRAINTS",
                retry_after=RETRY_AFTER_SECONDS,
            )
        if self._vocabulary is None:
            await self._in_thread(self._read_vocabulary)
        try:
            async with asyncio.timeout(COMPILE_SECONDS):
                return await self._in_thread(lambda: self._compile(grammar, count, field))
        except TimeoutError as error:
            raise invalid_field(
                field, f"takes more than {COMPILE_SECONDS:g} s to compile; simplify it"
            ) from error

    def _compile(self, grammar: str, count: int, field: str) -> list[GrammarMatcher]:
        inner = LLMatcher(self._read_vocabulary(), grammar, log_level=0, limits=_LIMITS)
        if inner.is_error():
            raise invalid_field(field, f"is refused: {_brief(inner.get_error())}")
        first = GrammarMatcher(inner, self._num_bytes)
        return [first, *(first.copy() for _ in range(count - 1))]

    def _read_vocabulary(self) -> LLTokenizer:
        """The tokenizer as llguidance has it, read once."""
        with self._vocabulary_lock:
            if self._vocabulary is None:
                text = self._tokenizer_json()
                if text is None:
                    raise _unconstrainable("has no tokenizer of the tokenizers library")
                try:
                    self._vocabulary = LLTokenizer(
                        text, n_vocab=self._vocab_size, eos_token=self._eos_token_ids
                    )
                except ValueError as error:
                    raise _unconstrainable(_brief(str(error))) from error
            return self._vocabulary

    async def _in_thread(self, function: Callable[[], _T]) -> _T:
        """Runs ``function`` in a thread that does not hold up the end of the process."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_T] = loop.create_future()

        def tell(result: _T | None, error: Exception | None) -> None:
            self._num_compiling -= 1
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def work() -> None:
            result, failure = None, None
            try:
                result = function()
            except Exception as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(tell, result, failure)

        usual = threading.stack_size(COMPILE_STACK_BYTES)
        try:
            threading.Thread(target=work, name="constraint", daemon=True).start()
        finally:
            threading.stack_size(usual)
        self._num_compiling += 1
        return await done


def _grammar(constraint: pb.Constraint, field: str) -> str:
    """llguidance's form of a constraint.

    Raises:
        RequestError: INVALID_ARGUMENT for what is too long, or no JSON.
    """
    match constraint.WhichOneof("language"):
        case "json_schema":
            if len(constraint.json_schema) > MAX_SCHEMA_CHARS:
                raise too_many(field, len(constraint.json_schema), MAX_SCHEMA_CHARS, "characters")
            return _schema_grammar(constraint.json_schema, field)
        case "json_object":
            if not constraint.json_object:
                raise invalid_field(field, "is false; set it, or another language, or none")
            return _schema_grammar(JSON_OBJECT_SCHEMA, field)
        case "regex":
            if len(constraint.regex) > MAX_REGEX_CHARS:
                raise too_many(field, len(constraint.regex), MAX_REGEX_CHARS, "characters")
            return str(LLMatcher.grammar_from_regex(constraint.regex))
        case "grammar":
            return _lark_grammar(constraint.grammar, field)
        case _:
            raise invalid_field(
                "constraint", "names no language; set one of them, or no constraint"
            )


def _lark_grammar(text: str, field: str) -> str:
    if len(text) > MAX_GRAMMAR_CHARS:
        raise too_many(field, len(text), MAX_GRAMMAR_CHARS, "characters")
    if text.count(":") > MAX_GRAMMAR_COLONS:
        raise too_many(field, text.count(":"), MAX_GRAMMAR_COLONS, "colons")
    if text.count("&") > MAX_GRAMMAR_INTERSECTIONS:
        raise too_many(field, text.count("&"), MAX_GRAMMAR_INTERSECTIONS, "signs &")
    if "%json" in text:
        raise invalid_field(field, "has a %json part; send the schema as json_schema")
    # Not by grammar_from_lark, which passes on what is JSON, with schemas that nobody has checked.
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def _schema_grammar(text: str, field: str) -> str:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid_field(field, "is not JSON") from error
    if not isinstance(schema, dict | bool):
        raise invalid_field(field, "is no JSON schema, which is an object or true")
    try:
        schema = without_unknown_formats(schema)
    except RecursionError as error:
        raise invalid_field(field, "is nested too deep; send a flatter schema") from error
    check_schema(schema, field)
    try:
        return str(
            LLMatcher.grammar_from_json_schema(
                json.dumps(schema), defaults={"whitespace_pattern": JSON_WHITESPACE}
            )
        )
    except (ValueError, RecursionError) as error:
        raise invalid_field(field, f"is refused: {_brief(str(error))}") from error


def _brief(complaint: str) -> str:
    """llguidance's words on one line, without its state."""
    words = complaint.partition("<state>")[0].replace("<non-verbose/>", "")
    return " ".join(words.split())[:MAX_LIBRARY_ERROR_CHARS]


def _unconstrainable(why: str) -> RequestError:
    return RequestError(
        Code.FAILED_PRECONDITION,
        f"this model's output cannot be held to a language: it {why}; leave constraint unset",
        reason="NO_CONSTRAINTS",
        field="constraint",
        mentions={"constraint": "constraint"},
    )


def choice_grammar(choices: Sequence[str]) -> str:
    """A grammar in Lark's notation whose language is exactly these texts."""
    return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
