"""Structured output: compiles a constraint to a matcher, which masks the tokens of each draw.

Owns the use of llguidance and its limits. Knows nothing of requests, queues or steps. V is the
model's vocabulary, which may be larger than its tokenizer's.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import tokenizers
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from frontend.bounds import (
    COMPILE_SECONDS,
    COMPILE_STACK_BYTES,
    MASK_BURST_SECONDS,
    MASK_SECONDS,
)
from frontend.errors import Code, RequestError, invalid_field
from frontend.processing.constraints.compile_slots import CompileSlots
from frontend.processing.constraints.grammars import brief, compiled_form
from frontend.processing.constraints.triggered import TriggeredMatcher
from frontend.processing.constraints.vocabulary import Vocabulary
from frontend.requests.request import Matcher
from switchyard.v1 import inference_pb2 as pb

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


class MaskTime:
    """CPU time that the masks of one request took.

    Args:
        num_samples: that share it; a step makes one mask for each.
    """

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples
        self._num_masks, self._seconds = 0, 0.0

    def add(self, seconds: float) -> None:
        """Count one mask.

        Raises:
            RequestError: INVALID_ARGUMENT, they take too long.
        """
        self._num_masks += 1
        self._seconds += seconds
        num_steps = self._num_masks / self._num_samples
        if self._seconds > MASK_BURST_SECONDS + MASK_SECONDS * num_steps:
            raise _failed(
                f"its masks take {1e3 * self._seconds / num_steps:.0f} ms a token for "
                f"{self._num_samples} samples, and may take {1e3 * MASK_SECONDS:.0f}; simplify it"
            )


class GrammarMatcher:
    """Follows one sequence through a language; a `frontend.requests.request.Matcher`.

    The mask is computed when the token before it is known, so that a dead end in the grammar
    fails one request and not the step.

    Args:
        inner: where the sequence stands.
        num_bytes: size of a mask: four bytes for each 32 tokens of V, rounded up.
        mask_time: of all masks but the first, which is made with the matcher.

    Raises:
        RequestError: INVALID_ARGUMENT, nothing fits the language.
    """

    __slots__ = ("_inner", "_mask", "_mask_time", "_num_bytes")

    def __init__(self, inner: LLMatcher, num_bytes: int, mask_time: MaskTime) -> None:
        self._inner = inner
        self._num_bytes = num_bytes
        self._mask_time = mask_time
        self._mask = self._next_mask()

    def copy(self) -> GrammarMatcher:
        """Another matcher at the same place, whose masks' time is counted with this one's."""
        return GrammarMatcher(self._inner.deep_copy(), self._num_bytes, self._mask_time)

    def mask(self) -> bytes:
        """Tokens that may come next: bit t % 32 of little-endian word t / 32 allows token t."""
        return self._mask

    def mask_ahead(self, num_unknown: int) -> None:
        """Every mask depends on the token before."""

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
        start = time.thread_time()
        self._inner.consume_token(token_id)  # a failure stays, and the next mask meets it
        self._mask = self._next_mask()
        self._mask_time.add(time.thread_time() - start)

    def advance(self, token_ids: Sequence[int]) -> int:
        """Goes on past the first of the tokens that the language allows; returns how many.

        Raises:
            RequestError: INVALID_ARGUMENT, as `accept`.
        """
        # One by one, since the library keeps the interpreter's lock for all that it is given.
        refused = (
            place
            for place, token in enumerate(token_ids)
            if not self._inner.try_consume_tokens([token])
        )
        num_allowed = next(refused, len(token_ids))
        self._mask = self._next_mask()
        return num_allowed

    @property
    def is_stopped(self) -> bool:
        """Whether the language has ended: only an end token may come next."""
        return bool(self._inner.is_stopped())

    def _next_mask(self) -> bytes:
        mask: bytes = self._inner.compute_bitmask()[: self._num_bytes]
        if self._inner.is_error() or not mask.strip(b"\0"):
            complaint = brief(self._inner.get_error() or "")
            raise _failed(_WORDS.get(complaint, complaint))
        return mask


class Compiler:
    """Makes matchers for one model.

    Args:
        tokenizer: as the tokenizers library has it; None where it has none.
        vocab_size: V.
        eos_token_ids: the model's end tokens, which a mask allows where the language may end.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer | None,
        *,
        vocab_size: int,
        eos_token_ids: Sequence[int],
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._num_bytes = (vocab_size + 31) // 32 * 4
        self._vocabulary: tuple[LLTokenizer, Mapping[str, int]] | None = None
        self._vocabulary_lock = threading.Lock()
        self._slots = CompileSlots()

    async def prepare(self) -> None:
        """Reads the vocabulary, which the first matcher needs: 2 s for 130,000 tokens, for half of
        which the library lets nobody else run."""
        if self._eos_token_ids and self._tokenizer is not None:
            await self._slots.take("")
            with contextlib.suppress(RequestError):  # a constraint will meet it again
                await self._in_thread("", self._read_vocabulary)

    async def matchers(
        self, constraint: pb.Constraint, count: int, key: str = ""
    ) -> Sequence[Matcher]:
        """``count`` matchers of one language, each at its beginning.

        Args:
            key: the caller's.

        Raises:
            RequestError: INVALID_ARGUMENT with the field's path, FAILED_PRECONDITION where the
                model cannot be constrained, RESOURCE_EXHAUSTED while too many wait.
        """
        field = f"constraint.{constraint.WhichOneof('language')}"
        if not self._eos_token_ids:
            raise _unconstrainable("has no end token")
        if self._vocabulary is None:
            await self._slots.take(key)
            await self._in_thread(key, self._read_vocabulary)
        _, added_ids = self._read_vocabulary()
        trigger = _trigger(constraint.trigger, added_ids)
        grammar = compiled_form(constraint, field, added_ids)
        await self._slots.take(key)
        try:
            async with asyncio.timeout(COMPILE_SECONDS):
                made = await self._in_thread(key, lambda: self._compile(grammar, count, field))
        except TimeoutError as error:
            raise invalid_field(
                field, f"takes more than {COMPILE_SECONDS:g} s to compile; simplify it"
            ) from error
        if trigger is None:
            return made
        return [TriggeredMatcher(trigger, each.copy) for each in made]

    def _compile(self, grammar: str, count: int, field: str) -> list[GrammarMatcher]:
        vocabulary, _ = self._read_vocabulary()
        inner = LLMatcher(vocabulary, grammar, log_level=0, limits=_LIMITS)
        if inner.is_error():
            raise invalid_field(field, f"is refused: {brief(inner.get_error())}")
        first = GrammarMatcher(inner, self._num_bytes, MaskTime(count))
        return [first, *(first.copy() for _ in range(count - 1))]

    def _read_vocabulary(self) -> tuple[LLTokenizer, Mapping[str, int]]:
        """The tokenizer as llguidance has it, and ids of its added tokens by name; read once."""
        with self._vocabulary_lock:
            if self._vocabulary is None:
                if self._tokenizer is None:
                    raise _unconstrainable("has no tokenizer of the tokenizers library")
                try:
                    read = Vocabulary(self._tokenizer, self._vocab_size, self._eos_token_ids)
                    inner = LLTokenizer(read, eos_token=self._eos_token_ids)
                except ValueError as error:
                    raise _unconstrainable(brief(str(error))) from error
                self._vocabulary = inner, read.added_ids
            return self._vocabulary

    async def _in_thread(self, key: str, function: Callable[[], _T]) -> _T:
        """Runs ``function`` in a thread that does not hold up the end of the process, and returns
        the key's slot when it has ended, whoever waits for that."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_T] = loop.create_future()

        def tell(result: _T | None, error: Exception | None) -> None:
            self._slots.give(key)
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
        except RuntimeError:  # the system has no more threads
            self._slots.give(key)
            raise
        finally:
            threading.stack_size(usual)
        return await done


def _trigger(text: str, added_ids: Mapping[str, int]) -> int | None:
    """The token of a trigger; None without one."""
    if text and text not in added_ids:
        raise invalid_field(
            "constraint.trigger", "is no token of its own in this model's vocabulary; leave it out"
        )
    return added_ids[text] if text else None


def _failed(complaint: str) -> RequestError:
    return invalid_field(
        "constraint", f"cannot be kept to here: {complaint}", reason="CONSTRAINT_FAILED"
    )


def _unconstrainable(why: str) -> RequestError:
    return RequestError(
        Code.FAILED_PRECONDITION,
        f"this model's output cannot be held to a language: it {why}; leave constraint unset",
        reason="NO_CONSTRAINTS",
        field="constraint",
        mentions={"constraint": "constraint"},
    )
